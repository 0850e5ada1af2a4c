"""What the checks of all notebooks share; those of one lie in its folder, `course/NN_name/checks.py`.

A checker tests properties that any right answer has, on more than one input, and names the likely mistake
when one fails. It never only compares with a stored solution, and never only looks at shapes.

Most exercises compute a tensor from tensors; `declare` says such a check in one piece: cases, the right
result, and the mistakes people make, each a small function of the same arguments whose docstring is what the
learner reads. A mistake serves three times: its numbers tell what went wrong, its sentence says so, and the
tests hand it in as a wrong answer.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mechlab_course import folders
from mechlab_course.exercises import Attempt, NotYet, checker

# The known mistakes of each exercise: what is said -> a wrong answer.
MISTAKES: dict[str, dict[str, Callable]] = {}


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> bool:
    """Equal up to `tolerance`, relative to the largest expected value when that is above 1."""
    if not isinstance(found, Tensor) or found.shape != expected.shape or not expected.isfinite().all():
        return False
    found, expected = found.detach().double(), expected.detach().double()
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    return bool((found - expected).abs().max() <= tolerance * scale)


def is_like(found: Tensor, mistakes: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    """Raise `NotYet` with the name of the known mistake that gives exactly these numbers, if any does."""
    for message, value in mistakes.items():
        if close(found, value, tolerance):
            raise NotYet(message)


def refuse(wrong: bool | Tensor, why: str) -> None:
    """Raise `NotYet` with this sentence if something is wrong. The sentence is made in any case."""
    if wrong:
        raise NotYet(why)


def only_wrong(found: Tensor, expected: Tensor, axes: str = "") -> str:
    """Where the largest error is, with both numbers: for a wrong answer that no known mistake explains."""
    fact = _all_of_it(found.double(), expected.double(), re.split(r", (?![^(]*\))", axes))
    if expected.ndim == 0:
        at, wanted, its = "On a small example", expected, found
    else:
        place = torch.unravel_index((found.double() - expected.double()).abs().argmax(), expected.shape)
        at, wanted, its = f"At [{', '.join(str(int(i)) for i in place)}]", expected[place], found[place]
    return f"{at} the result should be {wanted:.4g}, and yours is {its:.4g}. {fact}".strip()


def _all_of_it(found: Tensor, expected: Tensor, axes: Sequence[str]) -> str:
    """A fact about all numbers of a wrong result, if there is a plain one: what is seen, never its cause."""
    facts = {
        "Your result is 0.": 0 * expected,
        "The sign is turned.": -expected,
        "The size is right, and the sign is lost.": expected.abs(),
        "It is upside down: 1 divided by what it should be.": 1 / expected,
        "It is rounded to a whole number. Is there a `//` or an integer dtype?": expected.floor(),
        "It is rounded.": expected.round(),
        "It is squared.": expected.square(),
    }
    for axis, name in enumerate(axes if len(axes) == expected.ndim else map(str, range(expected.ndim))):
        facts[f"The order along the axis {name} is reversed."] = expected.flip(axis)
        facts[f"Along the axis {name} everything stands one place too late."] = expected.roll(1, axis)
        facts[f"Along the axis {name} everything stands one place too early."] = expected.roll(-1, axis)
    for fact, like in facts.items():
        if close(found, like, 1e-5) and not close(like, expected):
            return fact
    return _in_proportion(found, expected) or _in_part(found, expected, axes)


def _in_proportion(found: Tensor, expected: Tensor) -> str:
    """Whether all numbers are so many times what they should be, or so much more."""
    if expected.numel() < 2:
        return ""
    times = (found * expected).sum() / expected.square().sum()
    if close(found, times * expected, 1e-5):
        return f"All of yours are {times:.4g} times what they should be."
    more = (found - expected).mean()
    return f"All of yours are {more:+.4g} off." if close(found, expected + more, 1e-5) else ""


def _in_part(found: Tensor, expected: Tensor, axes: Sequence[str]) -> str:
    """Which part of the result is right, where that is whole slices along one axis."""
    for axis, name in enumerate(axes if len(axes) == expected.ndim else map(str, range(expected.ndim))):
        pairs = zip(found.unbind(axis), expected.unbind(axis), strict=True)
        right = [n for n, pair in enumerate(pairs) if close(*pair)]
        if right:
            which = f"{', '.join(map(str, right))} of 0 to {expected.shape[axis] - 1}"
            return f"Along the axis {name} only these are right: {which}."
    return ""


def must_equal(
    found: Tensor,
    expected: Tensor,
    mistakes: Mapping[str, Tensor],
    tolerance: float = 1e-4,
    otherwise: Callable[[], str] | None = None,
) -> None:
    """Raise `NotYet` unless equal, with the name of the mistake, if it is one that can be told here."""
    told = {why: like for why, like in mistakes.items() if not close(like, expected, tolerance)}
    is_like(found, told, tolerance)
    if not close(found, expected, tolerance):
        raise NotYet(otherwise() if otherwise else only_wrong(found, expected))


def must_equal_in_all(
    answers: Sequence[tuple[Tensor, Tensor, Mapping[str, Tensor], str]], tolerance: float = 1e-4
) -> None:
    """Raise `NotYet` unless each answer, (found, expected, mistakes, what else is said), is right.

    For results of few possible values, such as shares: a mistake is named only if it explains every answer.
    """
    wrong = [each for each in answers if not close(*each[:2], tolerance)]
    for why in wrong[0][2] if wrong else ():
        refuse(all(close(found, told[why], tolerance) for found, _, told, _ in answers), why)
    if wrong:
        raise NotYet(wrong[0][3])


def whole_number(value, what: str) -> int:
    """An int from whatever counts as one: int, numpy integer, tensor of one whole number; else `NotYet`."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_floating_point():
        value = value.item()
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise NotYet(f"Return {what}, an int; you returned a {type(value).__name__}.") from None


