"""Null directions: what a direction found in data is compared with.

A residual stream fills few of its directions, so a random direction, all being equally likely, hardly touches
it: whatever is done along it changes little, and any direction found in data looks special beside it. A fair
null comes from where the direction came from: the same examples with their labels shuffled, other features,
other contrasts, or noise with the streams' own covariance.

The choice of null has turned conclusions round: errors of sparse autoencoders change the output far more than
isotropic errors of their length (Gurnee 2024), and about as much as errors that also take as much of the
activation itself away (Lee and Heimersheim 2024).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.arguments import at_least, one_of

KINDS = ("shuffled", "covariance", "rows", "isotropic")


def null_directions(
    streams: Float[Tensor, "example d_model"],
    labels: Int[Tensor, "example"] | None = None,
    *,
    kind: str = "shuffled",
    count: int = 20,
    length: float | int | None = None,
    apart_from: Float[Tensor, "d_model"] | None = None,
    units: Int[Tensor, "example"] | None = None,
    seed: int = 0,
) -> Float[Tensor, "draw d_model"]:
    """`count` directions of the same origin as one found in `streams`, which mean nothing.

    kind:  "shuffled"    mean of one class minus mean of the other, with the 0/1 `labels` dealt out anew
           "covariance"  normal noise with the covariance of `streams`
           "rows"        rows of `streams` themselves, each once: other features' directions, other contrasts
           "isotropic"   every direction equally likely: the weakest null, of which only the width is used
    units: clusters whose examples share a label; whole clusters are dealt out ("shuffled" only)
    length: what every direction is scaled to; by default as drawn ("isotropic": 1)
    apart_from: only the part at right angles to this direction is kept, before it is scaled

    A shuffled draw still overlaps with the real contrast by chance; `apart_from` takes that out. Raises a
    `ValueError` for labels that are not both 0 and 1, and where there are fewer rows than draws.
    """
    one_of("kind", kind, KINDS)
    at_least("count", count, 1)
    given = streams.detach().to(torch.promote_types(streams.dtype, torch.float32)).cpu()
    if given.ndim != 2 or not torch.isfinite(given).all():
        raise ValueError(f"streams is {tuple(given.shape)}: give finite numbers [example, d_model].")
    if kind != "shuffled" and (labels is not None or units is not None):
        raise ValueError(f'labels and units are for kind="shuffled"; "{kind}" has no use for them.')
    generator = torch.Generator().manual_seed(seed)
    if kind == "shuffled":
        found = _shuffled(given, labels, units, count, generator)
    elif kind == "covariance":
        centred = (given - given.mean(0)) / max(1, len(given) - 1) ** 0.5
        found = torch.randn(count, len(given), generator=generator, dtype=given.dtype) @ centred
    elif kind == "rows":
        if count > len(given):
            raise ValueError(f"There are {len(given)} rows, and {count} directions are asked for.")
        found = given[torch.randperm(len(given), generator=generator)[:count]]
    else:
        found = torch.randn(count, given.shape[1], generator=generator, dtype=given.dtype)
        found = found / found.norm(dim=1, keepdim=True)
    if apart_from is not None:
        unit = apart_from.detach().to(found) / apart_from.norm()
        found = found - (found @ unit)[:, None] * unit
    if length is not None:
        found = length * found / found.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return found.to(streams.device)


def _shuffled(
    streams: Float[Tensor, "example d_model"],
    labels: Int[Tensor, "example"] | None,
    units: Int[Tensor, "example"] | None,
    count: int,
    generator: torch.Generator,
) -> Float[Tensor, "draw d_model"]:
    """Differences of means, with the labels of whole units dealt out anew."""
    if labels is None or len(labels) != len(streams) or {*labels.tolist()} != {0, 1}:
        raise ValueError('kind="shuffled" needs one label for each row of streams, 0 or 1, and both of them.')
    labels = labels.detach().cpu().long()
    units = torch.arange(len(labels)) if units is None else units.unique(return_inverse=True)[1].cpu()
    of_unit = torch.zeros(int(units.max()) + 1, dtype=torch.long).index_copy_(0, units, labels)
    if not torch.equal(of_unit[units], labels):
        raise ValueError("A unit holds both labels, so its examples cannot be given one: leave `units` out.")
    drawn = []
    for _ in range(count):
        dealt = of_unit[torch.randperm(len(of_unit), generator=generator)][units].bool()
        drawn.append(streams[dealt].mean(0) - streams[~dealt].mean(0))
    return torch.stack(drawn)
