"""Three circuits that are planted, and the prompts they were planted for.

"ioi":       two names, one of them again: the other one. Three heads in a row
"induction": A B … A: B. Two heads
"sum":       two digits, added modulo five. Two heads and an MLP
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch

from mechlab.circuits.planted.plan import ONE, Head, Match, Move, Plan, Rule, Table

BEGIN = "<begin>"
NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "Jill")
LETTERS = tuple("ABCDEFGHIJKL")
DIGITS = tuple("01234")
SINK = Match(ONE, "begin", 2.5)  # where nothing matches, a head looks at the beginning


def ioi() -> Plan:
    """ "Ann and Ben went , Ann gave to": Ben."""
    words = (BEGIN, "and", "went", ",", "gave", "to", *NAMES)
    duplicate = Head(
        "duplicate",
        0,
        (Match("token", "token"), Match("pos", "pos", -5.0), SINK),
        (Move("pos", "place"), Move("name", "again")),
    )
    inhibition = Head("S-inhibition", 1, (Match(ONE, "again"), SINK), (Move("place", "avoid"),))
    mover = Head(
        "name mover",
        3,
        (Match(ONE, "name"), Match(ONE, "again", -5.0), Match("avoid", "pos", -5.0), SINK),
        (Move("token", "answer"),),
    )
    channels = {"place": 9, "avoid": 9, "again": 1}
    flags = {"name": NAMES, "begin": (BEGIN,)}
    return Plan(words, 9, channels, (duplicate, inhibition, mover), flags=flags)


def induction() -> Plan:
    """ "C A B D E A": B."""
    previous = Head("previous token", 0, (Match("pos", "pos", shift=-1),), (Move("token", "before"),))
    match = Head("induction", 2, (Match("token", "before"), SINK), (Move("token", "answer"),))
    words = (BEGIN, *LETTERS)
    return Plan(words, 12, {"before": len(words)}, (previous, match), flags={"begin": (BEGIN,)})


def modular_sum() -> Plan:
    """ "3 4 =": 2, that is 3 + 4 modulo 5."""
    words = (BEGIN, "=", *DIGITS)
    heads = [
        Head(f"fetch {name}", 0, (Match("pos", "pos", shift=shift),), (Move("token", name),))
        for name, shift in (("first", -2), ("second", -1))
    ]
    number = lambda digit: words.index(str(digit % 5))
    rules = [
        Rule({"first": number(a), "second": number(b)}, {"answer": (number(a + b), 1.0)})
        for a in range(5)
        for b in range(5)
    ]
    channels = dict.fromkeys(("first", "second"), len(words))
    return Plan(words, 8, channels, heads, (Table("adder", 1, rules),), flags={"begin": (BEGIN,)})


@dataclass(frozen=True)
class Row:
    """One prompt as words, without the first: clean; flip, which asks for the rival; third, for neither."""

    clean: list[str]
    flip: list[str]
    third: list[str]
    answer: str
    rival: str


@dataclass(frozen=True)
class Task:
    """What is planted, and prompts for it."""

    plan: Callable[[], Plan]
    rows: Callable[[int, torch.Generator], list[Row]]


def _drawn(words: tuple[str, ...], count: int, chance: torch.Generator) -> list[str]:
    return [words[n] for n in torch.randperm(len(words), generator=chance)[:count].tolist()]


def _ioi_rows(count: int, chance: torch.Generator) -> list[Row]:
    """In pairs: the same two names, and either of them again."""
    rows = []
    for _ in range((count + 1) // 2):
        one, other, third = _drawn(NAMES, 3, chance)
        text = lambda again, one=one, other=other: [one, "and", other, "went", ",", again, "gave", "to"]
        for again, answer in ((one, other), (other, one)):
            rows.append(Row(text(again), text(answer), text(third), answer, again))
    return rows[:count]


def _induction_rows(count: int, chance: torch.Generator) -> list[Row]:
    """Ten different letters, and one of the first nine again; corrupted where it stood first.

    (A corruption of the last letter would leave the first head as it is, and no exchange would see it.)
    """
    rows = []
    for _ in range(count):
        *shown, absent = _drawn(LETTERS, 11, chance)
        here, there = torch.randperm(9, generator=chance)[:2].tolist()
        flip, third, last = [*shown], [*shown], shown[here]
        flip[here], flip[there] = shown[there], last
        third[here] = absent
        answers = [after[place + 1] for after, place in ((shown, here), (flip, there))]
        if abs(here - there) > 1:  # else the exchange moves an answer as well
            rows.append(Row([*shown, last], [*flip, last], [*third, last], *answers))
        else:
            rows += _induction_rows(1, chance)
    return rows


def _sum_rows(count: int, chance: torch.Generator) -> list[Row]:
    """Two digits; both are others in the corrupted prompts, and so is the sum."""
    rows = []
    for _ in range(count):
        a, b = torch.randint(5, (2,), generator=chance).tolist()
        steps = [(1 + torch.randperm(4, generator=chance)).tolist() for _ in range(2)]
        others = [((a + x) % 5, (b + y) % 5) for x, y in product(*steps) if (x + y) % 5]
        other = others[0]
        away = next(pair for pair in others if sum(pair) % 5 != sum(other) % 5)
        text = lambda pair: [str(pair[0]), str(pair[1]), "="]
        words = str((a + b) % 5), str(sum(other) % 5)
        rows.append(Row(text((a, b)), text(other), text(away), *words))
    return rows


TASKS = {
    "ioi": Task(ioi, _ioi_rows),
    "induction": Task(induction, _induction_rows),
    "sum": Task(modular_sum, _sum_rows),
}
