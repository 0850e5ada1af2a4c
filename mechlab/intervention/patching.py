"""Activation patching: which activations carry the answer?

Run the model on `base`, but with one activation taken from its run on `source`; see how much of the way from base's
metric to source's this goes. Denoising: base corrupted, source clean. Noising: the reverse. The two ask different
questions (is this part enough? is it needed?) and need not agree.

Meng et al. 2022 (causal mediation in language models), Wang et al. 2022; Zhang & Nanda 2024 and Heimersheim & Nanda
2024 on what can go wrong. The numbers are those of `transformer_lens.patching`, from a fraction of the arithmetic
(`resume.py`); a model that the short way does not know is run in full.
"""

import warnings
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.metrics import Metric, per_prompt, recovered
from mechlab.results import Scores, position_labels
from mechlab.runs.fast import NotResumable, Resume
from mechlab.runs.hooks import intervene

# what is patched -> the hook that holds it, and the axis of heads there (None: it has no heads)
SITES = {
    "resid_pre": ("hook_resid_pre", None),
    "attn_out": ("hook_attn_out", None),
    "mlp_out": ("hook_mlp_out", None),
    "z": ("attn.hook_z", 2),  # what a head hands to W_O
    "pattern": ("attn.hook_pattern", 1),  # the row of the query's position
    "q": ("attn.hook_q", 2),
    "k": ("attn.hook_k", 2),  # key/value heads: several query heads may share one
    "v": ("attn.hook_v", 2),
}
Where = Bool[Tensor, "prompt pos"]
Positions = Sequence[int] | Mapping[str, Int[Tensor, "prompt"] | Sequence[int]]


def activation_patching(
    model,
    base: Int[Tensor, "prompt pos"],
    source: Int[Tensor, "its_prompt its_pos"],
    metric: Metric,
    site: str = "resid_pre",
    *,
    by: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    positions: Positions | None = None,
    normalized: bool = True,
    dtype: torch.dtype | None = None,
) -> Scores:
    """Patch each activation of `site` from `source` into `base`, one at a time: the share of the way to source's metric.

    (patched − base) / (source − base) of the means over prompts: 0 = the patch did nothing, 1 = it did everything.
    `per_prompt` holds each prompt's change over the same mean difference. normalized=False: the change in the
    metric's own unit.

    site:      one of `SITES`. "k" and "v" are counted by key/value head
    by:        what is patched separately, besides layers: ("position",), ("head",), ("position", "head") or ().
               Default: by position for the stream and what is written to it, by head for what heads have
    positions: where to patch (default: everywhere); or names for places that differ from prompt to prompt,
               {"subject": tensor of one position a prompt}
    dtype:     torch.bfloat16 halves the time; the error found on a sample is printed

    Interrupted, it returns the layers that are finished.
    """
    _check(model, base, source, site, layers)
    layers = range(model.cfg.n_layers) if layers is None else list(layers)
    by = tuple((("head",) if SITES[site][1] else ("position",)) if by is None else by)
    if not {*by} <= {"position", "head"} or ("head" in by and not SITES[site][1]):
        raise ValueError(
            f'{site!r} can be patched by "position"{" or head" if SITES[site][1] else ""}, not by {by}.'
        )
    places = places_of(model, base, positions, apart="position" in by)
    run = _runner(model, base, source, metric, site, dtype)
    found = _sweep(run, layers, places, "head" in by)
    if dtype is not None:
        print(f"{dtype}: off by at most {run.off:.1g} of the metric's unit, in the patches measured twice.")
    ends = run.ends
    names = {"layer": [str(layer) for layer in layers[: len(found)]]}
    change = torch.stack(found, dim=1) - ends[0].view(-1, *[1] * found[0].ndim)
    if "position" in by:
        names["position"] = list(places)
    else:
        change = change.squeeze(2)
    if "head" not in by:
        change = change.squeeze(-1)
    if normalized:  # the mean over prompts is the share of the means
        change = recovered(change, torch.tensor(0.0), (ends[1] - ends[0]).mean())
    return Scores.over_prompts(
        change,
        ("layer", *(dim for dim in ("position", "head") if dim in by)),
        "share of the way from base to source" if normalized else "change of the metric",
        labels=names,
        baselines={"base": ends[0].mean().item(), "source": ends[1].mean().item()},
    )


