"""Write data/tracing/two_hops.json: is the language of a city said by way of its country? The raw figures.

    python data/make/two_hops.py        about 14 minutes on one core; an interrupted run goes on where it stopped

Eight languages of eight countries, 56 ordered pairs of them. For each pair a group of neurons at the city's token is chosen
on training cities (the first template alone), by what `mechlab.Contrast` finds to go through it. Then it is turned in cities
that were not among them: to each neuron's own value a multiple of (mean of the new cities − mean of the old) is added, and
all else computes on, live. The same neurons and the same differences are used in all templates and questions.

What stands in the file:

    pairs            setting -> [p(old answer), p(new answer)] for each held-out city; settings are named where they are made
    apart            the same for one language in two countries, and for one country with two languages
    heads            what patching single heads at the end does, as shares of the way
    carried, looks   head 23.4 put in from another question; its attention to the city
    taught           a city with a new country or a new language written into layer 4
    random weights   the same groups in a model that was never trained

docs/two_hops.md is made of it by two_hops_report.py.
"""

import csv
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache, cached_property
from itertools import combinations, permutations, product
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

import mechlab as ml
from mechlab.intervention.rome import load_covariance
from mechlab.runs.run import Put

DATA = Path(__file__).parents[1]
CITIES, PATH = DATA / "tracing" / "cities.csv", DATA / "tracing" / "two_hops.json"
TEMPLATES = {  # the first is the one that everything is chosen on
    "A": "In Salzburg people speak German. In Rio people speak Portuguese. In {} people speak",
    "B": "The people of Oslo speak Norwegian. The people of Sofia speak Bulgarian. The people of {} speak",
    "C": "Helsinki: Finnish. Dublin: English. Bucharest: Romanian. {}:",
}
COUNTRY = "The city of {} is located in the country of"
CONTINENT = "The city of {} lies on the continent of"
CAPITAL = "The capital of {} is"
NAME = "Oslo is called Oslo. Dublin is called Dublin. {} is called"
HOME = {  # language -> country, its capital, its continent
    "German": ("Germany", "Berlin", "Europe"),
    "French": ("France", "Paris", "Europe"),
    "Spanish": ("Spain", "Madrid", "Europe"),
    "Italian": ("Italy", "Rome", "Europe"),
    "Japanese": ("Japan", "Tokyo", "Asia"),
    "Chinese": ("China", "Beijing", "Asia"),
    "Russian": ("Russia", "Moscow", "Europe"),
    "Greek": ("Greece", "Athens", "Europe"),
}
HALVES = ("German", "French", "Japanese", "Russian"), ("Spanish", "Italian", "Chinese", "Greek")
OTHERS = {  # questions about other things, each word with its answer
    "opposite": (
        "The opposite of hot is cold. The opposite of big is small. The opposite of {} is",
        "high low, early late, young old, bad good, black white, slow fast, left right, closed open",
    ),
    "kind": (
        "A dog is an animal. A rose is a flower. A {} is a",
        "salmon fish, trout fish, crow bird, hammer tool, knife tool, banana fruit, oak tree, pine tree",
    ),
    "person": (
        "Tolstoy was Russian. Cervantes was Spanish. {} was",
        "Einstein German, Napoleon French, Aristotle Greek, Gandhi Indian, Confucius Chinese, Galileo Italian, "
        "Shakespeare English, Lenin Russian",
    ),
}
# One language and two countries, then one country and two languages: (language, country) -> (language, country).
APART = (
    *((("German", "Germany"), ("German", place)) for place in ("Austria", "Switzerland")),
    *((("German", "Switzerland"), ("German", place)) for place in ("Germany", "Austria")),
    *((("French", "France"), ("French", place)) for place in ("Canada", "Switzerland")),
    *((("French", "Canada"), ("French", place)) for place in ("France", "Switzerland")),
    *((("Spanish", "Spain"), ("Spanish", place)) for place in ("Peru", "Chile", "Cuba")),
    *((("English", a), ("English", b)) for a, b in permutations(("Canada", "England", "Australia"), 2)),
    (("German", "Switzerland"), ("French", "Switzerland")),
    (("French", "Canada"), ("English", "Canada")),
    (("English", "Canada"), ("French", "Canada")),
)
SIZES, TIMES, DRAWS = (10, 25, 60, 150), (1, 1.5, 2), 20
STEPS = range(
    1, 5
)  # of the 56 ordered pairs these: each language is four times the old one, four times the new
SETTINGS = [*product(SIZES[1:], TIMES[1:])]
MAIN = (25, 1.5), (60, 2)  # the settings that chance and other groups are compared at
HELD = [(layer, head) for layer in range(22, 25) for head in range(9)]
HEAD = 23, 4
FIRST, LATE = 4, 20  # layers: of the group at the city, and of the group at the end, at least
Turn = tuple[int, list[tuple[int, int]], Float[Tensor, "batch neuron"]]  # position, (layer, neuron), values


