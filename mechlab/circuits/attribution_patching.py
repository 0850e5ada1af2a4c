"""Attribution patching: what every patch would do, guessed from one gradient.

A patch changes an activation from its value on `base` to that on `source`. To first order the metric then changes by
(source − base) · gradient. A run on each prompt and one gradient score all heads, or all edges, at once. Where a softmax is
saturated or the change is large the guess is wrong; averaging gradients on the way from base to source helps.

Nanda 2023 (attribution patching), Syed et al. 2023 (edges), Hanna et al. 2024 (averaged gradients, "EAP-IG": the
embeddings move from base to source in `steps` equal steps). Scores have the scale of `activation_patching`: the share
of the way from base's metric to source's.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.circuits.paths import check_gap, two_runs
from mechlab.intervention.patching import Positions, places_of
from mechlab.metrics import Metric
from mechlab.results import Scores
from mechlab.runs.fast import Resume
from mechlab.runs.matrices import rotate

NAME = "share of the way from base to source, estimated"


def attribution_patching(
    model,
    base,
    source,
    metric: Metric,
    *,
    steps: int = 1,
    positions: Positions | None = None,
    by: tuple[str, ...] = ("head",),
) -> Scores:
    """Estimate `activation_patching(..., "z")` of every head from gradients: dims ("layer", "head").

    base, source: tokens [prompt, pos] of equal shape, or runs kept in a `Resume`
    steps:        1: the gradient at base. More: the mean over that many points from base on to source
    by:           ("head",), or ("position", "head") for each place of `positions` apart
    """
    base, source = two_runs(model, base, source)
    ends = torch.stack([base.ends(metric), source.ends(metric)])
    places = places_of(model, base.base, positions, apart="position" in by)
    gradient = sum(
        torch.stack(_gradients(run, metric, ("z",))["z"]) for run in _on_the_way(model, base, source, steps)
    )
    each = ((source.z - base.z) * gradient / steps).sum(-1)  # layer, prompt, pos, head
    found = torch.stack([(each * where[None, :, :, None]).sum(2) for where in places.values()], dim=2)
    change = found.transpose(0, 1) / check_gap(ends)
    baselines = {"base": ends[0].mean().item(), "source": ends[1].mean().item()}
    if "position" in by:
        dims, labels = ("layer", "position", "head"), {"position": list(places)}
        return Scores.over_prompts(change, dims, NAME, labels=labels, baselines=baselines)
    return Scores.over_prompts(change.squeeze(2), ("layer", "head"), NAME, baselines=baselines)


def edge_attribution(model, base, source, metric: Metric, *, steps: int = 1) -> Scores:
    """Estimate the effect of every edge, from what writes to what reads: dims ("sender", "reader").

    Senders: "embed", each head ("20.0") and each MLP ("mlp 20"). Readers: the queries of each head ("23.0 q"), the keys
    and values of each key/value head ("23.kv0 k", with all query heads that share it), each MLP and the logits. Edges
    that would run backwards are 0. The edges of a sender add up to its own attribution score. Embeddings, MLPs and
    norms are live; all positions are added up.
    """
    base, source = two_runs(model, base, source)
    gap = check_gap(torch.stack([base.ends(metric), source.ends(metric)]))
    senders, written = _senders(base, source)
    readers, before = zip(*_readers(base), strict=True)
    flat, total = written.flatten(1), torch.zeros(len(senders), len(readers))
    for run in _on_the_way(model, base, source, steps):
        column = 0
        for slope in _slopes(run, metric):
            many, below = slope.shape[2], before[column]
            total[:below, column : column + many] += (
                flat[:below] @ slope.transpose(2, 3).flatten(0, 2)
            ).cpu()
            column += many
    total = total / (steps * len(base.base) * gap)
    return Scores(total, ("sender", "reader"), NAME, labels={"sender": senders, "reader": readers})


def _on_the_way(model, base: Resume, source: Resume, steps: int) -> Iterator[Resume]:
    """Runs on embeddings from base on towards source: at base alone for one step, else at the middle of each step."""
    if steps < 1:
        raise ValueError(f"steps is {steps}; at least one gradient is needed.")
    if steps == 1:
        yield base
        return
    for step in range(steps):
        share = (step + 0.5) / steps
        yield Resume(model, base.base, embedded=base.resid_pre[0].lerp(source.resid_pre[0], share), like=base)


def _gradients(run: Resume, metric: Metric, kinds: tuple[str, ...]) -> dict[str, list[Tensor]]:
    """The gradient of the metrics' sum for what each layer computes, in the order of layers; "end": the last stream."""
    kept: dict[str, list[Tensor]] = {kind: [] for kind in (*kinds, "end")}

    def keep(kind: str, layer: int, value: Tensor) -> Tensor:
        if kind in kinds:
            kept[kind].append(value)
        return value

    with torch.enable_grad():
        start = run.resid_pre[0].detach().requires_grad_()
        kept["end"].append(run.finish(0, start, 0, edit=keep))
        total = run.read(metric, kept["end"][0][None], 0).sum()
    tensors = [tensor for kind in kept.values() for tensor in kind]
    found = iter(torch.autograd.grad(total, tensors))
    return {kind: [next(found) for _ in tensors] for kind, tensors in kept.items()}


@torch.no_grad()
def _slopes(run: Resume, metric: Metric) -> Iterator[Float[Tensor, "prompt pos reader d_model"]]:
    """The gradient of the metric for what each reader finds in the stream, layer by layer: q, k, v, MLP; the logits."""
    found = _gradients(run, metric, ("q", "k", "v", "mlp_in"))
    back = run.turn and (run.turn[0], -run.turn[1])  # a rotation's transpose turns the other way
    for number, layer in enumerate(run.layers):
        x = run.resid_pre[number]
        for kind, matrix in (("q", layer.Q), ("k", layer.K), ("v", layer.V)):
            slope = found[kind][number]
            if back is not None and kind != "v":
                slope = rotate(slope, back, 0)
            W = matrix[0].unflatten(1, (-1, run.d_head))
            yield run.norm_slope(x, torch.einsum("Nkpe,dke->Npkd", slope, W))
        yield run.norm_slope(run.resid_mid[number], found["mlp_in"][number][:, :, None])
    yield found["end"][0][:, :, None]


@torch.no_grad()
def _senders(base: Resume, source: Resume) -> tuple[list[str], Float[Tensor, "sender prompt pos d_model"]]:
    """Names of all that writes to the stream, and how what it writes differs between the runs."""
    names, written = ["embed"], [(source.resid_pre[0] - base.resid_pre[0])[None]]
    for number, layer in enumerate(base.layers):
        W_O = layer.out[0].unflatten(0, (base.heads, base.d_head))
        names += [*(f"{number}.{head}" for head in range(base.heads)), f"mlp {number}"]
        written.append(torch.einsum("Nphe,hed->hNpd", source.z[number] - base.z[number], W_O))
        written.append((source.written("mlp_out", number) - base.written("mlp_out", number))[None])
    return names, torch.cat(written)


def _readers(base: Resume) -> Iterator[tuple[str, int]]:
    """The name of each reader, and how many senders come before it."""
    shared = base.kv_heads != base.heads
    for number in range(len(base.layers)):
        below = 1 + number * (base.heads + 1)
        for kind, count in (("q", base.heads), ("k", base.kv_heads), ("v", base.kv_heads)):
            group = "kv" if shared and kind != "q" else ""
            yield from ((f"{number}.{group}{head} {kind}", below) for head in range(count))
        yield f"mlp {number} in", below + base.heads
    yield "logits", 1 + len(base.layers) * (base.heads + 1)
