"""Interventions that cannot leak and cannot silently miss.

An intervention is a list `[(hook_name, function), ...]`, as TransformerLens takes it, so it works in plain
`with model.hooks(fwd_hooks=...)`. `intervene` is the careful way to run one: it checks the names first,
counts how often each function fired, refuses functions that write into the activation they were given, and
leaves the model as it found it.
"""

import difflib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.arguments import check_head
from mechlab.loading.limits import is_ignored

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Hook = tuple[str, Callable]
KINDS = ("position", "head")


class HookError(RuntimeError):
    """An intervention did not do what it says. The message names the hook and the reason."""


@contextmanager
def intervene(model: "TransformerBridge", hooks: Sequence[Hook]) -> Generator[list[int]]:
    """Run the model with hooks; yields a list that counts how often each hook fired.

    with intervene(model, [("blocks.3.attn.hook_z", fn)]) as fired:
        logits = model(tokens)

    Raises `HookError` for an unknown name (with the nearest ones), for a function that changes its input in
    place, for one whose result this model does not use, and on leaving for a hook that never fired.
    """
    for name, _ in hooks:
        check_name(model, name)
    ignored = {name for name, _ in hooks if is_ignored(model, name)}
    fired = [0] * len(hooks)

    def counted(place: int, name: str, function: Callable) -> Callable:
        def run(activation: Tensor, hook):
            fired[place] += 1
            result = _unspoilt(name, function, activation, hook)
            if result is not None and result.shape != activation.shape:
                raise HookError(
                    f"The function on {name} returned shape {tuple(result.shape)}; the activation is "
                    f"{tuple(activation.shape)}."
                )
            if name in ignored and result is not None and result is not activation:
                raise HookError(
                    f"{name} can be read in this model and not written: it computes on with what it had "
                    "before, whatever a hook returns. Write where the result is used, such as hook_z."
                )
            return result

        return run

    with model.hooks(
        fwd_hooks=[(name, counted(place, name, function)) for place, (name, function) in enumerate(hooks)]
    ):
        yield fired
    silent = [name for (name, _), count in zip(hooks, fired, strict=True) if count == 0]
    if silent:
        raise HookError(
            f"{silent[0]} never fired, so nothing was changed. The model was not run inside the `with`; or "
            "this model never computes it (no position embedding where positions are rotary); or the hook is "
            "off by default (hook_result, hook_q_input, hook_mlp_in need a `model.set_use_...` call first)."
        )


def _unspoilt(name: str, function: Callable, activation: Tensor, hook) -> Tensor | None:
    """What a hook function returns; a `HookError` where it writes into what it was given."""
    if activation.is_inference():  # nobody counts how often such a tensor was written to
        before = activation.clone()
        result = function(activation, hook=hook)
        written = not torch.equal(activation.nan_to_num(), before.nan_to_num())
    else:
        version = activation._version
        result = function(activation, hook=hook)
        written = activation._version != version
    if written:
        raise HookError(
            f"The function on {name} writes into the activation it was given. Make a copy first "
            "(`activation = activation.clone()`), change the copy and return it."
        )
    return result


def check_name(model: "TransformerBridge", name: str) -> None:
    """Raise `HookError` with the nearest names when the model has no hook of this name."""
    if name in model.hook_dict:
        return
    near = difflib.get_close_matches(name, model.hook_dict, n=3, cutoff=0.3)
    layers = model.cfg.n_layers
    hint = f" The model has layers 0 to {layers - 1}." if name.startswith("blocks.") else ""
    raise HookError(f'This model has no hook "{name}".{hint} Nearest: {", ".join(near) or "none"}.')


def unit_direction(
    model: "TransformerBridge", direction: Float[Tensor, "d_model"]
) -> Float[Tensor, "d_model"]:
    """The direction with length 1, as precise as it was given.

    One that does not fit, or points nowhere, is refused.
    """
    if tuple(direction.shape) != (model.cfg.d_model,):
        raise ValueError(
            f"The direction is {tuple(direction.shape)}; the stream has {model.cfg.d_model} dimensions."
        )
    unit = direction.detach() / direction.norm()
    if not torch.isfinite(unit).all():
        raise ValueError("The direction is zero or NaN: it points nowhere.")
    return unit


def set_component(
    x: Float[Tensor, "*any d_model"], unit: Float[Tensor, "d_model"], level: float | int = 0.0
) -> Float[Tensor, "*any d_model"]:
    """x with the component `level` along a direction of length 1, and all else as it was."""
    unit = unit.to(x)
    return x + (level - x @ unit)[..., None] * unit


def replace_with(
    name: str,
    value: Float[Tensor, "batch pos ..."],
    *,
    positions: Sequence[int] | None = None,
    head: int | None = None,
) -> list[Hook]:
    """Write `value` over an activation: everywhere, or at some positions, or for one head.

    `value` is the whole activation of another run, such as `cache[name]`. `head` counts query heads on
    hook_q, hook_z and patterns, key/value heads on hook_k and hook_v; `positions` are those of the query on
    patterns. Raises `HookError` for a head or a position that is not there.
    """
    axes = (2, 1) if name.endswith(("hook_pattern", "hook_attn_scores")) else (1, 2)  # positions, heads

    def write(activation: Tensor, hook) -> Tensor:
        if activation.shape != value.shape:
            raise HookError(
                f"{name} is {tuple(activation.shape)} here and {tuple(value.shape)} in the other run. Both "
                "runs need the "
                "same number of prompts and tokens."
            )
        where = torch.ones_like(activation, dtype=torch.bool)
        for axis, asked, what in zip(axes, (positions, None if head is None else [head]), KINDS, strict=True):
            if asked is not None:
                where &= _only(activation, axis, asked, what, name)
        return torch.where(where, value.to(activation), activation)

    return [(name, write)]


def _only(x: Tensor, axis: int, asked: Sequence[int], what: str, name: str) -> Tensor:
    """A mask of x that is true at some places of an axis."""
    count = x.shape[axis] if what == "position" or x.ndim > 3 else 0
    low = -count if what == "position" else 0
    wrong = [place for place in asked if not low <= place < count]
    if wrong:
        raise HookError(f"{name} has no {what} {wrong[0]}: it has {count} {what}s, numbered from 0.")
    mask = torch.zeros(x.shape[axis], dtype=torch.bool, device=x.device)
    mask[list(asked)] = True
    return mask.reshape([-1 if n == axis else 1 for n in range(x.ndim)])


def replace_head(
    model: "TransformerBridge", head: tuple[int, int], cache, *, positions: Sequence[int] | None = None
) -> list[Hook]:
    """Give one attention head (layer, head) the output it had in another run, before W_O (`hook_z`)."""
    layer, index = check_head(model, head)
    name = f"blocks.{layer}.attn.hook_z"
    return replace_with(name, cache[name], positions=positions, head=index)
