"""Causal abstraction: does a model run a program that was written down?

A program says what the answer would be if one of its variables had another value. An interchange
intervention gives the model that value: one run (base) goes on with a part of another run (source), taken
from the place where the variable is thought to be. Interchange intervention accuracy (IIA) is how often
the model then answers as the program does (Geiger et al. 2021). Where the part is a subspace of an
activation, it can be trained: distributed alignment search, DAS (Geiger et al. 2023).

What a high IIA does not show: a trained subspace can push on what the model itself never moves that way
(Makelov et al. 2023). Compare with doing nothing, with the whole activation, with a program that is wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.arguments import at_least, check_layer, gradients, one_of, outside_inference
from mechlab.metrics import Metric, PositionMetric, with_rows
from mechlab.runs.engines import runs_of
from mechlab.runs.run import SITES, WITH_HEADS, Put, Run
from mechlab.tokens import Prompts

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Places = int | Int[Tensor, "batch"]
Subspace = Float[Tensor, "size k"]


@dataclass(frozen=True)
class Alignment:
    """A trained subspace.

    Q:       [size, k], orthonormal columns; what is exchanged of an activation x is its part Q Qᵀ x
    history: the loss of each step, in nats
    """

    Q: Subspace
    history: list[float]


@dataclass(frozen=True)
class _Place:
    """Where an exchange is made, and what both runs have there: [batch, size]."""

    site: str
    layer: int
    where: Bool[Tensor, "1 batch pos *head"]
    mine: Float[Tensor, "batch size"]
    theirs: Float[Tensor, "batch size"]

    def put(self, Q: Subspace | None, rows: Int[Tensor, "row"] | slice = slice(None)) -> Put:
        """The edit that takes the part in Q from the source, for some of the prompts; None: all of it."""
        mine, theirs, where = self.mine[rows], self.theirs[rows], self.where[:, rows]
        value = theirs if Q is None else mine + (theirs - mine) @ Q @ Q.T
        return Put(self.site, self.layer, value.unflatten(0, (1, -1) + (1,) * (where.ndim - 2)), where)


def interchange(
    model: "TransformerBridge",
    base: Prompts | Run,
    source: Prompts | Run,
    metric: Metric,
    site: str = "resid_pre",
    *,
    layer: int,
    pos: Places = -1,
    head: int | None = None,
    Q: Subspace | None = None,
) -> Float[Tensor, "batch"]:
    """The metric of base, with a part of one activation taken from source.

    With x the activation in base and y in source, the run goes on with x + Q Qᵀ (y − x).

    base, source: prompts that correspond one by one, of equal length, or runs; `run.rows` repeats prompts
    pos:          the position, for all prompts or one for each; −1 is each prompt's last token
    head:         which head, where the site has heads ("z", "q"; of "k" and "v" the key/value head)
    Q:            [size of the activation, k], orthonormal columns; None: the whole activation

    Raises a `ValueError` for a Q that does not fit or is not orthonormal, for prompts that do not correspond,
    and for a site, layer, position or head that is not there. Geiger et al. 2021.
    """
    base, source = runs_of(model, base, source)
    place = _place_of(base, source, site, layer, pos, head)
    return base.edited(metric, [place.put(None if Q is None else _orthonormal(Q, place))])[0]


@outside_inference
def align(
    model: "TransformerBridge",
    base: Prompts | Run,
    source: Prompts | Run,
    metric: Metric,
    flips: Bool[Tensor, "batch"],
    site: str = "resid_pre",
    *,
    layer: int,
    pos: Places = -1,
    head: int | None = None,
    k: int = 1,
    steps: int = 30,
    batch: int = 24,
    rate: float = 0.02,
    seed: int = 0,
) -> Alignment:
    """Train a subspace whose exchange makes the model answer as a program says (DAS).

    The loss is softplus(−metric) where the program keeps base's answer and softplus(metric) where it
    flips: for a logit difference, the negative log-probability of the program's answer of the two. Q is
    orthonormal by QR, and trained with Adam at a rate that falls to 0. The model stays as it is; layers
    before `layer` are not run.

    metric: positive for base's answer, such as `ml.logit_difference`
    flips:  [batch], whether the program's answer is the other one
    site, layer, pos, head: where, as in `interchange`
    k:      dimensions of the subspace; batch: interchanges a step

    Raises a `ValueError` as `interchange` does, for a k larger than the site, for a program that flips
    nothing and for a metric that reads all logits. Geiger et al. 2023.
    """
    for name, number in (("k", k), ("steps", steps), ("batch", batch)):
        at_least(name, number, 1)
    base, source = runs_of(model, base, source)
    place = _place_of(base, source, site, layer, pos, head)
    if k > (size := place.mine.shape[1]):
        raise ValueError(f"k is {k}, and {site} has {size} dimensions there: a subspace is not larger.")
    wanted, chance = _signs(flips, base), torch.Generator().manual_seed(seed)
    if not isinstance(metric, PositionMetric) or metric.tokens is None:
        raise ValueError("A subspace is trained on a metric of some logits, such as `ml.logit_difference`.")

    def loss_of(Q: Subspace) -> Float[Tensor, ""]:
        rows = torch.randperm(len(wanted), generator=chance)[:batch].to(wanted.device)
        values = base.rows(rows).edited(with_rows(metric, rows), [place.put(Q, rows)])[0]
        return F.softplus(-wanted[rows] * values).mean()

    start = torch.linalg.qr(torch.randn(size, k, generator=chance))[0].to(place.mine)
    return _descended(loss_of, start, steps, rate)


def iia(
    values: Float[Tensor, "batch"], flips: Bool[Tensor, "its_batch"], before: Float[Tensor, "that_batch"]
) -> dict[str, float]:
    """Interchange intervention accuracy: how often the model answers as the program says, as shares.

    "all":       of all interchanges
    "flip":      of those in which the program's answer is another than base's
    "stay":      of the others; NaN where there are none
    "no change": of all, if nothing is exchanged. Read the first number beside this one

    values: a metric after the exchange, positive for base's answer; before: without it
    flips:  whether the program's answer is the other one
    """
    if not values.shape == flips.shape == before.shape or values.ndim != 1 or not len(values):
        shapes = [tuple(each.shape) for each in (values, flips, before)]
        raise ValueError(f"values, flips and before are {shapes}: give one number for each interchange.")
    agrees, untouched = ((each > 0) != flips for each in (values, before))
    share = lambda each: each.float().mean().item()
    parts = {"all": agrees, "flip": agrees[flips], "stay": agrees[~flips], "no change": untouched}
    return {name: share(each) for name, each in parts.items()}


def _place_of(base: Run, source: Run, site: str, layer: int, pos: Places, head: int | None) -> _Place:
    """What both runs have in one place, checked."""
    one_of("site", site, [each for each in SITES if each != "pattern"])
    check_layer(base.model, layer)
    at = base.batch.position(pos)
    rows = torch.arange(len(at), device=at.device)
    mine, theirs = (run.at(site, layer)[rows, at] for run in (base, source))
    where = (torch.arange(base.tokens.shape[1], device=at.device) == at[:, None])[None]
    if (head is None) is (site in WITH_HEADS):
        asked = f"head={head}" if head is not None else "no head"
        raise ValueError(
            f"{site} {'has heads: say which one' if head is None else 'has no heads'} ({asked})."
        )
    if head is not None:
        one_of("head", head, range(mine.shape[1]))
        where = where[..., None] & (torch.arange(mine.shape[1], device=at.device) == head)
        mine, theirs = mine[:, head], theirs[:, head]
    return _Place(site, layer, where, mine, theirs)


def _orthonormal(Q: Subspace, place: _Place) -> Subspace:
    """Q, on the device of the runs, if it is a subspace of the place; else a `ValueError`."""
    size = place.mine.shape[1]
    if len(Q) != size or not 1 <= Q.shape[1] <= size:
        raise ValueError(
            f"Q is {tuple(Q.shape)}, and {place.site} has {size} dimensions there: give {size} rows and 1 to "
            f"{size} columns."
        )
    Q = Q.to(place.mine)
    off = (Q.T @ Q - torch.eye(Q.shape[1]).to(Q)).abs().max().item()
    if not off < 1e-3:
        raise ValueError(
            f"The columns of Q are not orthonormal (Qᵀ Q is off by {off:.2g}), so Q Qᵀ is no projection. "
            "`torch.linalg.qr(Q)[0]` spans the same space with orthonormal ones."
        )
    return Q


def _signs(flips: Bool[Tensor, "batch"], base: Run) -> Float[Tensor, "batch"]:
    """1 where the metric should be positive, −1 where negative."""
    if len(flips) != len(base.batch):
        raise ValueError(f"flips is for {len(flips)} interchanges, and the runs have {len(base.batch)}.")
    if not flips.any():
        raise ValueError("The program flips no answer: to change nothing would serve it. Nothing to learn.")
    return torch.where(flips.to(base.tokens.device), -1.0, 1.0)


def _descended(
    loss_of: Callable[[Subspace], Tensor], start: Float[Tensor, "size k"], steps: int, rate: float
) -> Alignment:
    """The subspace that gradient descent finds from a start."""
    history = []
    with gradients():
        raw = start.requires_grad_()
        optimizer = torch.optim.Adam([raw], lr=rate)
        falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / steps, steps)
        for _ in range(steps):
            loss = loss_of(torch.linalg.qr(raw)[0])
            raw.grad = torch.autograd.grad(loss, raw)[0]  # of nothing else: the model's weights have none
            optimizer.step()
            falling.step()
            history.append(loss.item())
    return Alignment(torch.linalg.qr(raw.detach())[0], history)
