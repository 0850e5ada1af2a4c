"""How the class did, in numbers: the spread of the totals, and how each exercise tells learners apart."""

import math
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from mechlab_course.grading.grades import NOT_YET, PARTLY, STOPPED, Gradebook

FEWEST = 8  # learners from whom a correlation says anything


@dataclass(frozen=True)
class Item:
    """One exercise over the class.

    share: points earned, of those there are; None where it is worth none. rest: the correlation of its points
    with those of all other exercises; None with too few learners, or where all have the same.
    """

    id: str
    status: Counter
    common: list[tuple[int, str]]  # the commonest messages of those who are not there yet
    share: float | None
    rest: float | None


def items(book: Gradebook, alike: Callable[[str], str]) -> list[Item]:
    """Every exercise over the class. `alike` takes from a message what may differ between learners."""
    sums = [sum(grade.points for grade in grades.values()) for _, grades in book.graded]
    found = []
    for id in book.ids:
        own = [grades[id] for _, grades in book.graded]
        points, worth = [grade.points for grade in own], book.rules.worth(id)
        share = statistics.fmean(points) / worth if worth else None
        rest = [whole - each for whole, each in zip(sums, points, strict=True)]
        wrong = [grade.message for grade in own if grade.status in (NOT_YET, STOPPED, PARTLY)]
        status = Counter(grade.status for grade in own)
        found.append(Item(id, status, _commonest(wrong, alike), share, correlation(points, rest)))
    return found


def _commonest(messages: list[str], alike: Callable[[str], str]) -> list[tuple[int, str]]:
    """The three commonest; alike ones count as one, shown as the first learner got it."""
    first: dict[str, str] = {}
    for message in messages:
        first.setdefault(alike(message), message)
    common = sorted(Counter(map(alike, messages)).items(), key=lambda item: (-item[1], item[0]))
    return [(count, first[key]) for key, count in common[:3]]


def correlation(one: list[float], other: list[float]) -> float | None:
    """Pearson's, or None where it says nothing."""
    if len(one) < FEWEST or min(map(_spread, (one, other))) < 1e-9:
        return None
    return statistics.correlation(one, other)


def _spread(values: list[float]) -> float:
    return max(values) - min(values)


def histogram(shares: list[float]) -> list[int]:
    """How many are in each tenth, from 0 to 10 per cent up to 90 to 100."""
    counts = Counter(min(9, math.floor(share * 10 + 1e-9)) for share in shares)
    return [counts[tenth] for tenth in range(10)]
