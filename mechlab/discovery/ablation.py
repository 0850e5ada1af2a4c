"""Ablation: what breaks if a part is gone?

"Gone" has to be filled with something. Four ways: zero; the mean over reference prompts, at each position
(and for each template); the activation of another reference prompt (resample); noise with the mean and spread
of the reference. They answer different questions and often disagree: zero is a value that the part may never
take, the mean keeps what all prompts share, resampling brings in another prompt's content.

A prompt is never its own stand-in: where the reference holds nothing but the prompt itself, nothing would be
taken away, and that is refused.

Sign: an effect is ablated − intact. Negative on a logit difference: the part was needed.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechlab.arguments import at_least, key_value_heads, layers_of, mlp_width, one_of, whole
from mechlab.attribution.masking import Source
from mechlab.metrics import Metric, fitted, per_prompt
from mechlab.moved import was
from mechlab.results import AblationResult, Scores
from mechlab.runs.engines import run_of
from mechlab.runs.hooks import Hook, HookError, intervene, set_component, unit_direction
from mechlab.runs.norms import wide
from mechlab.runs.run import NotResumable, Put
from mechlab.tokens import Batch, Prompts, batch_of, first_tokens

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
# unit -> the site at which a kept run can be taken up without a part
SITES = {"head": "z", "kv_head": "v", "attention": "attn_out", "mlp": "mlp_out"}
Part = tuple[int, int] | int


@was(reference="source")
@torch.no_grad()
def ablation_hooks(
    model: "TransformerBridge",
    base: Prompts,
    parts: Sequence[Part],
    how: str = "mean",
    *,
    unit: str = "head",
    source: Source | Mapping[str, Tensor] | None = None,
    templates: tuple[Sequence, Sequence] | None = None,
    positions: Sequence[int] | None = None,
    seed: int = 0,
) -> list[Hook]:
    """Hooks that take parts away together, for `intervene` or `model.hooks`, in runs of `base`.

    parts:     (layer, index) for heads, key/value heads and neurons; a layer for "attention" and "mlp". A
               key/value head is taken away through its values, for all query heads that share it
    source:    prompts of the same length that say what is usual (default: `base` itself), or what they were
               run to: `reference_run(...)`, when many parts are tried. "resample" draws among those that are
               not the prompt itself
    templates: the template of each prompt of `base` and of `source`; means and draws stay within a template
    positions: where (default: everywhere); -1 is each prompt's own last token

    Raises a `ValueError` where nothing would be taken away: a prompt has only itself for a reference, or
    "noise" has no two prompts to take a spread from; and for prompts of unequal length, unless how="zero".
    """
    return _hooks(batch_of(model, base), parts, how, unit, source, templates, positions, seed)


def _hooks(
    batch: Batch, parts: Sequence[Part], how: str, unit: str, source, templates, positions, seed: int
) -> list[Hook]:
    anywhere = how == "zero" and positions is None  # such a hook suits runs of any prompts
    where = None if anywhere else _places(batch, positions)
    return [
        (_hook(layer, unit), _replacing(usual, some, where))
        for layer, some, usual in _gone(batch, parts, how, unit, source, templates, positions, seed)
    ]


def _gone(
    batch: Batch, parts: Sequence[Part], how: str, unit: str, source, templates, positions, seed: int
) -> list[tuple[int, list[bool] | None, Float[Tensor, "batch pos ..."] | None]]:
    """Layer by layer: which of its parts go (None: the whole), and what stands there instead (None: zero)."""
    chosen: dict[int, list[int]] = {}
    for layer, index in _checked(batch.model, parts, how, unit):
        chosen.setdefault(layer, []).append(index)
    where, found, like = _places(batch, positions), {}, []
    if how != "zero":
        given = batch if source is None else source
        whole_run = isinstance(given, Mapping)
        found = given if whole_run else reference_run(batch.model, batch, given, [*chosen], unit)
        like = _like(batch, found, templates, how, where)
    rows = []
    for layer, indices in chosen.items():
        usual = None if how == "zero" else _stand_in(_of(found, _hook(layer, unit)), how, like, seed + layer)
        count = None if UNITS[unit][1] is None else _count(batch.model, unit)
        rows.append((layer, None if count is None else [index in indices for index in range(count)], usual))
    return rows


@torch.no_grad()
def reference_run(
    model: "TransformerBridge",
    base: Prompts,
    reference: Source | Batch,
    layers: Sequence[int],
    unit: str = "head",
) -> dict[str, Tensor]:
    """The activations of some layers on the reference prompts, and their tokens as "tokens".

    Later layers are not computed. Raises a `ValueError` for prompts that are not of the length of `base`.
    """
    one_of("unit", unit, UNITS)
    why = "what is usual is taken position by position"
    tokens = batch_of(model, base).one_length(f"{why}; only how='zero' needs no positions that correspond")
    theirs = batch_of(model, reference, what="source").one_length(why)
    if theirs.shape[1] != tokens.shape[1]:
        raise ValueError(
            f"base has {tokens.shape[1]} tokens and the reference {theirs.shape[1]}: {why}, so the lengths "
            "must be equal."
        )
    layers = layers_of(model, layers)
    names = {_hook(layer, unit) for layer in layers}
    last = max(layers) + 1
    _, cache = model.run_with_cache(theirs, names_filter=lambda name: name in names, stop_at_layer=last)
    return {name: cache[name] for name in names} | {"tokens": theirs}


@was(reference="source")
@torch.no_grad()
def ablation_effects(
    model: "TransformerBridge",
    base: Prompts,
    metric: Metric,
    parts: Sequence[Part],
    how: str = "mean",
    *,
    unit: str = "head",
    source: Source | None = None,
    templates: tuple[Sequence, Sequence] | None = None,
    positions: Sequence[int] | None = None,
    seed: int = 0,
) -> Scores:
    """The change of `metric` when each part is taken away alone: ablated − intact, dims ("part",).

    For each part the model is run from the layer that it is in. Keywords and errors as in `ablation_hooks`.
    Wang et al. 2022 use "mean", over another distribution and for each template and position; Olsson et al.
    2022 zero; Chan et al. 2022 resample.
    """
    take_away = _Experiment(model, base, metric, parts, how, unit, source, templates, positions, seed)
    changes = torch.stack([take_away([part]) - take_away.intact for part in parts], dim=1)
    labels = {"part": [".".join(map(str, p)) if isinstance(p, Sequence) else f"{unit} {p}" for p in parts]}
    name, units = f"change of the metric, {how} ablation", take_away.batch.units
    return Scores.over_prompts(changes, ("part",), name, labels=labels, units=units)


@was(reference="source")
@torch.no_grad()
def ablate_together(
    model: "TransformerBridge",
    base: Prompts,
    metric: Metric,
    parts: Sequence[Part],
    how: str = "mean",
    *,
    unit: str = "head",
    source: Source | None = None,
    templates: tuple[Sequence, Sequence] | None = None,
    positions: Sequence[int] | None = None,
    draws: int = 10,
    seed: int = 0,
) -> AblationResult:
    """The metric with all parts taken away at once, beside as many random other parts of the same layers.

    draws: how many times others are drawn. Keywords and errors as in `ablation_hooks`; a `ValueError` too
    where there are not as many others.
    """
    take_away = _Experiment(model, base, metric, parts, how, unit, source, templates, positions, seed)
    at_least("draws", draws, 1)
    generator, checked = torch.Generator().manual_seed(seed), _checked(model, parts, how, unit)
    random = [take_away(_others(model, checked, unit, generator)) for _ in range(draws)]
    return AblationResult(take_away.intact, take_away(parts), torch.stack(random))


class _Experiment:
    """The metric of some prompts with parts taken away; the reference is run once.

    intact: the metric of each prompt with nothing taken away
    """

    def __init__(self, model, base, metric, parts, how, unit, source, templates, positions, seed):
        self.batch, self.how = batch_of(model, base), how
        layers = [layer for layer, _ in _checked(model, parts, how, unit)]
        layers = layers_of(model) if UNITS[unit][1] is None else layers  # random others may be of any layer
        if how != "zero":
            source = reference_run(model, self.batch, self.batch if source is None else source, layers, unit)
        self.unit, self.given = unit, (unit, source, templates, positions, seed)
        self.metric, self.fitted, self.run = metric, fitted(metric, self.batch), None
        self.places = _places(self.batch, positions)
        if unit in SITES:
            with suppress(NotResumable):  # then each ablation is a whole run
                self.run = run_of(model, self.batch, engine="fast")
        self.intact = self.run.value(metric).float().cpu() if self.run else self.measured()

    def __call__(self, parts: Sequence[Part]) -> Float[Tensor, "batch"]:
        if self.run is None:
            return self.measured(_hooks(self.batch, parts, self.how, *self.given))
        gone = _gone(self.batch, parts, self.how, *self.given)
        return self.run.edited(self.metric, [self.put(*each) for each in gone])[0].float().cpu()

    def put(self, layer: int, some: list[bool] | None, usual: Float[Tensor, "batch pos ..."] | None) -> Put:
        """One layer's ablation as an edit of the kept run."""
        where = self.places if some is None else self.places[..., None] & torch.tensor(some).to(self.places)
        value = torch.zeros(1, 1, 1) if usual is None else usual[None]
        return Put(SITES[self.unit], layer, value, where[None])

    def measured(self, hooks: Sequence[Hook] = ()) -> Float[Tensor, "batch"]:
        with intervene(self.batch.model, hooks):
            return per_prompt(self.fitted, wide(self.batch.model(self.batch.tokens))).float().cpu()


