"""Ablation: what breaks if a part is gone?

"Gone" has to be filled with something. Four ways: zero; the mean over reference prompts, at each position
(and for each template); the activation of another reference prompt (resample); noise with the mean and spread
of the reference. They answer different questions and often disagree: zero is a value that the part may never
take, the mean keeps what all prompts share, resampling brings in another prompt's content.

Sign: an effect is ablated − intact. Negative on a logit difference: the part was needed.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.arguments import key_value_heads, layers_of, one_of
from mechlab.metrics import Metric, per_prompt
from mechlab.moved import was
from mechlab.results import AblationResult, Scores
from mechlab.runs.hooks import Hook, intervene, set_component, unit_direction

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

HOWS = ("zero", "mean", "resample", "noise")
# unit -> the hook that holds it, and the axis along which parts of one layer are counted (None: one a layer)
UNITS = {
    "head": ("attn.hook_z", 2),
    "kv_head": ("attn.hook_v", 2),
    "attention": ("hook_attn_out", None),
    "mlp": ("hook_mlp_out", None),
    "neuron": ("mlp.hook_post", 2),
}
Part = tuple[int, int] | int


@was(reference="source")
@torch.no_grad()
def ablation_hooks(
    model: "TransformerBridge",
    base: Int[Tensor, "batch pos"],
    parts: Sequence[Part],
    how: str = "mean",
    *,
    unit: str = "head",
    source: Int[Tensor, "reference its_pos"] | Mapping[str, Tensor] | None = None,
    templates: tuple[Sequence, Sequence] | None = None,
    positions: Sequence[int] | None = None,
    seed: int = 0,
) -> list[Hook]:
    """Hooks that take parts away together, for `intervene` or `model.hooks`.

    parts:     (layer, index) for heads, key/value heads and neurons; a layer for "attention" and "mlp". A
               key/value head is taken away through its values, for all query heads that share it
    source:    prompts of the same length that say what is usual (default: `base` itself), or what they were
               run to: `reference_run(...)`, when many parts are tried
    templates: the template of each prompt of `base` and of `source`; means and draws stay within a template
    positions: where (default: everywhere)
    """
    chosen: dict[int, list[int]] = {}
    for layer, index in _checked(model, parts, how, unit):
        chosen.setdefault(layer, []).append(index)
    found: Mapping[str, Tensor] = {}
    if isinstance(source, Mapping):
        found = source
    elif how != "zero":
        found = reference_run(model, base, base if source is None else source, list(chosen), unit)
    hooks = []
    for layer, indices in chosen.items():
        name, usual = _hook(layer, unit), None
        if how != "zero":
            which = ([0] * len(base), [0] * len(found[name])) if templates is None else templates
            usual = _stand_in(found[name], how, which, seed + layer)
        hooks.append((name, _replacing(usual, None if UNITS[unit][1] is None else indices, positions)))
    return hooks


@torch.no_grad()
def reference_run(
    model: "TransformerBridge",
    base: Int[Tensor, "batch pos"],
    reference: Int[Tensor, "reference its_pos"],
    layers: Sequence[int],
    unit: str = "head",
) -> dict[str, Tensor]:
    """The activations of some layers on the reference prompts; later layers are not computed."""
    if reference.shape[1] != base.shape[1]:
        raise ValueError(
            f"base has {base.shape[1]} tokens and the reference {reference.shape[1]}: means are taken at "
            "each position, so the lengths must be equal."
        )
    names = {_hook(layer, unit) for layer in layers}
    last = max(layers) + 1
    _, cache = model.run_with_cache(reference, names_filter=lambda name: name in names, stop_at_layer=last)
    return {name: cache[name] for name in names}


@was(reference="source")
@torch.no_grad()
def ablation_effects(
    model: "TransformerBridge",
    base: Int[Tensor, "batch pos"],
    metric: Metric,
    parts: Sequence[Part],
    how: str = "mean",
    *,
    unit: str = "head",
    source: Int[Tensor, "reference its_pos"] | None = None,
    templates: tuple[Sequence, Sequence] | None = None,
    positions: Sequence[int] | None = None,
    seed: int = 0,
) -> Scores:
    """The change of `metric` when each part is taken away alone: ablated − intact, dims ("part",).

    One run of the model for each part. Keywords as in `ablation_hooks`. Wang et al. 2022 use "mean", over
    another distribution and for each template and position; Olsson et al. 2022 zero; Chan et al. 2022
    resample.
    """
    layers = [layer for layer, _ in _checked(model, parts, how, unit)]
    usual = reference_run(model, base, base if source is None else source, layers, unit)
    intact = per_prompt(metric, model(base))
    changes = []
    where = {"unit": unit, "templates": templates, "positions": positions, "seed": seed}
    for part in parts:
        with intervene(model, ablation_hooks(model, base, [part], how, source=usual, **where)):
            changes.append(per_prompt(metric, model(base)) - intact)
    labels = {"part": [f"{unit} {p}" if isinstance(p, int) else f"{p[0]}.{p[1]}" for p in parts]}
    name = f"change of the metric, {how} ablation"
    return Scores.over_prompts(torch.stack(changes, dim=1), ("part",), name, labels=labels)


@was(reference="source")
@torch.no_grad()
def ablate_together(
    model: "TransformerBridge",
    base: Int[Tensor, "batch pos"],
    metric: Metric,
    parts: Sequence[Part],
    how: str = "mean",
    *,
    unit: str = "head",
    source: Int[Tensor, "reference its_pos"] | None = None,
    templates: tuple[Sequence, Sequence] | None = None,
    positions: Sequence[int] | None = None,
    draws: int = 10,
    seed: int = 0,
) -> AblationResult:
    """The metric with all parts taken away at once, beside as many random other parts of the same layers.

    draws: how many times others are drawn. Keywords as in `ablation_hooks`.
    """
    checked = _checked(model, parts, how, unit)
    layers = layers_of(model) if UNITS[unit][1] is None else [layer for layer, _ in checked]
    usual = reference_run(model, base, base if source is None else source, layers, unit)
    where = {"unit": unit, "templates": templates, "positions": positions, "seed": seed}

    def run(chosen: Sequence[Part]) -> Float[Tensor, "batch"]:
        with intervene(model, ablation_hooks(model, base, chosen, how, source=usual, **where)):
            return per_prompt(metric, model(base)).cpu()

    generator = torch.Generator().manual_seed(seed)
    random = [run(_others(model, checked, unit, generator)) for _ in range(draws)]
    return AblationResult(per_prompt(metric, model(base)).cpu(), run(parts), torch.stack(random))


@torch.no_grad()
def direction_hooks(
    model: "TransformerBridge",
    direction: Float[Tensor, "d_model"],
    layers: Sequence[int],
    *,
    reference: Int[Tensor, "reference its_pos"] | None = None,
    positions: Sequence[int] | None = None,
) -> list[Hook]:
    """Hooks that take one direction out of the residual stream on leaving each of `layers`.

    The component along it becomes 0, or its mean over `reference` prompts (all positions but 0). The two
    differ when the mean is far from 0, which it usually is.
    """
    unit = unit_direction(model, direction)
    names = [f"blocks.{layer}.hook_resid_post" for layer in layers_of(model, layers)]
    level = dict.fromkeys(names, 0.0)
    if reference is not None:
        _, cache = model.run_with_cache(reference, names_filter=lambda name: name in names)
        level = {name: (cache[name][:, 1:] @ unit.to(cache[name])).mean().item() for name in names}

    def take_out(
        stream: Float[Tensor, "batch pos d_model"], hook, level: float
    ) -> Float[Tensor, "batch pos d_model"]:
        return _at(positions, set_component(stream, unit, level), stream)

    return [(name, partial(take_out, level=level[name])) for name in names]


def _stand_in(
    found: Float[Tensor, "reference pos ..."], how: str, templates: tuple[Sequence, Sequence], seed: int
) -> Float[Tensor, "batch pos ..."]:
    """What each prompt of base gets instead, from the reference prompts of its template."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for row, template in enumerate(templates[0]):
        like = [n for n, other in enumerate(templates[1]) if other == template]
        if not like:
            raise ValueError(f"No reference prompt has the template {template!r} of prompt {row}.")
        if how == "resample":
            rows.append(found[like[int(torch.randint(len(like), (1,), generator=generator))]])
            continue
        mean = found[like].mean(0)
        if how == "noise":
            noise = torch.randn(mean.shape, generator=generator).to(mean)
            mean = mean + noise * found[like].std(0, correction=0)
        rows.append(mean)
    return torch.stack(rows)


