"""How sure is a number? Intervals by resampling what varies, and what chance would give.

Rows that belong together (the two orders of a pair, the prompts of a template, the cities of a country) are
not independent: `units` names the cluster of each row, and whole clusters are drawn. Efron and Tibshirani
1993.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

FEWEST_UNITS = 8  # a bootstrap over fewer independent units is too narrow to be shown


@dataclass(frozen=True)
class Estimate:
    """A mean, or a ratio of means, with its 95 % bootstrap interval; NaN where one cluster has no spread."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low != self.low:
            return f"{self.mean:.2f} [no interval]"
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def bootstrap(
    rows: Float[Tensor, "row ..."],
    units: Int[Tensor, "its_row"] | None = None,
    *,
    over: Float[Tensor, "row"] | None = None,
    level: float | int = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Float[Tensor, "2 ..."]:
    """The interval of the mean over rows, low and high.

    Clusters are drawn with replacement, and all rows of each count.

    units: the cluster of each row (default: each its own)
    over:  the interval of the ratio of the mean to this mean, instead
    Raises a `ValueError` for fewer than two clusters, which have no spread, and for NaN.
    """
    rows = rows.detach().float().cpu()
    if not 0 < level < 1 or draws < 1:
        raise ValueError(
            f"level is {level} and draws {draws}: level is a share, such as 0.95; draws 1 or more."
        )
    if not torch.isfinite(rows).all():
        raise ValueError("There are NaN or infinite values among the rows, and they have no interval.")
    units = torch.arange(len(rows)) if units is None else units.unique(return_inverse=True)[1].cpu()
    if len(units) != len(rows):
        raise ValueError(f"There are {len(rows)} rows, and units names the cluster of {len(units)}.")
    count = int(units.max()) + 1 if len(units) else 0
    if count < 2:
        raise ValueError(f"An interval needs at least two independent rows, and there are {count}.")
    below = torch.ones(len(rows)) if over is None else over.detach().float().cpu()
    flat = torch.cat([rows.reshape(len(rows), -1), below[:, None]], dim=1)
    sums = torch.zeros(count, flat.shape[1]).index_add_(0, units, flat)
    # How often each cluster is drawn, for each draw: means become one matrix product.
    drawn = torch.randint(count, (draws, count), generator=torch.Generator().manual_seed(seed))
    counts = torch.zeros(draws, count).scatter_add_(1, drawn, torch.ones(draws, count))
    tails, weights = torch.tensor([(1 - level) / 2, (1 + level) / 2]), counts @ sums[:, -1:]
    some = max(
        1, 10_000_000 // draws
    )  # columns at once: torch has no quantile of more than 16 million numbers
    ends = [((counts @ part) / weights).quantile(tails, dim=0) for part in sums[:, :-1].split(some, dim=1)]
    return torch.cat(ends, dim=1).reshape(2, *rows.shape[1:])


def estimate(
    rows: Float[Tensor, "row"],
    units: Int[Tensor, "row"] | None = None,
    *,
    over: Float[Tensor, "row"] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Estimate:
    """The mean of `rows`, or its ratio to that of `over`, with a 95 % bootstrap interval over clusters."""
    several = len(rows if units is None else units.unique()) > 1
    low, high = float("nan"), float("nan")
    if several:
        low, high = bootstrap(rows, units, over=over, draws=draws, seed=seed).tolist()
    mean = rows.float().mean() if over is None else rows.float().mean() / over.float().mean()
    return Estimate(mean.item(), low, high)


def wilson(yes: int, n: int, z: float | int = 1.96) -> tuple[float, float]:
    """The interval of a share, `yes` of `n`, after Wilson (1927): 95 % with the usual z of 1.96.

    It stays between 0 and 1 and is never a single point, not even for 0 of n or n of n.
    """
    if not 0 <= yes <= n or n == 0:
        raise ValueError(
            f"{yes} of {n} is no share: there must be at least one, and no more counted than there are."
        )
    middle, half = yes + z * z / 2, z * (yes * (n - yes) / n + z * z / 4) ** 0.5
    return max(0.0, (middle - half) / (n + z * z)), min(1.0, (middle + half) / (n + z * z))


def permutation_p(found: float, null: Float[Tensor, "draw"]) -> float:
    """The share of the null's draws that are at least as large as what was found, itself among them.

    Phipson and Smyth 2010. Never 0: with 19 draws the smallest is 0.05. Raises a `ValueError` for NaN, which
    is larger than nothing and would look like a find.
    """
    if found != found or not len(null) or torch.isnan(torch.as_tensor(null)).any():
        raise ValueError(
            f"found is {found}, beside {len(null)} draws; there must be some, and none of them NaN."
        )
    return (1 + int((null >= found).sum())) / (1 + len(null))


def holm(p: Sequence[float] | Float[Tensor, "test"], level: float | int = 0.05) -> list[bool]:
    """Which of several tests pass when any false one among them should have a chance of `level` in all.

    p: the chance of what each found, or more, if there were nothing (`permutation_p`). The smallest must pass
    level / n, the next level / (n - 1), and so on; after the first that does not, none does. Holm 1979.
    """
    given = [float(each) for each in p]
    if not given or not all(0 <= each <= 1 for each in given) or not 0 < level < 1:
        raise ValueError(f"p is {given[:5]} and level {level}: shares between 0 and 1 are needed.")
    passed = [False] * len(given)
    for rank, test in enumerate(sorted(range(len(given)), key=given.__getitem__)):
        if given[test] > level / (len(given) - rank):
            break
        passed[test] = True
    return passed