@torch.no_grad()
def direction_hooks(
    model: "TransformerBridge",
    direction: Float[Tensor, "d_model"],
    layers: Sequence[int],
    *,
    reference: Source | None = None,
    positions: Sequence[int] | None = None,
    base: Prompts | None = None,
    skip: int | None = None,
) -> list[Hook]:
    """Hooks that take one direction out of the residual stream on leaving each of `layers`.

    The component along it becomes 0, or its mean over `reference` prompts. The two differ when the mean is
    far from 0, which it usually is.

    positions: where (default: everywhere), counted from the front
    base:      the prompts that will be run: then -1 in positions is each prompt's own last token
    skip:      how many first positions are left out of the mean; by default the model's first token. In
               models whose tokenizer adds none (Qwen, Pythia, Bloom) position 0 is a word, and often an
               attention sink with a far longer stream than others: skip=1 leaves it out
    """
    unit = unit_direction(model, direction)
    names = [f"blocks.{layer}.hook_resid_post" for layer in layers_of(model, layers)]
    level = dict.fromkeys(names, 0.0)
    if reference is not None:
        theirs = batch_of(model, reference, what="reference")
        skip = first_tokens(model) if skip is None else at_least("skip", skip, 0)
        counted = _places(theirs, None)
        counted[:, :skip] = False
        if not counted.any():
            raise ValueError(f"No position of the reference is left after the first {skip}.")
        _, cache = model.run_with_cache(theirs.tokens, names_filter=lambda name: name in names)
        along = {name: wide(cache[name]) @ unit.to(wide(cache[name])) for name in names}
        level = {name: each[counted].mean().item() for name, each in along.items()}
    where = _places(batch_of(model, base), positions) if base is not None else None
    asked = None if positions is None or base is not None else _from_the_front(positions)

    def take_out(
        stream: Float[Tensor, "batch pos d_model"], hook, level: float
    ) -> Float[Tensor, "batch pos d_model"]:
        mask = where if asked is None else _these(asked, stream)
        changed = set_component(wide(stream), unit.to(wide(stream)), level).to(stream)
        return _at(mask, changed, stream)

    return [(name, partial(take_out, level=level[name])) for name in names]


