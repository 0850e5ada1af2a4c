"""From the stream to a logit: what a part of the stream adds to it, through every norm on the way.

A norm divides by a length that all parts of its input make together. Held at the value it had, it is a linear
map, and so the parts add up. The last norm stands before the unembedding; some models (Gemma 2 and 3, OLMo 2)
have another one behind each attention and each MLP, which what a head or a neuron writes goes through first.
A soft cap on the logits (Gemma 2) is not linear: what is attributed is the logit before the cap.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.runs.norms import wide

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class HeldNorm:
    """A norm whose divisor is held at what it was in a run.

    scale:   what it divides by, for each prompt;  centred: whether it takes the mean away first (LayerNorm)
    weight, bias: what it multiplies with and adds; None where they are folded into the next matrix
    """

    scale: Float[Tensor, "batch 1"]
    centred: bool
    weight: Float[Tensor, "d_model"] | None
    bias: Float[Tensor, "d_model"] | None

    def shape(self, x: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """What it makes of a part of its input before it divides; without the bias, which no part writes."""
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        return x if self.weight is None else x * self.weight

    def back(self, slope: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_model"]:
        """From what is read of its output to what is then read of its input."""
        slope = slope / self.scale if self.weight is None else slope * self.weight / self.scale
        return slope - slope.mean(-1, keepdim=True) if self.centred else slope

    def added(self, slope: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch"]:
        """What its bias adds to what is read of its output."""
        return torch.zeros_like(slope[:, 0]) if self.bias is None else slope @ self.bias


def held(norm: Any, scale: Float[Tensor, "batch 1"] | None = None) -> HeldNorm:
    """A norm of the model, held at a scale (default: 1, where only the direction matters)."""
    weight, bias = (getattr(norm, name, None) for name in ("weight", "bias"))
    if isinstance(weight, Tensor):
        weight = wide(weight.detach()) + float(norm.uses_weight_offset)  # Gemma multiplies with 1 + weight
        weight = None if (weight == 1).all() else weight
    if isinstance(bias, Tensor):
        bias = wide(bias.detach()) if bias.any() else None
    scale = torch.ones(1, 1, device=None if weight is None else weight.device) if scale is None else scale
    return HeldNorm(scale, not norm.uses_rms_norm, weight, bias)


def last_norm(model: "TransformerBridge", scale: Float[Tensor, "batch 1"] | None = None) -> HeldNorm:
    """The norm before the unembedding, held; a model that reads its last stream otherwise is refused."""
    norm = getattr(model, "ln_final", None)
    if not isinstance(norm, torch.nn.Module):
        raise ValueError(
            "This model has no norm between its last stream and the unembedding, or another one than is "
            "known here: what its parts add to a logit cannot be told."
        )
    return held(norm, scale)


def scale_of_logits(made: Float[Tensor, "batch d_vocab"], given: Float[Tensor, "batch d_vocab"]) -> float:
    """The number that the model multiplies its logits with at the end (Granite, Cohere); 1 for a soft cap."""
    rounded, made, given = torch.finfo(given.dtype).eps, wide(made), wide(given)
    scale = (made * given).sum() / made.pow(2).sum()
    fits = (made * scale - given).abs().max() <= 4 * rounded * given.abs().max()
    return scale.item() if fits and abs(scale - 1) > 1e-3 else 1.0


def norm_behind(model: "TransformerBridge", layer: int, name: str) -> Any:
    """The norm that what attention ("ln1_post") or the MLP ("ln2_post") writes goes through, or None."""
    found = getattr(model.blocks[layer], name, None)
    return found if isinstance(found, torch.nn.Module) else None


def cap_of(model: "TransformerBridge") -> Callable[[Tensor], Tensor] | None:
    """What the model does to its logits at the very end, such as a soft cap; None where it does nothing."""
    change = getattr(getattr(model, "adapter", None), "apply_output_logits_transform", None)
    if not callable(change):
        return None
    some = torch.linspace(-40, 40, 9)
    return None if torch.equal(change(some), some) else change


def columns(model: "TransformerBridge", ids: Int[Tensor, "batch"]) -> Float[Tensor, "batch d_model"]:
    """What the logits of some tokens read of the last norm's output."""
    return wide(model.W_U.detach()[:, ids].T)


def close(found: Tensor, wanted: Tensor, model: "TransformerBridge", size: Tensor | None = None) -> bool:
    """Whether two computations of one thing agree, as well as the model's precision allows."""
    rough = model.W_U.dtype in (torch.float16, torch.bfloat16)
    size = wide(wanted).norm(dim=-1) if size is None else size
    error = wide(found) - wide(wanted)
    error = error.norm(dim=-1) if error.ndim > size.ndim else error.abs()
    return bool((error <= (0.08 if rough else 1e-3) * size + 1e-6).all())