def _replacing(
    usual: Float[Tensor, "batch pos ..."] | None, chosen: list[int] | None, positions: Sequence[int] | None
) -> Callable:
    """A hook function that writes `usual` (zero if None) over the chosen parts, or over all."""

    def replace(activation: Float[Tensor, "batch pos ..."], hook) -> Float[Tensor, "batch pos ..."]:
        value = torch.zeros_like(activation) if usual is None else usual.to(activation)
        if chosen is not None:
            mask = torch.zeros(activation.shape[2], dtype=torch.bool, device=activation.device)
            mask[chosen] = True
            value = torch.where(mask[:, None] if activation.ndim == 4 else mask, value, activation)
        return _at(positions, value, activation)

    return replace


def _at(
    positions: Sequence[int] | None,
    changed: Float[Tensor, "batch pos ..."],
    before: Float[Tensor, "batch pos ..."],
) -> Float[Tensor, "batch pos ..."]:
    """Changed at some positions, elsewhere as before."""
    if positions is None:
        return changed
    result = before.clone()
    result[:, list(positions)] = changed[:, list(positions)]
    return result


def _others(
    model: "TransformerBridge", parts: Sequence[tuple[int, int]], unit: str, generator: torch.Generator
) -> Sequence[Part]:
    """As many other parts of the same layers; of other layers, for units that are one a layer."""
    if UNITS[unit][1] is None:
        free = [layer for layer in range(model.cfg.n_layers) if layer not in {at for at, _ in parts}]
        return [free[i] for i in torch.randperm(len(free), generator=generator)[: len(parts)]]
    drawn = []
    for layer, _ in parts:
        free = [(layer, i) for i in range(_count(model, unit)) if (layer, i) not in {*parts, *drawn}]
        if not free:
            raise ValueError(
                f"Every {unit} of layer {layer} is chosen, so there is no other to compare with."
            )
        drawn.append(free[int(torch.randint(len(free), (1,), generator=generator))])
    return drawn


