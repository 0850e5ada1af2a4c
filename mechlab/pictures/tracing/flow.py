"""What the picture of a contrast holds: plain values, which a file can keep and a page can draw."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

STRENGTHS = tuple(n / 4 for n in range(-8, 9))  # where a slider can stand
Turn = tuple[tuple[float, ...], int | None]  # the strength of each group, and which late group is held


@dataclass(frozen=True)
class Part:
    """A whole MLP, or a head, at one position.

    share: what goes through it, as a share of the change; below 0 where it works against the change
    looks: (position, attention) where else a head looks, the mean over the prompts
    """

    layer: int
    pos: int
    share: float
    head: int | None = None
    looks: tuple[tuple[int, float], ...] = ()

    @property
    def name(self) -> str:
        """ "MLP 14" or "23.4"."""
        return f"MLP {self.layer}" if self.head is None else f"{self.layer}.{self.head}"


@dataclass(frozen=True)
class Inside:
    """The neurons of an MLP at one position: rows of name, share, mean on base, mean on source, and words.

    words: what the words of a neuron are: "writes", or "most active on"
    """

    words: str
    rows: tuple[tuple[str, float, float, float, str], ...]


@dataclass(frozen=True)
class Flow:
    """Which heads and MLPs the change between two prompts goes through.

    title:  what changes, with its unit;  change: by how much, the mean over the pairs
    names:  what to call the prompts, base and source
    tokens: (on base, on source) at each position
    parts:  the largest, in no order
    """

    title: str
    change: float
    names: tuple[str, str]
    tokens: tuple[tuple[str, str], ...]
    parts: tuple[Part, ...]

    def called(self, part: Part) -> str:
        """A name of its own for each part: "MLP 14 at ' Tokyo'"."""
        base = [tokens[0] for tokens in self.tokens]
        which = f" {part.pos}" if base.count(base[part.pos]) > 1 else ""
        return f"{part.name} at {base[part.pos]}{which}"


@dataclass(frozen=True)
class Step:
    """What the model says when some groups are turned.

    likely: (token, probability) of the likeliest next tokens, the first the likeliest
    gone:   how far each late group has gone from where it was (0) to where it is on base (1)
    """

    likely: tuple[tuple[str, float], ...]
    gone: tuple[float, ...] = ()


@dataclass(frozen=True)
class Example:
    """All that a page without a model needs to be turned: the flow, the groups, and every step.

    knobs, late: (name, number of neurons) of the groups to turn, and of those that are watched and held
    steps:       Turn -> Step, for each combination of `STRENGTHS` and of what is held
    """

    name: str
    prompt: str
    flow: Flow
    inside: Mapping[str, Inside]  # by `flow.called`
    knobs: tuple[tuple[str, int], ...]
    late: tuple[tuple[str, int], ...]
    steps: Mapping[Turn, Step]

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON. Steps are packed: number of the token and thousandths, then hundredths gone."""
        words = sorted({token for step in self.steps.values() for token, _ in step.likely})
        packed = [
            [
                *(x for token, p in step.likely for x in (words.index(token), round(1000 * p))),
                *(round(100 * g) for g in step.gone),
            ]
            for _, step in sorted(self.steps.items(), key=lambda item: place_of(item[0]))
        ]
        return asdict(self) | {"words": words, "steps": packed}

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> "Example":
        """What `to_dict` made, again."""
        flow, some = kept["flow"], len(kept["late"])
        parts = [Part(**(part | {"looks": _frozen(part["looks"])})) for part in flow["parts"]]
        inside = {name: Inside(each["words"], _frozen(each["rows"])) for name, each in kept["inside"].items()}
        steps = {}
        for turn, row in zip(turns(len(kept["knobs"]), some), kept["steps"], strict=True):
            likely, gone = row[: len(row) - some], row[len(row) - some :]
            pairs = zip(likely[::2], likely[1::2], strict=True)
            told = tuple((kept["words"][token], p / 1000) for token, p in pairs)
            steps[turn] = Step(told, tuple(g / 100 for g in gone))
        names, tokens = _frozen(flow["names"]), _frozen(flow["tokens"])
        drawn = Flow(flow["title"], flow["change"], names, tokens, tuple(parts))
        groups = _frozen(kept["knobs"]), _frozen(kept["late"])
        return cls(kept["name"], kept["prompt"], drawn, inside, *groups, steps)


def turns(knobs: int, late: int) -> list[Turn]:
    """Every combination of strengths and of what is held, in the order in which steps are kept."""
    strengths: list[tuple[float, ...]] = [()]
    for _ in range(knobs):
        strengths = [(*some, each) for some in strengths for each in STRENGTHS]
    return [(some, held) for some in strengths for held in (None, *range(late))]


def place_of(turn: Turn) -> tuple[tuple[float, ...], int]:
    """By which turns are sorted as `turns` gives them."""
    return turn[0], -1 if turn[1] is None else turn[1]


def _frozen(kept: Any) -> Any:
    """Lists as tuples, all the way down."""
    return tuple(map(_frozen, kept)) if isinstance(kept, Sequence) and not isinstance(kept, str) else kept
