"""What a technique is given, looked at once: layers, heads and names, with one sentence for each refusal."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import wraps
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Head = tuple[int, int]  # layer, head within the layer


def one_of(name: str, value: object, options: Iterable) -> None:
    """Raise a `ValueError` that lists the options unless `value` is one of them."""
    options = list(options)
    if value not in options:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, options))}.")


def whole(value: Any) -> bool:
    """Whether a value is a whole number: an int, numpy's, or a tensor of one; neither True nor 2.0."""
    if isinstance(value, torch.Tensor):
        return value.ndim == 0 and not (value.is_floating_point() or value.dtype == torch.bool)
    return isinstance(value, Integral) and not isinstance(value, bool)


def at_least(name: str, value: Any, least: int) -> int:
    """The value, if it is a whole number and large enough; else a `ValueError`."""
    if not whole(value) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}.")
    return int(value)


def check_layer(model: "TransformerBridge", layer: Any) -> int:
    """The layer, if the model has it."""
    if not whole(layer) or not 0 <= layer < model.cfg.n_layers:
        raise ValueError(f"There is no layer {layer}: this model has layers 0 to {model.cfg.n_layers - 1}.")
    return int(layer)


def layers_of(model: "TransformerBridge", layers: Sequence[int] | None = None) -> list[int]:
    """The layers asked for, or all if none were named.

    One that is not there, or no layer at all, is refused.
    """
    if layers is None:
        return list(range(model.cfg.n_layers))
    chosen = list(layers) if isinstance(layers, Iterable) else []
    if not chosen or not all(whole(layer) and 0 <= layer < model.cfg.n_layers for layer in chosen):
        shown = chosen or layers
        raise ValueError(f"layers is {shown!r:.80}: the model has layers 0 to {model.cfg.n_layers - 1}.")
    return [int(layer) for layer in chosen]


def head_of(head: Any) -> Head:
    """A head as (layer, index), if it is two whole numbers. Whether a model has it is not asked."""
    pair = tuple(head) if isinstance(head, Iterable) and not isinstance(head, str) else ()
    if len(pair) != 2 or not all(map(whole, pair)):
        raise ValueError(f"{head!r:.80} is not a head: give (layer, head), two whole numbers.")
    return int(pair[0]), int(pair[1])


def check_head(model: "TransformerBridge", head: Head) -> Head:
    """The head (layer, index), if the model has it."""
    layer, index = head_of(head)
    if not (0 <= layer < model.cfg.n_layers and 0 <= index < model.cfg.n_heads):
        raise ValueError(
            f"There is no head {layer}.{index}: layers go from 0 to {model.cfg.n_layers - 1}, "
            f"heads from 0 to {model.cfg.n_heads - 1}."
        )
    return layer, index


def all_heads(model: "TransformerBridge") -> list[Head]:
    """Every head, in the order of layers."""
    return [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]


def key_value_heads(model: "TransformerBridge") -> int:
    """How many heads keys and values have: fewer than queries have, where several query heads share one."""
    return model.cfg.n_key_value_heads or model.cfg.n_heads


def layer_of(name: str) -> int:
    """The layer in the name of a hook: 4 for "blocks.4.attn.hook_z"."""
    return int(name.split(".")[1])


def mlp_width(model: "TransformerBridge") -> int:
    """How many neurons an MLP has, by its matrices.

    A model without MLPs, or whose MLPs are something else (a mixture of experts), is refused.
    """
    if model.cfg.d_mlp is None:
        raise ValueError("This model has no MLPs, so it has no neurons.")
    for layer, block in enumerate(model.blocks):
        matrix = getattr(getattr(block, "mlp", None), "W_out", None)
        if not isinstance(matrix, torch.Tensor) or matrix.ndim != 2:
            kind = type(getattr(block, "mlp", None)).__name__
            raise ValueError(
                f"The MLP of layer {layer} is a {kind}, without neurons that each write one row of W_out (a "
                "mixture of experts has a choice of several MLPs). Ask about whole layers instead."
            )
    return model.blocks[0].mlp.W_out.shape[0]


@contextmanager
def gradients() -> Generator[None]:
    """Gradients flow inside, also where the caller has switched them off with `no_grad` or `inference_mode`.

    Weights, or numbers of a metric, that were themselves made inside `torch.inference_mode()` know no
    gradients: a `ValueError` says so.
    """
    with torch.inference_mode(False), torch.enable_grad():
        try:
            yield
        except RuntimeError as error:
            if "nference tensor" not in str(error):
                raise
            raise ValueError(
                "This needs gradients, and the model, or what the metric holds, was made inside "
                "`torch.inference_mode()`, which has none. Make it outside of it (`torch.no_grad()` does no "
                "harm)."
            ) from None


def outside_inference(function: Callable) -> Callable:
    """A decorator: inside `torch.inference_mode()` the function is called outside of it, with copies."""

    def usual(value: Any) -> Any:
        return value.clone() if isinstance(value, torch.Tensor) and value.is_inference() else value

    @wraps(function)
    def called(*args, **given):
        if not torch.is_inference_mode_enabled():
            return function(*args, **given)
        with torch.inference_mode(False), torch.no_grad():
            return function(*map(usual, args), **{name: usual(value) for name, value in given.items()})

    return called