def _count(model: "TransformerBridge", unit: str) -> int:
    neurons = model.cfg.d_mlp or 0  # None in a model without MLPs
    counts = {"head": model.cfg.n_heads, "kv_head": key_value_heads(model), "neuron": neurons}
    return counts[unit]


def _hook(layer: int, unit: str) -> str:
    return f"blocks.{layer}.{UNITS[unit][0]}"


def _checked(model: "TransformerBridge", parts: Sequence[Part], how: str, unit: str) -> list[tuple[int, int]]:
    one_of("how", how, HOWS)
    one_of("unit", unit, UNITS)
    if not len(parts):
        raise ValueError("There is nothing to take away: `parts` is empty.")
    whole_layers = UNITS[unit][1] is None
    found = []
    for part in parts:
        layer, index = (part, 0 if whole_layers else -1) if isinstance(part, int) else part
        many = 1 if whole_layers else _count(model, unit)
        if not (0 <= layer < model.cfg.n_layers and 0 <= index < many):
            indexed = f"a layer from 0 to {model.cfg.n_layers - 1}"
            if not whole_layers:
                indexed = f"({indexed}, a {unit} from 0 to {_count(model, unit) - 1})"
            raise ValueError(f"There is no {unit} {part}: a part is {indexed}.")
        found.append((int(layer), int(index)))
    return found
