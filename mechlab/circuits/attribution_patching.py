"""Attribution patching: what every patch would do, guessed from one gradient.

A patch changes an activation from its value on `base` to that on `source`. To first order the metric then
changes by (source − base) · gradient. A run on each prompt and one gradient score all heads, or all edges, at
once. Where the change is large the guess may be wrong; `paths.edge_patching` says what an edge really does.
What helps: averaging gradients on the way from base to source (`steps`), another rule for gated MLPs, in
which two factors change at once (`rule="half"`), the softmax of changed queries and keys computed again
(`exact_softmax`), and gradients that leave out one layer each (`drop`).

Nanda 2023 (attribution patching), Syed et al. 2023 (edges), Hanna et al. 2024 (averaged gradients, "EAP-IG":
the embeddings move from base to source in `steps` equal steps), Kramár et al. 2024 (AtP*: softmax and dropped
layers), Rezaei Jafari et al. 2025 (RelP, of which the half rule is one part). Scores have the scale of
`activation_patching`: the share of the way from base's metric to source's.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from mechlab.arguments import at_least, key_value_heads, one_of
from mechlab.circuits.paths import layer_of, readers, writers
from mechlab.metrics import Metric
from mechlab.results import Scores, share_of_way
from mechlab.runs.engines import runs_of
from mechlab.runs.matrices import check_sums, written_by_heads
from mechlab.runs.norms import wide
from mechlab.runs.places import Positions, Where, places_of
from mechlab.runs.run import Put, Run
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
    site: str = "z",
    rule: str = "gradient",
    exact_softmax: bool = False,
    drop: bool = False,
) -> Scores:
    """Estimate `activation_patching(..., site)` of every head from gradients: dims ("layer", "head").

    base, source:  prompts of equal length, or runs (`run_of`)
    steps:         1: the gradient at base. More: the mean over that many points from base on to source
    by:            ("head",), ("pos", "head") for each place of `positions` apart, or ("node",) for all that
                   writes to the stream, everywhere: the embedding, heads and MLPs, named as senders of edges
    site:          "z", what heads hand on, or "q", "k", "v"; keys and values count by key/value head
    rule:          how the gradient passes gated MLPs. "gradient": as it is. "half": half to each factor of
                   act(gate) · up, with act(gate) / gate held; the same where no MLP is gated
    exact_softmax: for queries and keys, the pattern is computed again with those of source, and only what
                   comes after it is guessed (AtP*; there too it corrects "q" and "k", not "z")
    drop:          GradDrop of AtP*: one gradient for each layer, with what this layer writes held constant;
                   the sizes of the guesses are averaged, so that paths that cancel show. No sign is left

    A `ValueError` for the half rule on a mixture of experts, whose two factors no hook tells apart.
    """
    by = (by,) if isinstance(by, str) else tuple(by)
    one_of("by", by, (("head",), ("pos", "head"), ("node",)))
    one_of("site", site, ("q", "k") if exact_softmax else ("z", "q", "k", "v"))
    if by == ("node",) and (site != "z" or positions is not None):
        raise ValueError("By node, what is written to the stream is judged, at all positions together.")
    base, source = runs_of(model, base, source)
    places = places_of(base.batch, positions, apart="pos" in by)
    if by == ("node",):
        check_sums(base)
        each = lambda run: _edges(base, source, run, metric, rule).sum(2)
    else:
        change = [
            _pattern_change(base, source, site, layer, places)
            if exact_softmax
            else source.at(site, layer) - base.at(site, layer)
            for layer in range(model.cfg.n_layers)
        ]
        each = lambda run: _guess(run, metric, change, places, site, rule)
    runs = [*_on_the_way(base, source, at_least("steps", steps, 1))]
    guess = lambda some: torch.stack([*map(each, some)]).mean(0)
    found = _dropped(runs, guess, by) if drop else guess(runs)
    ends, units = (base.value(metric), source.value(metric)), base.batch.units
    labels = {"pos": [*places]} if "pos" in by else {"node": writers(model)} if "node" in by else {}
    dims = by if "node" in by else ("layer", *by)
    found = found.squeeze(2) if by == ("head",) else found
    ends = [each.to(found.device) for each in ends]
    return share_of_way(found, *ends, dims, labels, estimated=True, units=units)


def edge_attribution(
    model: "TransformerBridge",
    base: Prompts | Run,
    source: Prompts | Run,
    metric: Metric,
    *,
    steps: int = 1,
    rule: str = "gradient",
) -> Scores:
    """Estimate the effect of every edge, from what writes to what reads: dims ("sender", "reader").

    Senders: "embed", each head ("20.0") and each MLP ("mlp 20"). Readers: the queries of each head ("23.0
             q"), the keys and values of each key/value head ("23.kv0 k", with all query heads that share
             it), each MLP and the logits
    rule:    as in `attribution_patching`

    Edges that would run backwards are 0. The edges of a sender add up to its own attribution score.
    Embeddings, MLPs and norms are live; all positions are added up.
    """
    base, source = runs_of(model, base, source)
    check_sums(base)
    runs = _on_the_way(base, source, at_least("steps", steps, 1))
    found = torch.stack([_edges(base, source, run, metric, rule) for run in runs]).mean(0)
    labels = {"sender": writers(model), "reader": [*readers(model)]}
    ends = base.value(metric).cpu(), source.value(metric).cpu()  # where the edges are
    dims, units = ("sender", "reader"), base.batch.units
    return share_of_way(found, *ends, dims, labels, estimated=True, units=units)


def _edges(
    base: Run, source: Run, at: Run, metric: Metric, rule: str
) -> Float[Tensor, "batch sender reader"]:
    """Step times slope, the slope of the run `at`: from all that writes to all that reads after it."""
    before = [below for *_, below in readers(base.model).values()]
    flat, column = wide(_written(base, source, at).flatten(2)), 0
    found = torch.zeros(len(base.tokens), len(flat), len(before))
    for slope in at.reader_gradients(metric, rule=rule):
        many, below = slope.shape[2], before[column]
        slope = wide(slope.transpose(1, 2).flatten(2))  # batch, reader, all that it reads
        each = einsum(flat[:below], slope, "sender batch read, batch reader read -> batch sender reader")
        found[:, :below, column : column + many] = each.cpu()
        column += many
    return found


def _dropped(
    runs: Sequence[Run], guess: Callable[[Iterable[Run]], Tensor], by: tuple[str, ...]
) -> Float[Tensor, "batch ..."]:
    """The mean size of the guesses with one layer's writing held, over all layers but a part's own."""
    model, sizes = runs[0].model, []
    for layer in range(model.cfg.n_layers):
        held = [Put(part, layer, held=True) for part in ("attn_out", "mlp_out")]
        sizes.append(guess(run.changed(held) for run in runs).abs())
    if "node" not in by:  # where its own layer is held, a head has 0
        return torch.stack(sizes).sum(0) / max(1, len(sizes) - 1)
    own = torch.tensor([-1, *(layer_of(name) for name in writers(model)[1:])])
    elsewhere = own != torch.arange(len(sizes))[:, None]
    return (torch.stack(sizes) * elsewhere[:, None]).sum(0) / elsewhere.sum(0).clamp_min(1)


def _guess(
    run: Run, metric: Metric, change: Sequence[Tensor], places: Mapping[str, Where], site: str, rule: str
) -> Float[Tensor, "batch layer place head"]:
    """Step times slope. The change is one of the site, or of the pattern [place batch pos head key]."""
    patterns = change[0].ndim == 5
    slopes, found = run.site_gradients(metric, "z" if patterns else site, rule=rule), []
    for layer, (step, slope) in enumerate(zip(change, slopes, strict=True)):
        if patterns:
            v, heads = run.at("v", layer), key_value_heads(run.model)
            v = v.repeat_interleave(slope.shape[2] // v.shape[2], dim=2)
            slope = einsum(slope, v, "batch pos head d_head, batch key head d_head -> batch pos head key")
            each = (step * slope).sum((2, 4)).transpose(0, 1)  # batch, place, query head
            found.append(each.unflatten(2, (heads, -1)).sum(3) if site == "k" else each)
        else:
            each = (step * slope).sum(-1)  # batch, pos, head
            found.append(torch.stack([(each * at[..., None]).sum(1) for at in places.values()], dim=1))
    return torch.stack(found, dim=1)


def _pattern_change(
    base: Run, source: Run, site: str, layer: int, places: Mapping[str, Where]
) -> Float[Tensor, "place batch pos head key"]:
    """How the attention of a layer changes with the queries or keys of source, at each place apart."""
    put = Put(site, layer, source.at(site, layer)[None], torch.stack([*places.values()]))
    every = torch.arange(base.tokens.shape[1], device=base.tokens.device).expand(len(base.tokens), -1)
    return base.read("pattern", [layer], [put], every)[layer] - base.at("pattern", layer)


def _on_the_way(base: Run, source: Run, steps: int) -> Iterator[Run]:
    """Runs on embeddings from base on towards source: base alone for one step, else each step's middle."""
    if steps == 1:
        yield base
        return
    for step in range(steps):
        embedded = base.at("resid_pre", 0).lerp(source.at("resid_pre", 0), (step + 0.5) / steps)
        yield base.changed(embedded=embedded)


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