def _from_the_front(positions: Sequence[int]) -> list[int]:
    """Positions for runs of any prompts: none counted from an end that is not known."""
    asked = [at_least("A position without base=", p, 0) for p in positions]
    if not asked or len(set(asked)) < len(asked):
        raise ValueError(f"positions is {asked}: {'one is there twice' if asked else 'there is none in it'}.")
    return asked


def _these(asked: list[int], stream: Float[Tensor, "batch pos d_model"]) -> Bool[Tensor, "batch pos"]:
    if max(asked) >= stream.shape[1]:
        raise HookError(f"positions is {asked}, and this run has positions 0 to {stream.shape[1] - 1}.")
    mask = torch.zeros(stream.shape[:2], dtype=torch.bool, device=stream.device)
    mask[:, asked] = True
    return mask


def _places(batch: Batch, positions: Sequence[int] | None) -> Bool[Tensor, "batch pos"]:
    """Which positions of each prompt are meant; padding never is."""
    every = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    if positions is None:
        return every <= batch.ends[:, None]
    if not len(positions):
        raise ValueError("positions is empty: there is nowhere to take anything away.")
    found = torch.stack([every == batch.position(p, "A position")[:, None] for p in positions])
    if (found.sum(0) > 1).any():
        raise ValueError(f"positions is {list(positions)}: one position is there twice (-1 is the last).")
    return found.any(0)


