"""Attribution patching: what every patch would do, guessed from one gradient.

A patch changes an activation from its value on `base` to that on `source`. To first order the metric then
changes by (source − base) · gradient. A run on each prompt and one gradient score all heads, or all edges, at
once. Where a softmax is saturated or the change is large the guess is wrong; averaging gradients on the way
from base to source helps.

Nanda 2023 (attribution patching), Syed et al. 2023 (edges), Hanna et al. 2024 (averaged gradients, "EAP-IG":
the embeddings move from base to source in `steps` equal steps). Scores have the scale of
`activation_patching`: the share of the way from base's metric to source's.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from mechlab.arguments import at_least, key_value_heads, one_of
from mechlab.metrics import Metric
from mechlab.results import Scores, share_of_way
from mechlab.runs.engines import runs_of
from mechlab.runs.matrices import check_sums, is_parallel, written_by_heads
from mechlab.runs.norms import wide
from mechlab.runs.places import Positions, places_of
from mechlab.runs.run import Run
from mechlab.tokens import Prompts

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def attribution_patching(
    model: "TransformerBridge",
    base: Prompts | Run,
    source: Prompts | Run,
    metric: Metric,
    *,
    steps: int = 1,
    positions: Positions | None = None,
    by: tuple[str, ...] = ("head",),
) -> Scores:
    """Estimate `activation_patching(..., "z")` of every head from gradients: dims ("layer", "head").

    base, source: prompts of equal length, or runs (`run_of`)
    steps:        1: the gradient at base. More: the mean over that many points from base on to source
    by:           ("head",), or ("pos", "head") for each place of `positions` apart
    """
    one_of("by", (by,) if isinstance(by, str) else tuple(by), (("head",), ("pos", "head")))
    base, source = runs_of(model, base, source)
    places = places_of(base.batch, positions, apart="pos" in by)
    gradient = sum(
        torch.stack(run.z_gradients(metric)) for run in _on_the_way(base, source, at_least("steps", steps, 1))
    )
    change = torch.stack([source.at("z", layer) - base.at("z", layer) for layer in range(model.cfg.n_layers)])
    each = (change * gradient / steps).sum(-1)  # layer, batch, pos, head
    found = torch.stack(
        [(each * where[None, :, :, None]).sum(2) for where in places.values()], dim=2
    ).transpose(0, 1)
    ends = base.value(metric), source.value(metric)
    if "pos" in by:
        dims, labels = ("layer", "pos", "head"), {"pos": list(places)}
        return share_of_way(found, *ends, dims, labels, estimated=True)
    return share_of_way(found.squeeze(2), *ends, ("layer", "head"), estimated=True)


def edge_attribution(
    model: "TransformerBridge",
    base: Prompts | Run,
    source: Prompts | Run,
    metric: Metric,
    *,
    steps: int = 1,
) -> Scores:
    """Estimate the effect of every edge, from what writes to what reads: dims ("sender", "reader").

    Senders: "embed", each head ("20.0") and each MLP ("mlp 20"). Readers: the queries of each head ("23.0
             q"), the keys
    and values of each key/value head ("23.kv0 k", with all query heads that share it), each MLP and the
    logits. Edges that would run backwards are 0. The edges of a sender add up to its own attribution score.
    Embeddings, MLPs and norms are live; all positions are added up.
    """
    base, source = runs_of(model, base, source)
    check_sums(base)
    senders = _senders(model)
    readers, before = zip(*_readers(model), strict=True)
    total = torch.zeros(len(base.tokens), len(senders), len(readers))
    for run in _on_the_way(base, source, at_least("steps", steps, 1)):
        flat, column = wide(_written(base, source, run).flatten(2)), 0
        for slope in run.reader_gradients(metric):
            many, below = slope.shape[2], before[column]
            slope = wide(slope.transpose(1, 2).flatten(2))  # batch, reader, all that it reads
            found = einsum(flat[:below], slope, "sender batch read, batch reader read -> batch sender reader")
            total[:, :below, column : column + many] += found.cpu()
            column += many
    labels = {"sender": senders, "reader": readers}
    ends = base.value(metric).cpu(), source.value(metric).cpu()  # where the total is
    return share_of_way(total / steps, *ends, ("sender", "reader"), labels, estimated=True)


def _on_the_way(base: Run, source: Run, steps: int) -> Iterator[Run]:
    """Runs on embeddings from base on towards source: base alone for one step, else each step's middle."""
    if steps == 1:
        yield base
        return
    for step in range(steps):
        embedded = base.at("resid_pre", 0).lerp(source.at("resid_pre", 0), (step + 0.5) / steps)
        yield base.changed(embedded=embedded)


def _senders(model: "TransformerBridge") -> list[str]:
    """Names of all that writes to the stream."""
    names = ["embed"]
    for layer in range(model.cfg.n_layers):
        names += [*(f"{layer}.{head}" for head in range(model.cfg.n_heads)), f"mlp {layer}"]
    return names


@torch.no_grad()
def _written(base: Run, source: Run, at: Run) -> Float[Tensor, "sender batch pos d_model"]:
    """How what each sender writes to the stream differs between the runs.

    Where a norm stands behind attention, its slope is taken where the gradient is, at the run `at`.
    """
    change = lambda site, layer: source.at(site, layer) - base.at(site, layer)
    written = [change("resid_pre", 0)[None]]
    for layer in range(base.model.cfg.n_layers):
        heads = written_by_heads(at, layer, change("z", layer), moved=True)
        written += [heads.permute(2, 0, 1, 3), change("mlp_out", layer)[None]]
    return torch.cat(written)


def _readers(model: "TransformerBridge") -> Iterator[tuple[str, int]]:
    """The name of each reader, and how many senders come before it."""
    heads, kv_heads = model.cfg.n_heads, key_value_heads(model)
    for layer in range(model.cfg.n_layers):
        below = 1 + layer * (heads + 1)
        for site, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            group = "kv" if kv_heads != heads and site != "q" else ""
            yield from ((f"{layer}.{group}{head} {site}", below) for head in range(count))
        yield f"mlp {layer} in", below + (0 if is_parallel(model, layer) else heads)
    yield "logits", 1 + model.cfg.n_layers * (heads + 1)
