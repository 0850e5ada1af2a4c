"""What a technique is given, looked at once: layers, heads and names, with one sentence for each refusal."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Head = tuple[int, int]  # layer, head within the layer


def one_of(name: str, value: object, options: Iterable) -> None:
    """Raise a `ValueError` that lists the options unless `value` is one of them."""
    options = list(options)
    if value not in options:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, options))}.")


def check_layer(model: "TransformerBridge", layer: int) -> int:
    """The layer, if the model has it."""
    if not 0 <= layer < model.cfg.n_layers:
        raise ValueError(f"There is no layer {layer}: this model has layers 0 to {model.cfg.n_layers - 1}.")
    return int(layer)


def layers_of(model: "TransformerBridge", layers: Sequence[int] | None = None) -> list[int]:
    """The layers asked for, or all if none were named.

    One that is not there, or no layer at all, is refused.
    """
    chosen = list(range(model.cfg.n_layers)) if layers is None else [int(layer) for layer in layers]
    if not chosen or not all(0 <= layer < model.cfg.n_layers for layer in chosen):
        raise ValueError(f"layers is {chosen}: the model has layers 0 to {model.cfg.n_layers - 1}.")
    return chosen


def check_head(model: "TransformerBridge", head: Head) -> Head:
    """The head (layer, index), if the model has it."""
    layer, index = head
    if not (0 <= layer < model.cfg.n_layers and 0 <= index < model.cfg.n_heads):
        raise ValueError(
            f"There is no head {layer}.{index}: layers go from 0 to {model.cfg.n_layers - 1}, "
            f"heads from 0 to {model.cfg.n_heads - 1}."
        )
    return int(layer), int(index)


def all_heads(model: "TransformerBridge") -> list[Head]:
    """Every head, in the order of layers."""
    return [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]


def key_value_heads(model: "TransformerBridge") -> int:
    """How many heads keys and values have: fewer than queries have, where several query heads share one."""
    return model.cfg.n_key_value_heads or model.cfg.n_heads


def layer_of(name: str) -> int:
    """The layer in the name of a hook: 4 for "blocks.4.attn.hook_z"."""
    return int(name.split(".")[1])
