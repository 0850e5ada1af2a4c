"""Make data/tracing/explorer.json: three examples of the tracing explorer with every step that its page offers.

Each example turns groups of neurons in a city on which they were not chosen: those with the largest totals in
a contrast of other cities, and as many others of the same layers that change about as much. The third asks
another question than the one by which the neurons were chosen. The late groups, watched and held, are chosen
in the same two ways at the last token. About four minutes on one thread.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import mechlab as ml
from mechlab.intervention.groups import supernode
from mechlab.pictures.tracing.flow import Example, turns
from mechlab.pictures.tracing.turning import Insides, Knob, Turning, flow_of

DATA = Path(__file__).parents[1]
FEW_SHOT = "In Salzburg people speak German. In Rio people speak Portuguese. In {} people speak"
COUNTRY = "The city of {} is located in the country of"
AT_ONCE = 51  # turns that are run together
CITIES = {
    "Germany": ["Munich", "Berlin", "Hamburg"],
    "Japan": ["Tokyo", "Kyoto"],
    "France": ["Paris", "Nice"],
    "Italy": ["Rome", "Milan", "Florence"],
}
LANGUAGES = {"Germany": " German", "Japan": " Japanese", "France": " French", "Italy": " Italian"}
# Name, held-out city, the question that is asked, and the countries from which and to which it is turned. The
# neurons to turn are always chosen on the first question.
EXAMPLES = (
    ("Frankfurt, from Germany to Japan", "Frankfurt", FEW_SHOT, "Germany", "Japan"),
    ("The same neurons, another question", "Frankfurt", COUNTRY, "Germany", "Japan"),
    ("Lyon, from France to Italy", "Lyon", FEW_SHOT, "France", "Italy"),
)


@dataclass(frozen=True)
class Question:
    """The contrast of cities of two countries in one question, and where the city stands."""

    contrast: ml.Contrast
    base: list[str]
    source: list[str]

    @property
    def city(self) -> int:
        base, source = self.contrast.base.tokens, self.contrast.source.tokens
        return int((base != source).any(0).nonzero().max())

    @property
    def last(self) -> int:
        return self.contrast.base.tokens.shape[1] - 1


def asked(model, frame: str, here: str, there: str) -> Question:
    """Every city of the one country against every city of the other."""
    pairs = [(a, b) for a in CITIES[there] for b in CITIES[here]]
    base, source = ([frame.format(pair[side]) for pair in pairs] for side in (0, 1))
    metric = ml.logit_difference(*map(model.to_single_token, answers(frame, here, there)))
    return Question(ml.Contrast(model, base, source, metric), base, source)


def answers(frame: str, here: str, there: str) -> list[str]:
    """What a question is answered by on base and on source."""
    return [LANGUAGES[country] if frame is FEW_SHOT else f" {country}" for country in (there, here)]


def moved(knob: Knob, pos: int) -> Knob:
    """The same neurons with the same step, at another position."""
    return Knob(knob.name, [(layer, pos, neuron) for layer, _, neuron in knob.neurons], knob.around, knob.to)


def groups(
    model, question: Question, pos: int, size: int, layers: range, names: tuple[str, str]
) -> list[Knob]:
    """The neurons that a contrast chooses at a position, and as many others."""
    chosen = supernode(question.contrast.totals(), pos, size, layers=layers)
    (chance,) = ml.matched_groups(question.contrast.changes(), chosen, draws=1)
    pair = zip(names, (chosen, chance), strict=True)
    return [Knob.between(model, name, group, question.source, question.base) for name, group in pair]


def example(model, name: str, city: str, frame: str, here: str, there: str) -> Example:
    """One example: the contrast, the groups, and the model's answer at every turn."""
    chosen_by, question = (asked(model, each, here, there) for each in (FEW_SHOT, frame))
    ways = f"{here} → {there}", "as many by chance"
    found = groups(model, chosen_by, chosen_by.city, 25, range(4, 30), ways)
    knobs = [moved(knob, question.city) for knob in found]
    late = groups(model, question, question.last, 10, range(20, 30), ("ten late neurons", "ten by chance"))
    title = "{!r} − {!r} (logits)".format(*answers(frame, here, there))
    names = f"{CITIES[there][0]} …", f"{CITIES[here][0]} …"
    flow = flow_of(question.contrast, names=names, title=title)
    insides = Insides(question.contrast, texts())
    inside = {flow.called(part): insides.of(part) for part in flow.parts if part.head is None}
    turning = Turning(model, frame.format(city), knobs, late)
    wanted, steps = turns(2, 2), {}
    for begin in range(0, len(wanted), AT_ONCE):
        some = wanted[begin : begin + AT_ONCE]
        steps |= zip(some, turning.steps(some), strict=True)
    count = lambda some: tuple((each.name, len(each.neurons)) for each in some)
    return Example(name, frame.format(city), flow, inside, count(knobs), count(late), steps)


def texts() -> dict[str, str]:
    """Cities to read neurons on."""
    with (DATA / "probing" / "cities.csv").open(encoding="utf-8", newline="") as file:
        return {row["city"]: f"In {row['city']}" for row in csv.DictReader(file)}


if __name__ == "__main__":
    model, made = ml.load(), []
    for given in EXAMPLES:
        made.append(example(model, *given).to_dict())
        print(made[-1]["name"], len(made[-1]["steps"]), "steps", flush=True)
    out = DATA / "tracing" / "explorer.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(made, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{out.stat().st_size:,} bytes")