def _sweep(run, layers: Sequence[int], places: Mapping[str, Where], apart: bool) -> list[Tensor]:
    """[prompt, place, head] for each layer that was finished; the bar counts the work that is left, not the layers."""
    from tqdm.auto import tqdm

    found: list[Tensor] = []
    try:
        with tqdm(total=sum(run.cost(layer) for layer in layers), delay=3, desc="patching", unit="", leave=False,
                  bar_format="{desc} {percentage:3.0f}% |{bar}| {remaining} left") as bar:  # fmt: skip
            for layer in layers:
                found.append(torch.stack([run(layer, where, apart) for where in places.values()], dim=1))
                bar.update(run.cost(layer))
    except KeyboardInterrupt:
        if not found:
            raise
        print(f"Interrupted: layers {layers[0]} to {layers[len(found) - 1]} are finished and kept.")
    return found


class InFull:
    """The plain way, for any model: one whole run for each patch, the activation replaced by a hook."""

    @torch.no_grad()
    def __init__(self, model, base, source, metric: Metric, site: str):
        self.model, self.base, self.metric, self.site = model, base, metric, site
        self.off = 0.0  # always in the model's own precision
        ending, self.axis = SITES[site]
        _, self.cache = model.run_with_cache(source, names_filter=lambda name: name.endswith(ending))
        self.ends = torch.stack([per_prompt(metric, model(tokens)) for tokens in (base, source)])

    def cost(self, layer: int) -> int:
        return 1

    def __call__(self, layer: int, where: Where, apart: bool) -> Float[Tensor, "prompt head"]:
        name = f"blocks.{layer}.{SITES[self.site][0]}"
        heads = range(self.cache[name].shape[self.axis]) if apart else [None]
        return torch.stack([self.patched(name, where, head) for head in heads], dim=1)

    @torch.no_grad()
    def patched(self, name: str, where: Where, head: int | None) -> Float[Tensor, "prompt"]:
        def put(x: Tensor, hook) -> Tensor:
            query = 2 if self.site == "pattern" else 1  # the axis of positions
            here = where.view([n if axis in (0, query) else 1 for axis, n in enumerate(x.shape)])
            if head is not None:
                chosen = torch.arange(x.shape[self.axis], device=x.device) == head
                here = here & chosen.view([-1 if axis == self.axis else 1 for axis in range(x.ndim)])
            return torch.where(here, self.cache[name], x)

        with intervene(self.model, [(name, put)]):
            return per_prompt(self.metric, self.model(self.base))