def _of(found: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in found:
        raise ValueError(
            f'The source was not run to "{name}". Make it with `reference_run(model, base, prompts, layers, '
            "unit)`, for all layers and the unit that are asked for."
        )
    return found[name]


def _like(
    batch: Batch,
    found: Mapping[str, Tensor],
    templates: tuple[Sequence, Sequence] | None,
    how: str,
    where: Bool[Tensor, "batch pos"],
) -> list[list[int]]:
    """For each prompt the rows of the reference that stand in for it, in a causal model."""
    tokens = batch.one_length("what is usual is taken position by position")
    theirs = _of(found, "tokens")
    ours, of = ([0] * len(tokens), [0] * len(theirs)) if templates is None else templates
    if len(ours) != len(tokens) or len(of) != len(theirs):
        raise ValueError(
            f"templates are {len(ours)} and {len(of)}, of {len(tokens)} prompts and {len(theirs)} of the "
            "reference: name the template of each."
        )
    rows = []
    for row, template in enumerate(ours):
        like = [n for n, other in enumerate(of) if other == template]
        if not like:
            raise ValueError(f"No reference prompt has the template {template!r} of prompt {row}.")
        seen = int(where[row].nonzero().max()) + 1  # what stands behind has no say in what is replaced
        other = [n for n in like if not torch.equal(theirs[n, :seen], tokens[row, :seen])]
        if not other or (how == "noise" and len(theirs[like, :seen].unique(dim=0)) < 2):
            raise ValueError(_nothing(row, how, templates is not None, bool(other)))
        rows.append(other if how == "resample" else like)
    return rows


def _nothing(row: int, how: str, by_template: bool, spread: bool) -> str:
    """Why nothing would be taken away from a prompt."""
    of = " of its template" if by_template else ""
    if spread:
        return (
            f"The reference has one prompt{of} for prompt {row}, and the noise no spread: give several as "
            "source=."
        )
    return (
        f"Prompt {row} would be replaced by itself: up to the last place of the ablation the reference has "
        f"no other prompt{of}, so {how!r} takes nothing away. Give other prompts of the same length as "
        "source=, or use how='zero'."
    )


def _stand_in(
    found: Float[Tensor, "reference pos ..."], how: str, like: list[list[int]], seed: int
) -> Float[Tensor, "batch pos ..."]:
    """What each prompt of base gets instead, from the reference prompts that are like it."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for mine in like:
        if how == "resample":
            rows.append(found[mine[int(torch.randint(len(mine), (1,), generator=generator))]])
            continue
        mean = wide(found[mine]).mean(0)
        if how == "noise":
            noise = torch.randn(mean.shape, generator=generator).to(mean)
            mean = mean + noise * wide(found[mine]).std(0, correction=0)
        rows.append(mean)
    return torch.stack(rows)


def _replacing(
    usual: Float[Tensor, "batch pos ..."] | None,
    chosen: list[bool] | None,
    where: Bool[Tensor, "batch pos"] | None,
) -> Callable:
    """A hook function that writes `usual` (zero if None) over the chosen parts, or over all."""

    def replace(activation: Float[Tensor, "batch pos ..."], hook) -> Float[Tensor, "batch pos ..."]:
        value = torch.zeros_like(activation) if usual is None else usual.to(activation)
        if chosen is not None:
            if activation.shape[2] != len(chosen):
                raise HookError(
                    f"{hook.name} has {activation.shape[2]} parts on its third axis, and {len(chosen)} were "
                    "expected: this architecture keeps something else there."
                )
            mask = torch.tensor(chosen, device=activation.device)
            mask = mask[:, None] if activation.ndim == 4 else mask
            value = torch.where(mask, _fitting(value, activation, hook), activation)
        return _at(where, _fitting(value, activation, hook), activation)

    return replace


def _fitting(value: Tensor, activation: Tensor, hook) -> Tensor:
    if value.shape != activation.shape:
        raise HookError(
            f"The hook on {hook.name} was made for prompts of {tuple(value.shape[:2])} [prompts, tokens], "
            f"and the model was run on {tuple(activation.shape[:2])}. Make hooks for the prompts you run."
        )
    return value


def _at(
    where: Bool[Tensor, "batch pos"] | None,
    changed: Float[Tensor, "its_batch its_pos ..."],
    before: Float[Tensor, "its_batch its_pos ..."],
) -> Float[Tensor, "its_batch its_pos ..."]:
    """Changed at some positions, elsewhere as before."""
    if where is None:
        return changed
    if where.shape != before.shape[:2]:
        raise HookError(
            f"The hook was made for prompts of {tuple(where.shape)} [prompts, tokens], and the model was run "
            f"on {tuple(before.shape[:2])}. Make hooks for the prompts that you run."
        )
    return torch.where(where.reshape(*where.shape, *[1] * (before.ndim - 2)), changed, before)


def _others(
    model: "TransformerBridge", parts: Sequence[tuple[int, int]], unit: str, generator: torch.Generator
) -> Sequence[Part]:
    """As many other parts of the same layers; of other layers, for units that are one a layer."""
    if UNITS[unit][1] is None:
        free = [layer for layer in range(model.cfg.n_layers) if layer not in {at for at, _ in parts}]
        if len(free) < len(parts):
            raise ValueError(
                f"{len(parts)} of {model.cfg.n_layers} layers are chosen, and {len(free)} are left: there "
                "are not as many others to compare with."
            )
        return [free[i] for i in torch.randperm(len(free), generator=generator)[: len(parts)]]
    for layer, mine in Counter(layer for layer, _ in parts).items():
        count = _count(model, unit)
        if 2 * mine > count:
            every = (
                f"Every {unit} of layer {layer} is" if mine == count else f"{mine} of the {count} {unit}s of"
            )
            rest = "there is no other" if mine == count else "there are not as many others"
            where = "" if mine == count else f" layer {layer} are"
            raise ValueError(f"{every}{where} chosen, so {rest} to compare with.")
    drawn = []
    for layer, _ in parts:
        free = [(layer, i) for i in range(_count(model, unit)) if (layer, i) not in {*parts, *drawn}]
        drawn.append(free[int(torch.randint(len(free), (1,), generator=generator))])
    return drawn


def _count(model: "TransformerBridge", unit: str) -> int:
    if unit == "neuron":
        return mlp_width(model)
    return model.cfg.n_heads if unit == "head" else key_value_heads(model)


def _hook(layer: int, unit: str) -> str:
    return f"blocks.{layer}.{UNITS[unit][0]}"


def _checked(model: "TransformerBridge", parts: Sequence[Part], how: str, unit: str) -> list[tuple[int, int]]:
    one_of("how", how, HOWS)
    one_of("unit", unit, UNITS)
    if not len(parts):
        raise ValueError("There is nothing to take away: `parts` is empty.")
    whole_layers = UNITS[unit][1] is None
    many, found = 1 if whole_layers else _count(model, unit), []
    for part in parts:
        layer, index = (part, 0 if whole_layers else -1) if not isinstance(part, Sequence) else part
        if not (whole(layer) and whole(index) and 0 <= layer < model.cfg.n_layers and 0 <= index < many):
            indexed = f"a layer from 0 to {model.cfg.n_layers - 1}"
            if not whole_layers:
                indexed = f"({indexed}, a {unit} from 0 to {many - 1})"
            raise ValueError(f"There is no {unit} {part}: a part is {indexed}.")
        found.append((int(layer), int(index)))
    twice = [
        part for part, count in zip(parts, map(Counter(found).get, found), strict=True) if (count or 0) > 1
    ]
    if twice:
        raise ValueError(f"The {unit} {twice[0]} is named twice: it can be taken away only once.")
    return found