def number(value, what: str) -> float:
    """A finite float from whatever counts as one number."""
    try:
        if isinstance(value, (bool, str)):
            raise TypeError
        value = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise NotYet(f"Return {what}, a number; you returned a {type(value).__name__}.") from None
    if not abs(value) < float("inf"):
        raise NotYet(f"Return {what}; yours is {value}, which is no number to work with.")
    return value


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal random numbers that are the same on every machine."""
    return torch.randn(*shape, generator=seeded(seed))


def declare(
    id: str, *, axes: str, says: str = "", tolerance: float = 1e-4, whole: bool = False
) -> Callable[[type], type]:
    """Register the check of an exercise that computes a tensor: a class whose functions have its arguments.

    @declare("98.1", axes="example", says="Three rows, each as long as it should be.")
    class Length:
        cases = ((random(3, 5),),)  # or a function that makes them when the check runs

        def right(x):
            return x.square().sum(1).sqrt()

        def no_root(x):
            '''The root is missing: this is the square of the length.'''
            return x.square().sum(1)

    In every case the answer must equal `right(*case)`. Every further function is a mistake, its docstring the
    message: the first one that gives the learner's numbers is told; one that happens to be right in a case is
    passed over there. Two names are taken: `otherwise(found, *case)` makes the message for a wrong result
    that no mistake explains, and `further(attempt)` tests properties beyond the cases: it raises `NotYet`, or
    returns what held instead of `says`.

    axes:  the axes of the result in words, such as "layer, head"
    says:  what held, told when everything is right
    whole: the result holds whole numbers, such as token ids
    """

    def register(declared: type) -> type:
        parts = vars(declared)
        cases, right = parts["cases"], parts["right"]
        otherwise, further = parts.get("otherwise"), parts.get("further")
        mistakes = mistakes_in(declared, besides=("cases", "right", "otherwise", "further"))

        def check(attempt: Attempt) -> str:
            for case in cases() if callable(cases) else cases:
                compare(attempt, case, right, mistakes, axes, tolerance, whole, otherwise)
            return (further and further(attempt)) or says

        MISTAKES[id] = mistakes
        checker(id)(check)
        return declared

    return register


def mistakes_in(declared: type, besides: Sequence[str] = ()) -> dict[str, Callable]:
    """The functions of a class, each under its docstring: what the learner reads -> a wrong answer."""
    wrong = (part for name, part in vars(declared).items() if name not in besides and name[0] != "_")
    return {" ".join(part.__doc__.split()): part for part in wrong}


def mistakes_of(id: str) -> Mapping[str, Callable]:
    """The declared mistakes of an exercise: what the learner reads -> a wrong answer."""
    folders.checks(id.partition(".")[0])
    return MISTAKES.get(id, {})


def compare(
    attempt: Attempt,
    case: tuple,
    right: Callable[..., Tensor],
    mistakes: Mapping[str, Callable[..., Tensor]],
    axes: str,
    tolerance: float = 1e-4,
    whole: bool = False,
    otherwise: Callable[..., str] | None = None,
) -> Tensor:
    """One case of `declare`: the learner's result, if right; else `NotYet` with the mistake, if known."""
    with torch.no_grad():
        expected = right(*case)
        found = attempt.tensor(*case, shape=tuple(expected.shape), axes=axes, whole=whole)
        told = {why: wrong(*case) for why, wrong in mistakes.items()}
        must_equal(
            found,
            expected,
            told,
            tolerance,
            lambda: otherwise(found, *case) if otherwise else only_wrong(found, expected, axes),
        )
    return found