def cities() -> list[dict[str, str]]:
    with CITIES.open(encoding="utf-8") as file:
        return [*csv.DictReader(file)]


class Asked:
    """One question, asked of one city after the other: where the city stands, and runs, each made once."""

    def __init__(self, model, form: str):
        self.model, self.form = model, form
        one, other = (model.to_tokens(form.format(word))[0] for word in ("Tokyo", "Paris"))
        (self.pos,) = (one != other).nonzero().flatten().tolist()
        self.end = len(one) - 1
        self.run = cache(self._run)
        self.neurons = cache(self._neurons)

    def _run(self, words: tuple[str, ...]):
        return ml.run_of(self.model, [self.form.format(word) for word in words])

    def _neurons(self, words: tuple[str, ...], end: bool = False) -> Float[Tensor, "batch layer neuron"]:
        """What all neurons hand on at the word's token, or at the end."""
        run, pos = self.run(words), self.end if end else self.pos
        return torch.stack([run.at("post", layer)[:, pos] for layer in range(self.model.cfg.n_layers)], 1)

    def way(self, old: tuple, new: tuple, end: bool = False) -> Float[Tensor, "layer neuron"]:
        """How far the neurons of new words stand, in the mean, from those of old ones."""
        return self.neurons(new, end).mean(0) - self.neurons(old, end).mean(0)

    def totals(self, old: tuple, new: tuple, answers: Sequence[int]) -> ml.Scores:
        """What goes through each neuron, over all pairs of an old and a new word."""
        base, source = self.run(tuple(n for n in new for _ in old)), self.run(old * len(new))
        return ml.Contrast(self.model, base, source, ml.logit_difference(*answers[::-1])).totals()

    def turned(self, words: tuple[str, ...], copies: Sequence[Sequence[Turn]], answers) -> list:
        """Probabilities of some answers, [copy][word][answer], when groups are put where `Turn`s say."""
        run, found = self.run(words), []
        for begin in range(0, len(copies), DRAWS):
            puts = self._puts(copies[begin : begin + DRAWS], len(words))
            logits = run.logits(puts, 1)[:, -1].unflatten(0, (-1, len(words)))
            found += shown(logits.softmax(-1), answers)
        return found

    def clean(self, words: tuple[str, ...], answers) -> list:
        return shown(self.run(words).logits([], 1)[:, -1].softmax(-1)[None], answers)[0]

    def _puts(self, copies: Sequence[Sequence[Turn]], batch: int) -> list[Put]:
        width, values, where = self.model.cfg.d_mlp, {}, {}
        for copy, turns in enumerate(copies):
            for pos, group, goal in turns:
                for column, (layer, neuron) in enumerate(group):
                    at = layer, pos
                    if at not in values:
                        values[at] = torch.zeros(len(copies), batch, 1, width)
                        where[at] = torch.zeros(len(copies), 1, self.end + 1, width, dtype=torch.bool)
                    values[at][copy, :, 0, neuron] = goal[:, column]
                    where[at][copy, :, pos, neuron] = True
        return [Put("post", at[0], values[at], where[at]) for at in sorted(values)]

    def turn(self, words: tuple, group, way: Tensor, times: float, end: bool = False) -> Turn:
        """Each neuron's own value, and a multiple of its way added to it."""
        layers, neurons = zip(*group, strict=True)
        own, goal = self.neurons(words, end)[:, layers, neurons], way[layers, neurons]
        return self.end if end else self.pos, group, own + times * goal


