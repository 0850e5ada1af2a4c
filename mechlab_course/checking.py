"""What the checks of all notebooks share; those of one notebook lie in its folder, `course/NN_name/checks.py`.

A checker tests properties that any right answer has, on more than one input, and names the likely mistake when
one fails. It never only compares with a stored solution, and never only looks at shapes.
"""

import operator

import torch
from torch import Tensor

from mechlab_course.exercises import NotYet


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> bool:
    """Equal up to `tolerance`, relative to the largest expected value when that is above 1."""
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    found, expected = found.detach().double(), expected.detach().double()
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    return bool((found - expected).abs().max() <= tolerance * scale)


def is_like(found: Tensor, mistakes: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    """Raise `NotYet` with the name of the known mistake that gives exactly these numbers, if any does."""
    for message, value in mistakes.items():
        if close(found, value, tolerance):
            raise NotYet(message)


def only_wrong(found: Tensor, expected: Tensor) -> str:
    """Where the largest error is, with both numbers: for a wrong answer that no known mistake explains."""
    if expected.ndim == 0:
        return f"On a small example the result should be {expected:.4g}, and yours is {found:.4g}."
    place = torch.unravel_index((found.double() - expected.double()).abs().argmax(), expected.shape)
    index = ", ".join(str(int(i)) for i in place)
    return f"At [{index}] the result should be {expected[place]:.4g}, and yours is {found[place]:.4g}."


def must_equal(found: Tensor, expected: Tensor, mistakes: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    """Raise `NotYet` unless equal, with the name of the mistake, if it is a known one that can be told here."""
    told = {why: like for why, like in mistakes.items() if not close(like, expected, tolerance)}
    is_like(found, told, tolerance)
    if not close(found, expected, tolerance):
        raise NotYet(only_wrong(found, expected))


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
