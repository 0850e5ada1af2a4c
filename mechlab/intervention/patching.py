"""Activation patching: which activations carry the answer?

Run the model on `base`, but with one activation taken from its run on `source`; see how much of the way from
base's metric to source's this goes. Denoising: base corrupted, source clean. Noising: the reverse. The two
ask different questions (is this part enough? is it needed?) and need not agree.

Meng et al. 2022 (causal mediation in language models), Wang et al. 2022; Zhang & Nanda 2024 and Heimersheim &
Nanda 2024 on what can go wrong. The numbers are those of `transformer_lens.patching`.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechlab.arguments import key_value_heads, layers_of, one_of
from mechlab.metrics import Metric
from mechlab.results import Scores, share_of_way
from mechlab.runs.engines import runs_of
from mechlab.runs.places import Positions, Where, first_difference, places_of
from mechlab.runs.run import SITES, WITH_HEADS, Put, Run
from mechlab.tokens import Prompts
from mechlab.waiting import waiting

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def activation_patching(
    model: "TransformerBridge",
    base: Prompts | Run,
    source: Prompts | Run,
    metric: Metric,
    site: str = "resid_pre",
    *,
    by: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    positions: Positions | None = None,
    normalized: bool = True,
    dtype: torch.dtype | None = None,
) -> Scores:
    """Patch each activation of `site` from `source` into `base`, one at a time.

    The result is the share of the way to source's metric, (patched − base) / (source − base) of the means
    over prompts: 0 = the patch did nothing, 1 = it did everything. `per_prompt` holds each prompt's change
    over the same mean difference. normalized=False: the change in the metric's own unit.

    site:      one of `runs.run.SITES`. "k" and "v" are counted by key/value head
    by:        what is patched separately, besides layers: ("pos",), ("head",), ("pos", "head") or ().
               Default: by position for the stream and what is written to it, by head for what heads have
    positions: where to patch (default: everywhere); or names for places that differ from prompt to prompt,
               {"subject": tensor of one position a prompt}
    dtype:     torch.bfloat16 halves the time; the error found on a sample is printed

    Raises a `ValueError` for a site, layer or position that is not there, and for runs that do not correspond
    or do not differ. Interrupted, it returns the layers that are finished.
    """
    one_of("site", site, SITES)
    if dtype is not None:
        one_of("dtype", dtype, (torch.float16, torch.bfloat16, torch.float32, torch.float64))
    layers, by = layers_of(model, layers), _parts(site, by)
    base, source = runs_of(model, base, source)
    places = places_of(base.batch, positions, apart="pos" in by)
    heads = _heads(model, site) if "head" in by else 0
    found = list(_patched(base, source, metric, site, layers, [*places.values()], heads, dtype))
    before, after = base.value(metric), source.value(metric)
    change = torch.stack(found, dim=1) - before.view(-1, 1, 1, 1)
    labels = {"layer": [str(layer) for layer in layers[: len(found)]]}
    if "pos" in by:
        labels["pos"] = list(places)
    else:
        change = change.squeeze(2)
    change = change if heads else change.squeeze(-1)
    dims = ("layer", *(dim for dim in ("pos", "head") if dim in by))
    units = base.batch.units
    return share_of_way(change, before, after, dims, labels, normalized=normalized, units=units)


def _patched(
    base: Run,
    source: Run,
    metric: Metric,
    site: str,
    layers: Sequence[int],
    places: Sequence[Where],
    heads: int,
    dtype: torch.dtype | None,
) -> Iterator[Float[Tensor, "batch place head"]]:
    """Layer by layer, base's metric with the site patched at each place, for each head alone.

    heads=0: for all together.
    """
    differs = torch.arange(base.tokens.shape[1], device=base.tokens.device) >= first_difference(base, source)
    where = [_masks(place & differs, heads) for place in places]  # until they differ, a patch does nothing
    depth, off = base.model.cfg.n_layers, []
    with waiting("patching", sum(depth - layer for layer in layers)) as advance:
        for done, layer in enumerate(layers):
            try:
                value = source.at(site, layer)[None]
                puts = [Put(site, layer, value, mask) for mask in where]
                found = [base.edited(metric, [put], dtype=dtype) for put in puts]
                if dtype is not None and done % 5 == 0:  # every fifth again in full precision
                    exact = base.edited(metric, [puts[0].of_copy(0)])
                    off.append((found[0][:1] - exact).abs().max().item())
            except KeyboardInterrupt:
                if not done:
                    raise
                print(f"Interrupted: layers {layers[0]} to {layers[done - 1]} are finished and kept.")
                return
            yield torch.stack(found).permute(2, 0, 1)
            advance(depth - layer)
    if dtype is not None:
        print(
            f"{dtype}: off by at most {max(off, default=0):.1g} of the metric's unit, in the patches "
            "measured twice."
        )


def _masks(place: Where, heads: int) -> Bool[Tensor, "copy batch pos ..."]:
    """The place for each head alone, as many copies as there are heads.

    For heads=0 it is one copy without an axis of heads.
    """
    if not heads:
        return place[None]
    return place[None, :, :, None] & torch.eye(heads, dtype=torch.bool, device=place.device)[:, None, None]


def _heads(model: "TransformerBridge", site: str) -> int:
    return key_value_heads(model) if site in ("k", "v") else model.cfg.n_heads


def _parts(site: str, by: Sequence[str] | None) -> tuple[str, ...]:
    """What is patched separately, checked."""
    has_heads = site in WITH_HEADS
    by = (by,) if isinstance(by, str) else by
    by = tuple((("head",) if has_heads else ("pos",)) if by is None else by)
    if not {*by} <= {"pos", "head"} or ("head" in by and not has_heads):
        raise ValueError(f'{site!r} can be patched by "pos"{" or head" if has_heads else ""}, not by {by}.')
    return by
