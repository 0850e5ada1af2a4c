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

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Hook = tuple[str, Callable]


class HookError(RuntimeError):
    """An intervention did not do what it says. The message names the hook and the reason."""


@contextmanager
def intervene(model: "TransformerBridge", hooks: Sequence[Hook]) -> Generator[list[int]]:
    """Run the model with hooks; yields a list that counts how often each hook fired.

    with intervene(model, [("blocks.3.attn.hook_z", fn)]) as fired:
        logits = model(tokens)

    Raises `HookError` for an unknown name (with the nearest ones), for a function that changes its input in
    place, and on leaving for a hook that never fired.
    """
    fired = [0] * len(hooks)

    def counted(place: int, name: str, function: Callable) -> Callable:
        def run(activation: Tensor, hook):
            fired[place] += 1
            before = None if activation.is_inference() else activation._version
            result = function(activation, hook=hook)
            if before is not None and activation._version != before:
                raise HookError(
                    f"The function on {name} writes into the activation it was given. Make a copy first "
                    "(`activation = activation.clone()`), change the copy and return it."
                )
            if result is not None and result.shape != activation.shape:
                raise HookError(
                    f"The function on {name} returned shape {tuple(result.shape)}; the activation is "
                    f"{tuple(activation.shape)}."
                )
            return result

        return run

    for name, _ in hooks:
        check_name(model, name)
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

    `value` is the whole activation of another run, such as `cache[name]`. `head` indexes the third axis:
    query heads on hook_q and hook_z, key/value heads on hook_k and hook_v.
    """

    def write(activation: Tensor, hook) -> Tensor:
        if activation.shape != value.shape:
            raise HookError(
                f"{name} is {tuple(activation.shape)} here and {tuple(value.shape)} in the other run. Both "
                "runs need the "
                "same number of prompts and tokens."
            )
        where = torch.zeros_like(activation, dtype=torch.bool)
        rows = slice(None) if positions is None else list(positions)
        if head is None:
            where[:, rows] = True
        else:
            if activation.ndim < 4 or head >= activation.shape[2]:
                count = activation.shape[2] if activation.ndim > 3 else 0
                raise HookError(f"{name} has no head {head}: it has {count} heads, numbered from 0.")
            where[:, rows, head] = True
        return torch.where(where, value.to(activation), activation)

    return [(name, write)]


def replace_head(
    model: "TransformerBridge", head: tuple[int, int], cache, *, positions: Sequence[int] | None = None
) -> list[Hook]:
    """Give one attention head (layer, head) the output it had in another run, before W_O (`hook_z`)."""
    layer, index = head
    if not (0 <= layer < model.cfg.n_layers and 0 <= index < model.cfg.n_heads):
        raise HookError(
            f"There is no head {layer}.{index}: layers go from 0 to {model.cfg.n_layers - 1}, heads from 0 "
            f"to {model.cfg.n_heads - 1}."
        )
    name = f"blocks.{layer}.attn.hook_z"
    return replace_with(name, cache[name], positions=positions, head=index)
