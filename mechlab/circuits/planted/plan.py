"""A circuit written down: what the stream's channels hold, and what each head and MLP does with them.

A plan is a small program. `compiled` (compiling.py) makes a GPT-2 of it that does exactly this, so that one
knows which parts of the model matter, and which do not, before any method is asked.

Writing a transformer by hand: Weiss et al. 2021 (RASP), Lindner et al. 2023 (Tracr).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ONE = "one"  # a channel that every position has


@dataclass(frozen=True)
class Match:
    """A head looks where the query's channel has the code that the key's channel has: gain · agreement.

    shift: where the codes are numbered in the same order, say positions: the key's number less the query's.
           −1 looks at the token before
    """

    query: str
    key: str
    gain: float = 5.0
    shift: int = 0

    def __str__(self) -> str:
        less = f"{self.shift:+d}".replace("-", "−") if self.shift else ""
        return f"{self.query}{less} = {self.key} (×{self.gain:g})".replace("×-", "×−")


@dataclass(frozen=True)
class Move:
    """A head takes what stands in one channel, where it looks, to another channel, where it stands."""

    read: str
    write: str
    gain: float = 1.0

    def __str__(self) -> str:
        times = "" if self.gain == 1 else f" (×{self.gain:g})".replace("×-", "×−")
        return f"{self.read} → {self.write}{times}"


@dataclass(frozen=True)
class Head:
    """An attention head: where it looks, and what it takes along.

    truth: whether the answer depends on it; None where that is a matter of opinion (a backup that sleeps)
    """

    name: str
    layer: int
    match: Sequence[Match]
    move: Sequence[Move]
    truth: bool | None = True

    def __str__(self) -> str:
        looks, takes = ", ".join(map(str, self.match)), ", ".join(map(str, self.move))
        return f"layer {self.layer}, head {self.name!r}: looks where {looks}; takes {takes}"


@dataclass(frozen=True)
class Rule:
    """One neuron: it fires when all of some codes are there, and writes others.

    when: channel -> number of the code;  write: channel -> (number of the code, size)
    """

    when: Mapping[str, int]
    write: Mapping[str, tuple[int, float]]


@dataclass(frozen=True)
class Table:
    """An MLP as a truth table: a neuron for each rule."""

    name: str
    layer: int
    rules: Sequence[Rule]
    truth: bool | None = True

    def __str__(self) -> str:
        reads, writes = (", ".join(dict.fromkeys(each(self))) for each in (reads_of, writes_of))
        return f"layer {self.layer}, MLP {self.name!r}: {len(self.rules)} rules from {reads} to {writes}"


@dataclass(frozen=True)
class Plan:
    """All that a model knows how to do.

    words:     its vocabulary; the first begins every prompt
    positions: how long a prompt can be
    channels:  name -> how many codes it tells apart; "token" and "pos" are there already
    room:      name -> in how many dimensions, where not one for each code: then codes overlap
    flags:     channel of one code -> the words that have it;  places: -> the positions that have it
    heads, tables: the circuit;  answer: the channel that is read off as the next word
    gain:      logit of a code of size 1 in it;  layers, slots: how many layers, and heads in each
    gated:     MLPs whose neurons are products, act(gate) · up, and rotary positions: a Llama, not a GPT-2
    """

    words: Sequence[str]
    positions: int
    channels: Mapping[str, int]
    heads: Sequence[Head]
    tables: Sequence[Table] = ()
    flags: Mapping[str, Sequence[str]] = field(default_factory=dict)
    places: Mapping[str, Sequence[int]] = field(default_factory=dict)
    room: Mapping[str, int] = field(default_factory=dict)
    answer: str = "answer"
    gain: float = 4.0
    layers: int = 4
    slots: int = 6
    gated: bool = False

    def __post_init__(self):
        self._check_channels()
        self._check_parts()

    def __str__(self) -> str:
        parts = sorted((*self.heads, *self.tables), key=lambda part: (part.layer, isinstance(part, Table)))
        return "\n".join(map(str, parts))

    @property
    def sizes(self) -> dict[str, int]:
        """How many codes each channel has."""
        known = {ONE: 1, "token": len(self.words), "pos": self.positions}
        flags = dict.fromkeys((*self.flags, *self.places), 1)
        return known | flags | {self.answer: len(self.words)} | {**self.channels}

    def dims(self, channel: str) -> int:
        """In how many dimensions a channel stands."""
        return self.room.get(channel, self.sizes[channel])

    def part(self, name: str) -> Head | Table:
        """A head or a table by its name."""
        found = {part.name: part for part in (*self.heads, *self.tables)}
        if name not in found:
            raise ValueError(f"The plan has no part {name!r}. It has {', '.join(found)}.")
        return found[name]

    def _check_channels(self) -> None:
        unknown = {name for name in self.room if name not in self.sizes}
        unknown |= {word for words in self.flags.values() for word in words if word not in self.words}
        for part in (*self.heads, *self.tables):
            unknown |= {name for name in (*reads_of(part), *writes_of(part)) if name not in self.sizes}
        if unknown:
            raise ValueError(f"The plan does not say what {', '.join(sorted(unknown))} is.")
        if len(set(self.words)) < len(self.words):
            raise ValueError("A word of the plan stands there twice.")
        given = [ONE, "token", "pos", *self.flags, *self.places, self.answer, *self.channels]
        if twice := sorted({name for name in given if given.count(name) > 1}):
            raise ValueError(f"The channel {twice[0]!r} is there already. Call yours something else.")
        codes = [(m.query, abs(m.shift)) for head in self.heads for m in head.match]
        for rule in (rule for table in self.tables for rule in table.rules):
            codes += [*rule.when.items(), *((name, code) for name, (code, _) in rule.write.items())]
        for name, code in codes:
            if not 0 <= code < self.sizes[name]:
                raise ValueError(
                    f"{name} has {self.sizes[name]} codes, from 0 on, and {code} is none of them."
                )

    def _check_parts(self) -> None:
        names = [part.name for part in (*self.heads, *self.tables)]
        if len(set(names)) < len(names):
            raise ValueError("Two parts of the plan have the same name.")
        for layer in range(self.layers):
            here = [head for head in self.heads if head.layer == layer]
            if len(here) > self.slots:
                raise ValueError(f"Layer {layer} has {self.slots} heads, and the plan asks for {len(here)}.")
        for part in (*self.heads, *self.tables):
            if not 0 <= part.layer < self.layers:
                raise ValueError(f"{part.name} is in layer {part.layer}, and there are {self.layers}.")
        if len({table.layer for table in self.tables}) < len(self.tables):
            raise ValueError("A layer has one MLP: put the rules of both tables into one.")


def reads_of(part: Head | Table) -> list[str]:
    """The channels that a part reads."""
    if isinstance(part, Table):
        return [name for rule in part.rules for name in rule.when]
    return [name for m in part.match for name in (m.query, m.key)] + [move.read for move in part.move]


def writes_of(part: Head | Table) -> list[str]:
    """The channels that a part writes."""
    if isinstance(part, Table):
        return [name for rule in part.rules for name in rule.write]
    return [move.write for move in part.move]


def edges_of(plan: Plan) -> list[tuple[str, str, str]]:
    """The true edges, (sender, reader, into what): a true part reads what a true part wrote before.

    into: "q", "k", "v", "mlp", or "logits" for the reader "logits". The embedding is left out.
    """
    true = [part for part in (*plan.heads, *plan.tables) if part.truth]
    edges = []
    for sender in true:
        written = {*writes_of(sender)}
        for reader in true:
            if _before(sender, reader):
                edges += [
                    (sender.name, reader.name, into) for into, read in _inputs(reader) if written & read
                ]
        if plan.answer in written:
            edges.append((sender.name, "logits", "logits"))
    return edges


def _before(sender: Head | Table, reader: Head | Table) -> bool:
    place = lambda part: (part.layer, isinstance(part, Table))
    return place(sender) < place(reader)


def _inputs(part: Head | Table) -> list[tuple[str, set[str]]]:
    if isinstance(part, Table):
        return [("mlp", {*reads_of(part)})]
    queries, keys = {m.query for m in part.match}, {m.key for m in part.match}
    return [("q", queries), ("k", keys), ("v", {move.read for move in part.move})]
