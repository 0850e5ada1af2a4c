"""Where the weights of a Hugging Face model are in a bridge.

TransformerLens keeps queries, keys and values apart, and gate and up of an MLP, where Hugging Face's model
has one fused matrix; what it leaves under the fused matrix's own name is not used any more. How a family
fuses is found out by letting TransformerLens take numbered matrices apart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class Fused:
    """One matrix of Hugging Face's model that a bridge has as several.

    name:   of the module in Hugging Face's model; its weight is as the file has it
    parts:  the bridge's modules, in its order (queries, keys, values; or gate, up)
    places: for each part, where its numbers stand in the flat fused weight, [out in] of a linear map
    biases: the same for the fused bias, [out]
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Any, ...]
    places: tuple[Int[Tensor, "_ _"], ...]
    biases: tuple[Int[Tensor, "_"], ...]

    def joined(self, parts: Sequence[Float[Tensor, "..."] | None]) -> Float[Tensor, "..."]:
        """The fused weight of the parts' weights [out in], or bias of their biases; None is zero."""
        weights = any(part is not None and part.ndim > 1 for part in parts)
        places = self.places if weights else self.biases
        whole = torch.zeros(max(int(each.max()) for each in places) + 1, dtype=torch.float64)
        for part, place in zip(parts, places, strict=True):
            whole[place] = 0.0 if part is None else part.cpu().double()
        return whole.view(self.shape) if weights else whole

    def split(self, whole: Float[Tensor, "..."]) -> list[Float[Tensor, "_ _"]]:
        """A fused weight as one matrix [out in] for each part."""
        return [whole.flatten()[places.to(whole.device)] for places in self.places]


def theirs(model: "TransformerBridge") -> dict[str, torch.nn.Module]:
    """The modules of Hugging Face's model by the names that they have there."""
    found: dict[str, torch.nn.Module] = {}
    waiting = [("", model.original_model)]
    while waiting:
        name, module = waiting.pop()
        found[name] = module = inner(module)
        waiting += [(f"{name}.{part}".lstrip("."), each) for part, each in module.named_children()]
    return found


def named(model: "TransformerBridge") -> dict[str, torch.nn.Parameter]:
    """Parameters by the names that Hugging Face's model has for them; fused matrices are the old ones."""
    return {
        f"{place}.{name}".lstrip("."): parameter
        for place, module in theirs(model).items()
        for name, parameter in module.named_parameters(recurse=False)
    }


def is_transposed(module: Any) -> bool:
    """Whether a module keeps its matrix as [in out], as GPT-2's do; PyTorch has [out in]."""
    return type(inner(module)).__name__ == "Conv1D"


def linear(module: Any) -> Float[Tensor, "_ _"]:
    """The matrix [out in] of a linear map, in the model's own memory."""
    return module.weight.T if is_transposed(module) else module.weight


def fused_modules(model: "TransformerBridge") -> Iterator[Fused]:
    """Every matrix that the bridge has in parts."""
    names = {id(module): name for name, module in theirs(model).items()}
    for block in model.blocks:
        for owner in {id(each): each for each in block.modules()}.values():
            if hasattr(owner, "split_qkv_matrix"):
                split, kinds, name = owner.split_qkv_matrix, ("q", "k", "v"), owner.submodules["qkv"].name
            elif hasattr(owner, "split_gate_up_matrix"):
                split, kinds, name = owner.split_gate_up_matrix, ("gate", "in"), owner.fused_attr
            else:
                continue
            whole = inner(getattr(owner.original_component, name))
            with torch.random.fork_rng(devices=[]):  # new modules are filled at random first
                found = split(_Instead(owner.original_component, name, _numbered(whole)))
            parts = tuple(getattr(owner, kind) for kind in kinds)
            places = tuple(each.weight.detach().long() for each in found)
            biases = tuple(each.bias.detach().long() for each in found if each.bias is not None)
            yield Fused(names[id(whole)], tuple(whole.weight.shape), parts, places, biases)


def _numbered(whole: Any) -> torch.nn.Module:
    """A module like a fused one, whose numbers say where they stand."""
    stand_in = type(whole).__new__(type(whole))
    torch.nn.Module.__init__(stand_in)
    rows = whole.weight.shape[1 if is_transposed(whole) else 0]
    numbers = torch.arange(whole.weight.numel(), dtype=torch.float64).view(whole.weight.shape)
    stand_in.weight = torch.nn.Parameter(numbers, requires_grad=False)
    stand_in.bias = torch.nn.Parameter(torch.arange(rows, dtype=torch.float64), requires_grad=False)
    return stand_in


class _Instead:
    """A module with another one in the place of one of its parts."""

    def __init__(self, module: Any, name: str, other: Any):
        self.__dict__ |= {"_module": module, name: other}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def inner(module: Any) -> Any:
    """The module of Hugging Face's model inside a bridge."""
    while isinstance(getattr(module, "original_component", None), torch.nn.Module):
        module = module.original_component
    return module