class Fast:
    """The same numbers, taken up where the patch is."""

    @torch.no_grad()
    def __init__(self, model, base, source, metric: Metric, site: str, dtype: torch.dtype | None):
        self.model, self.metric, self.site, self.dtype = model, metric, site, dtype
        self.base = Resume(model, base)
        self.source = Resume(model, source, like=self.base)
        self.ends = torch.stack([self.base.ends(metric), self.source.ends(metric)])
        self.same = self.source.first_difference(self.base)
        self.off = 0.0

    def cost(self, layer: int) -> int:
        return len(self.base.layers) - layer

    @torch.no_grad()
    def __call__(self, layer: int, where: Where, apart: bool) -> Float[Tensor, "prompt head"]:
        heads = 1
        if apart:
            heads = self.base.kv_heads if self.site in ("k", "v") else self.base.heads
        touched = where.any(0).float().argmax() if where.any() else where.shape[1]
        first = max(int(touched), self.same)
        if first >= where.shape[1] or not where[:, first:].any():
            return self.ends[0][:, None].expand(-1, heads)
        change = self.change(layer, where, first, apart)
        start, middle = (layer, self.site != "resid_pre") if self.site != "mlp_out" else (layer + 1, False)
        kept = (self.base.resid_mid if middle else self.base.resid_pre)[start][:, first:]
        found = self.base.measure(self.metric, start, kept + change, first, middle=middle, dtype=self.dtype)
        if self.dtype is not None and layer % 5 == 0:  # a sample again in full precision
            exact = self.base.measure(self.metric, start, (kept + change)[:1], first, middle=middle)
            self.off = max(self.off, (found[:1] - exact).abs().max().item())
        return found.T

    def change(
        self, layer: int, where: Where, first: int, apart: bool
    ) -> Float[Tensor, "head prompt later d_model"]:
        """What the patch adds to the stream, from position `first` on; of each head, or of all together."""
        base, source = self.base, self.source
        here = where[:, first:, None]
        if self.site == "resid_pre":
            return ((source.resid_pre[layer] - base.resid_pre[layer])[:, first:] * here)[None]
        if self.site in ("attn_out", "mlp_out"):
            written = [run.written(self.site, layer) for run in (base, source)]
            return ((written[1] - written[0])[:, first:] * here)[None]
        W_O = base.layers[layer].out[0].unflatten(0, (base.heads, base.d_head))
        change = (self.z(layer, where) - base.z[layer])[:, first:]
        if not apart:
            return torch.einsum("nphd,hdm->npm", change, W_O)[None]
        change = torch.einsum("nphd,hdm->hnpm", change, W_O)
        return change.unflatten(0, (base.kv_heads, -1)).sum(1) if self.site in ("k", "v") else change

    def z(self, layer: int, where: Where) -> Float[Tensor, "prompt pos head d_head"]:
        """What the heads hand to W_O when every one of them has the site patched. Heads of a layer do not interact."""
        base, source = self.base, self.source
        if self.site == "z":
            return torch.where(where[:, :, None, None], source.z[layer], base.z[layer])
        if self.site == "pattern":
            found = base.attend(source.queries[layer], source.keys[layer], base.values[layer])
            return torch.where(where[:, :, None, None], found, base.z[layer])
        here = where[:, None, :, None]
        q, k, v = (
            torch.where(here, getattr(source, name)[layer], getattr(base, name)[layer]) if site == self.site else getattr(base, name)[layer]
            for site, name in (("q", "queries"), ("k", "keys"), ("v", "values"))
        )  # fmt: skip
        return base.attend(q, k, v)


def _runner(model, base, source, metric, site, dtype) -> "Fast | InFull":
    try:
        return Fast(model, base, source, metric, site, dtype)
    except NotResumable as reason:
        warnings.warn(
            f"{reason} Each patch is a full run of the model: slower, the same numbers.", stacklevel=3
        )
        return InFull(model, base, source, metric, site)


def places_of(model, base: Tensor, positions: Positions | None, apart: bool) -> dict[str, Where]:
    """Which positions of each prompt a patch touches: one entry for each place, or one for all together."""
    count = base.shape[1]
    if not isinstance(positions, Mapping):
        chosen = range(count) if positions is None else [int(p) for p in positions]
        labels = position_labels(model, base)
        positions = {labels[p % count]: torch.full((len(base),), p) for p in chosen if -count <= p < count}
        if len(positions) < len({*chosen}):
            wrong = next(p for p in chosen if not -count <= p < count)
            raise ValueError(f"There is no position {wrong}: the prompts have positions 0 to {count - 1}.")
    places = {}
    for name, each in positions.items():
        each = torch.as_tensor(each).expand(len(base))
        if not ((each >= -count) & (each < count)).all():
            raise ValueError(
                f"{name!r} has positions {each.tolist()}: the prompts have positions 0 to {count - 1}."
            )
        places[name] = (torch.arange(count) == (each % count)[:, None]).to(base.device)
    if not places:
        raise ValueError("There is nothing to patch: `positions` is empty.")
    return places if apart else {"all": torch.stack([*places.values()]).any(0)}


def _check(model, base: Tensor, source: Tensor, site: str, layers) -> None:
    if site not in SITES:
        raise ValueError(f"site is {site!r}; it must be one of {', '.join(map(repr, SITES))}.")
    if base.shape != source.shape:
        raise ValueError(
            f"base is {tuple(base.shape)} and source {tuple(source.shape)}: patching needs as many prompts of the same "
            "number of tokens, or positions do not correspond."
        )
    if torch.equal(base, source):
        raise ValueError("base and source are the same tokens, so a patch changes nothing.")
    wrong = [layer for layer in layers or [] if not 0 <= layer < model.cfg.n_layers]
    if wrong or (layers is not None and not len(layers)):
        raise ValueError(f"layers is {list(layers)}: the model has layers 0 to {model.cfg.n_layers - 1}.")