def shown(p: Float[Tensor, "copy batch vocab"], answers) -> list:
    """Of each row the answers asked for: the same for all rows, or some for each."""
    answers = torch.as_tensor(answers).expand(p.shape[1], -1)
    found = p.gather(2, answers.expand(len(p), -1, -1))
    return [[[float(f"{x:.4g}") for x in row] for row in copy] for copy in found.tolist()]


def alike(group, way: Tensor, seed: int) -> list[tuple[int, int]]:
    """Neurons of the same layers that change about as much: each one of the twenty nearest, outside of the group."""
    chance, found = torch.Generator().manual_seed(seed), []
    for layer, neuron in group:
        off = (way[layer].abs() - way[layer, neuron].abs()).abs()
        off[[n for at, n in (*group, *found) if at == layer]] = float("inf")
        near = off.argsort()[:20]
        found.append((layer, int(near[torch.randint(20, (1,), generator=chance)])))
    return found


def largest(scores: Float[Tensor, "layer neuron"], k: int, first: int) -> list[tuple[int, int]]:
    """The k neurons of the layers from `first` on with the largest scores by size."""
    best = scores[first:].abs().flatten().topk(k).indices
    return [(first + int(n) // scores.shape[1], int(n) % scores.shape[1]) for n in best]


class Pair:
    """The cities of an old and a new language: the training cities of both, and the old one's held-out cities."""

    def __init__(self, study: "Study", old: str, new: str, *, seed: int = 0):
        self.study, self.seed, self.languages = study, seed, (old, new)
        self.old, self.new = (study.of(language, HOME[language][0]) for language in (old, new))
        self.held = study.of(old, HOME[old][0], "test")
        self.said = study.ids((old, new))
        self.places = [study.ids([HOME[each][n] for each in (old, new)]) for n in range(3)]

    @cached_property
    def scores(self) -> Float[Tensor, "layer pos neuron"]:
        return self.study.asked["A"].totals(self.old, self.new, self.said).values

    @cached_property
    def way(self) -> Float[Tensor, "layer neuron"]:
        return self.study.asked["A"].way(self.old, self.new)

    def group(self, k: int) -> list[tuple[int, int]]:
        return largest(self.scores[:, self.study.asked["A"].pos], k, FIRST)

    @cached_property
    def late(self) -> list[tuple[int, int]]:
        return largest(self.scores[:, self.study.asked["A"].end], 10, LATE)

    @cached_property
    def by_chance(self) -> dict[str, list]:
        """k/times -> twenty matched groups, each with how far it is turned."""
        draws = [1000 * self.seed + draw for draw in range(DRAWS)]
        return {f"{k}/{x}": [(alike(self.group(k), self.way, draw), x) for draw in draws] for k, x in MAIN}

    def ask(self, asked: Asked, settings: dict, answers, *, end: bool = False) -> dict:
        """Probabilities for named settings, each a group and how far it is turned."""
        way = self.study.asked["A"].way(self.old, self.new, end)
        copies = [[asked.turn(self.held, group, way, times, end)] for group, times in settings.values()]
        return dict(zip(settings, asked.turned(self.held, copies, answers), strict=True))

    def random(self, asked: Asked, setting: str, answers) -> list:
        return [*self.ask(asked, dict(enumerate(self.by_chance[setting])), answers).values()]

    def languages_said(self) -> dict:
        """chosen/TEMPLATE/k/times; end/k/times and size/k/times; random/k/times: a list of twenty."""
        found, A = {}, self.study.asked["A"]
        for name in TEMPLATES:
            asked = self.study.asked[name]
            found[f"clean/{name}"] = asked.clean(self.held, self.said)
            wanted = product(SIZES, TIMES) if name == "A" else SETTINGS
            settings = {f"chosen/{name}/{k}/{x}": (self.group(k), x) for k, x in wanted}
            found |= self.ask(asked, settings, self.said)
        size = {f"size/{k}/{x}": (largest(self.way, k, FIRST), x) for k, x in MAIN}
        found |= self.ask(A, size, self.said)
        found |= self.ask(A, {f"end/{k}/{x}": (self.group(k), x) for k, x in MAIN}, self.said, end=True)
        return found | {f"random/{setting}": self.random(A, setting, self.said) for setting in self.by_chance}

    def chosen_elsewhere(self) -> dict:
        """own/C/k/times: group and differences from the third template itself, to tell it from a harder one."""
        asked = self.study.asked["C"]
        scores = asked.totals(self.old, self.new, self.said).values[:, asked.pos]
        return self.own(asked, scores, {"own/C": (asked, self.said)})

    def own(self, chosen: Asked, scores: Tensor, questions: dict[str, tuple[Asked, list]]) -> dict:
        """NAME/k/times: a group by scores, and its way, both from one question, turned in several."""
        way, found = chosen.way(self.old, self.new), {}
        for name, (asked, answers) in questions.items():
            copies = [[asked.turn(self.held, largest(scores, k, FIRST), way, x)] for k, x in SETTINGS]
            keys = [f"{name}/{k}/{x}" for k, x in SETTINGS]
            found |= dict(zip(keys, asked.turned(self.held, copies, answers), strict=True))
        return found

    def other_questions(self) -> dict:
        """country/k/times and so on; name: p(own name), p(new country), p(new language), p(each new city)."""
        study, found = self.study, {}
        settings = lambda name: {f"{name}/{k}/{x}": (self.group(k), x) for k, x in SETTINGS}
        forms = {"country": (COUNTRY, self.places[0])}
        if HOME[self.languages[0]][2] != HOME[self.languages[1]][2]:
            forms["continent"] = (CONTINENT, self.places[2])
        other = [self.places[0][1], self.said[1], *study.ids(self.new)]
        names = [[*study.ids([city]), *other] for city in self.held]
        forms["name"] = (NAME, names)
        for name, (form, answers) in forms.items():
            asked = study.of_form(form)
            found[f"clean/{name}"] = asked.clean(self.held, answers)
            found |= self.ask(asked, settings(name), answers)
            if name != "continent":
                found[f"{name}/random/60/2"] = self.random(asked, "60/2", answers)
        return found | self.capital()

    def capital(self) -> dict:
        """The same neurons, at the token of the old country's own name."""
        asked, country = self.study.of_form(CAPITAL), (HOME[self.languages[0]][0],)
        found = {"clean/capital": asked.clean(country, self.places[1])}
        copies = [[asked.turn(country, self.group(k), self.way, x)] for k, x in SETTINGS]
        keys = [f"capital/{k}/{x}" for k, x in SETTINGS]
        return found | dict(zip(keys, asked.turned(country, copies, self.places[1]), strict=True))

    def chosen_on_country(self) -> dict:
        """by country/QUESTION/k/times: chosen on the country question, its differences taken from there."""
        asked, A = self.study.of_form(COUNTRY), self.study.asked["A"]
        scores = asked.totals(self.old, self.new, self.places[0]).values[:, asked.pos]
        both = {"by country/country": (asked, self.places[0]), "by country/language": (A, self.said)}
        shared = {k: len({*largest(scores, k, FIRST)} & {*self.group(k)}) for k in SIZES[1:]}
        counts = {f"by country/shared/{k}": count for k, count in shared.items()}
        return self.own(asked, scores, both) | counts

    def mediated(self) -> dict:
        """late: the group at the end alone; held: it stands still; held at random: ten others; gone: how far it goes."""
        A, found = self.study.asked["A"], {}
        far = A.way(self.old, self.new, True)
        still = lambda group: A.turn(self.held, group, far, 0, True)
        alone = [[A.turn(self.held, self.late, far, x, True)] for x in (1, 1.5)]
        found |= dict(zip(("late/1", "late/1.5"), A.turned(self.held, alone, self.said), strict=True))
        others = [alike(self.late, far, 1000 * self.seed + draw) for draw in range(10)]
        for k, x in MAIN:
            turn = A.turn(self.held, self.group(k), self.way, x)
            first, *chance = A.turned(
                self.held, [[turn, still(group)] for group in (self.late, *others)], self.said
            )
            found |= {f"held/{k}/{x}": first, f"held at random/{k}/{x}": chance}
            found[f"gone/{k}/{x}"] = self.gone(turn, far)
        return found

    def gone(self, turn: Turn, far: Float[Tensor, "layer neuron"]) -> list[float]:
        """How far along its way the late group has come, for each held-out city: 1 is all of it."""
        A = self.study.asked["A"]
        layers, neurons = (list(each) for each in zip(*self.late, strict=True))
        run = A.run(self.held).changed(A._puts([[turn]], len(self.held)))
        seen = torch.stack([run.at("post", layer)[:, A.end, n] for layer, n in self.late], 1)
        way = far[layers, neurons]
        moved = seen - A.neurons(self.held, True)[:, layers, neurons]
        return [round(x, 4) for x in ((moved @ way) / (way @ way)).tolist()]

    def heads_held(self) -> dict:
        """held heads/k/times: each head of `HELD` hands on at the end what it does in the clean run."""
        A, found = self.study.asked["A"], {}
        run, holds = A.run(self.held), []
        for layer in {layer for layer, _ in HELD}:
            where = torch.zeros(len(HELD), 1, A.end + 1, self.study.model.cfg.n_heads, dtype=torch.bool)
            for copy, (its, head) in enumerate(HELD):
                where[copy, 0, A.end, head] = its == layer
            holds.append(Put("z", layer, run.at("z", layer)[None], where))
        for k, x in MAIN:
            puts = A._puts([[A.turn(self.held, self.group(k), self.way, x)]], len(self.held))
            logits = run.logits([*puts, *holds], 1)[:, -1].unflatten(0, (-1, len(self.held)))
            found[f"held heads/{k}/{x}"] = shown(logits.softmax(-1), self.said)
        return found


class Study:
    """The model, its questions and its cities."""

    def __init__(self, model):
        self.model, self.table = model, cities()
        self.of_form = cache(lambda form: Asked(model, form))
        self.asked = {name: self.of_form(form) for name, form in TEMPLATES.items()}

    def ids(self, words: Sequence[str]) -> list[int]:
        return [self.model.to_single_token(" " + word) for word in words]

    def of(self, language: str, country: str, part: str = "train") -> tuple[str, ...]:
        wanted = {"language": language, "country": country, "part": part}
        return tuple(row["city"] for row in self.table if wanted.items() <= row.items())


def apart(study: Study, old: tuple[str, str], new: tuple[str, str]) -> dict:
    """A group chosen on what differs, asked about both: country/k/times and language/k/times.

    The answers are [old, new] of what differs; of the other, which both share, [that, its likeliest rival's].
    """
    country, A = study.of_form(COUNTRY), study.asked["A"]
    olds, news, held = study.of(*old), study.of(*new), study.of(*old, "test")
    differs = 0 if old[0] != new[0] else 1
    chosen = (A, country)[differs]
    answers = [study.ids([*dict.fromkeys(pair)]) for pair in zip(old, new, strict=True)]
    scores = chosen.totals(olds, news, answers[differs]).values[:, chosen.pos]
    way, found = chosen.way(olds, news), {"held": list(held)}
    for name, asked, said in (("language", A, answers[0]), ("country", country, answers[1])):
        found[f"clean/{name}"] = asked.clean(held, said)
        copies = [[asked.turn(held, largest(scores, k, FIRST), way, x)] for k, x in SETTINGS]
        keys = [f"{name}/{k}/{x}" for k, x in SETTINGS]
        found |= dict(zip(keys, asked.turned(held, copies, said), strict=True))
        if asked is chosen:
            chance = [alike(largest(scores, 60, FIRST), way, draw) for draw in range(DRAWS)]
            copies = [[asked.turn(held, group, way, 2)] for group in chance]
            found[f"{name}/random/60/2"] = asked.turned(held, copies, said)
    return found


def taught(study: Study, old: str, new: str) -> dict:
    """A held-out city that is taught one thing by a rank-one edit (notebook 34): what it then says of the other.

    [p(old answer), p(new answer)] by question; "clean", "country" or "language": nothing, or which of the two was taught.
    """
    city, ways = study.of(old, HOME[old][0], "test")[0], (HOME[old][0], HOME[new][0])
    answers = {name: study.ids((old, new)) for name in TEMPLATES} | {"country": study.ids(ways)}
    covariance = load_covariance(DATA / "rome" / "smollm2_layer4.safetensors")
    facts = {
        "clean": None,
        "country": ml.Fact(COUNTRY, city, f" {ways[1]}"),
        "language": ml.Fact(TEMPLATES["A"], city, f" {new}"),
    }
    found = {"city": city}
    for name, fact in facts.items():
        with nullcontext() if fact is None else ml.edit_fact(study.model, fact, FIRST, covariance):
            found[name] = {
                asked: Asked(study.model, TEMPLATES.get(asked, COUNTRY)).clean((city,), answers[asked])[0]
                for asked in answers
            }
    return found


def heads_of(model, bases: list[str], sources: list[str], right: list[int], wrong: list[int]) -> list:
    """[prompt][head]: one head at the end patched from source, as a share of that prompt's own way; 3 digits."""
    base, source = ml.run_of(model, bases), ml.run_of(model, sources)
    metric = ml.logit_difference(torch.tensor(right), torch.tensor(wrong))
    found = ml.activation_patching(model, base, source, metric, "z", positions=[-1], normalized=False)
    way, each = source.value(metric) - base.value(metric), found.per_prompt
    assert each is not None  # there are several prompts
    return [[round(x, 3) for x in row] for row in (each.flatten(1) / way[:, None]).tolist()]


def asked_of(study: Study, form: str, answers: dict[str, str], pairs: Sequence[tuple[str, str]]) -> dict:
    ids = dict(zip(answers, study.ids([*answers.values()]), strict=True))
    bases, sources = ([form.format(pair[n]) for pair in pairs] for n in (0, 1))
    right, wrong = ([ids[pair[n]] for pair in pairs] for n in (1, 0))
    return {"pairs": [*pairs], "shares": heads_of(study.model, bases, sources, right, wrong)}


def heads(study: Study) -> dict:
    """Every head alone, in questions about places (half by half of the languages) and about other things."""
    found = {}
    held = {language: study.of(language, HOME[language][0], "test")[0] for language in HOME}
    for half, languages in zip(("chosen", "reported"), HALVES, strict=True):
        two = [*permutations(languages, 2)]
        pairs = [(held[a], held[b]) for a, b in two]
        for name, form, answer in (
            ("language", TEMPLATES["A"], None),
            ("country", COUNTRY, 0),
            ("name", NAME, -1),
        ):
            said = {
                held[each]: each if answer is None else HOME[each][0] if answer == 0 else held[each]
                for each in languages
            }
            found[f"{name}/{half}"] = lambda form=form, said=said, pairs=pairs: asked_of(
                study, form, said, pairs
            )
        capitals = {HOME[each][0]: HOME[each][1] for each in languages}
        places = [(HOME[a][0], HOME[b][0]) for a, b in two]
        found[f"capital/{half}"] = lambda said=capitals, pairs=places: asked_of(study, CAPITAL, said, pairs)
    for name, (form, words) in OTHERS.items():
        said = dict(each.split() for each in words.split(", "))
        pairs = [(a, b) for a, b in combinations(said, 2) if said[a] != said[b]][::2]
        found[name] = lambda form=form, said=said, pairs=pairs: asked_of(study, form, said, pairs)
    found["IOI"] = lambda: names_given(study)
    return found


def carried(study: Study, into: str, out_of: str) -> dict:
    """23.4 at the end gets what it has in another question: the new city's there against the old city's there.

    A share of the way between the two cities in the question that it is put into. 1: the head brings the same whatever
    was asked.
    """
    forms = {"language": TEMPLATES["A"], "country": COUNTRY, "name": NAME}
    held = {language: study.of(language, HOME[language][0], "test")[0] for language in HOME}
    pairs = [(held[a], held[b]) for half in HALVES for a, b in permutations(half, 2)]
    said = {
        held[each]: {"language": each, "country": HOME[each][0], "name": held[each]}[into] for each in HOME
    }
    here, there = (study.of_form(forms[name]) for name in (into, out_of))
    olds, news = (tuple(pair[n] for pair in pairs) for n in (0, 1))
    metric = ml.logit_difference(
        *(torch.tensor(study.ids([said[city] for city in each])) for each in (news, olds))
    )
    base, (layer, head) = here.run(olds), HEAD
    where = torch.zeros(1, 1, here.end + 1, study.model.cfg.n_heads, dtype=torch.bool)
    where[..., here.end, head] = True
    ends = [
        base.edited(metric, [Put("z", layer, there.run(each).at("z", layer)[None, :, -1:], where)])[0]
        for each in (news, olds)
    ]
    way = here.run(news).value(metric) - base.value(metric)
    return {"pairs": pairs, "shares": [round(x, 3) for x in ((ends[0] - ends[1]) / way).tolist()]}


def looks(study: Study, form: str) -> list[float]:
    """How much of its attention 23.4 pays to the city's token from the end, for each held-out city."""
    asked, words = (
        study.of_form(form),
        tuple(city for each in HOME for city in study.of(each, HOME[each][0], "test")),
    )
    pattern = asked.run(words).at("pattern", HEAD[0])[:, asked.end, HEAD[1], asked.pos]
    return [round(x, 3) for x in pattern.tolist()]


def names_given(study: Study) -> dict:
    """The indirect object: from each prompt to its partner, the same sentence with the other person named again."""
    found = ml.ioi_prompts(study.model, 24)
    other = torch.arange(24) ^ 1
    assert (found.pairs[other] == found.pairs).all()
    ends = [int(end) + 1 for end in found.positions["end"]]
    texts = [study.model.to_string(row[:end]) for row, end in zip(found.tokens, ends, strict=True)]
    texts = [text.removeprefix(study.model.tokenizer.bos_token or "") for text in texts]
    sources = [texts[int(n)] for n in other]
    by_length = [n for n in range(24) if ends[n] == ends[int(other[n])] == ends[0]]
    pick = lambda rows: [rows[n] for n in by_length]
    shares = heads_of(
        study.model, pick(texts), pick(sources), pick(found.s.tolist()), pick(found.io.tolist())
    )
    return {"pairs": pick(found.pairs.tolist()), "shares": shares}


def random_weights(study: Study, seed: int) -> dict:
    """chosen/A/k/times and twenty others of an untrained model; its clean answers, and those of the new cities."""
    untrained, found = Study(ml.random_weights(study.model, seed=seed)), {}
    for old, new in permutations(HALVES[0], 2):
        pair, A = Pair(untrained, old, new), untrained.asked["A"]
        settings = {f"chosen/A/{k}/{x}": (pair.group(k), x) for k, x in MAIN}
        record = {"clean/A": A.clean(pair.held, pair.said), **pair.ask(A, settings, pair.said)}
        record["new"] = A.clean(pair.new, pair.said)
        chance = {f"random/{setting}": pair.random(A, setting, pair.said) for setting in pair.by_chance}
        found[f"{old} → {new}"] = record | chance
    return found


def whole(study: Study, number: int, old: str, new: str) -> dict:
    """All that is asked of one pair."""
    pair = Pair(study, old, new, seed=number)
    found = {"held": list(pair.held), "new": study.asked["A"].clean(pair.new, pair.said)}
    found |= pair.languages_said() | pair.chosen_elsewhere() | pair.chosen_on_country()
    return found | pair.other_questions() | pair.mediated() | pair.heads_held()


def tasks(study: Study) -> dict:
    """(part, name) -> what makes its record."""
    found = {("heads", name): make for name, make in heads(study).items()}
    for into, out_of in product(("language", "country", "name"), repeat=2):
        found["carried", f"{into} from {out_of}"] = lambda a=into, b=out_of: carried(study, a, b)
    for name, form in (("language", TEMPLATES["A"]), ("country", COUNTRY), ("name", NAME)):
        found["looks", name] = lambda form=form: looks(study, form)
    for old, new in APART:
        found["apart", f"{' in '.join(old)} → {' in '.join(new)}"] = lambda a=old, b=new: apart(study, a, b)
    found |= {("random weights", str(seed)): lambda s=seed: random_weights(study, s) for seed in (0, 1)}
    every, count = [*HOME], len(HOME)
    circles = [(every[n], every[(n + step) % count]) for step in range(1, count) for n in range(count)]
    for old, new in circles[3 * count : 4 * count]:
        found["taught", f"{old} → {new}"] = lambda a=old, b=new: taught(study, a, b)
    for number, (old, new) in enumerate(circles):  # each circle has every language once on either side
        found["pairs", f"{old} → {new}"] = lambda n=number, a=old, b=new: whole(study, n, a, b)
    return found


@torch.no_grad()
def main():
    done: dict[str, dict] = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
    study, begin = Study(ml.load()), time.process_time()
    for (part, name), make in tasks(study).items():
        if name not in done.setdefault(part, {}):
            done[part][name] = make()
            PATH.write_text(json.dumps(done, ensure_ascii=False), encoding="utf-8")
            print(f"{time.process_time() - begin:6.0f} s  {part}: {name}", flush=True)


if __name__ == "__main__":
    main()
