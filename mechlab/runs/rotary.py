"""Rotary positions (Su et al. 2021): queries and keys turned by the positions they stand at.

A head's numbers are taken in pairs (i, i + n/2); a pair at position p is turned by the angle p ·
theta^(−2i/n). The inner product of a turned query and a turned key depends on how far apart they stand, and
on nothing else about their positions.
"""

import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Turn(NamedTuple):
    """Cosines and sines of every position, and which numbers of a head are turned together.

    neighbours: pairs (2i, 2i + 1), as in GPT-J, instead of (i, i + n/2)
    """

    cos: Float[Tensor, "all_pos turned"]
    sin: Float[Tensor, "all_pos turned"]
    neighbours: bool = False


def rotate(
    x: Float[Tensor, "*any pos d_head"],
    turn: Turn,
    places: slice | Int[Tensor, "*some_any pos"] = slice(None),
) -> Float[Tensor, "*any pos d_head"]:
    """Queries or keys turned by the positions they stand at, given as `places` of `turn`.

    In some models only the first `turned` numbers of a head are turned; the rest stays.
    """
    cos, sin = turn.cos[places], turn.sin[places]
    x, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    if turn.neighbours:
        crossed = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    else:
        left, right = x.chunk(2, dim=-1)
        crossed = torch.cat([-right, left], -1)
    return torch.cat([x * cos + crossed * sin, rest], -1)


def turn_by(theta: float | int, positions: int, turned: int, device: torch.device | str = "cpu") -> Turn:
    """Cosines and sines for the first positions, from the base `theta` of the frequencies."""
    frequency = theta ** (-torch.arange(0, turned, 2, device=device) / turned)
    angle = torch.arange(positions, device=device)[:, None] * torch.cat([frequency, frequency])
    return Turn(angle.cos(), angle.sin())


def turn_of(model: "TransformerBridge", positions: int, layer: int = 0) -> Turn | None:
    """Cosines and sines of the first positions as a layer of the model itself has them.

    None where positions are not rotary. Layers differ in some models (Gemma 3: local and global ones).
    """
    rotary: Any = getattr(model, "rotary_emb", None)
    if rotary is None:
        return _of_attention(model, positions, layer)
    rotary = getattr(rotary, "original_component", rotary)
    places = torch.arange(positions, device=model.cfg.device)[None]
    like = torch.zeros(1, 1, 1, device=model.cfg.device, dtype=model.W_E.dtype)
    kinds = getattr(model.original_model.config, "layer_types", None)
    several = "layer_type" in inspect.signature(rotary.forward).parameters
    with torch.no_grad():
        cos, sin = rotary(like, places, **({"layer_type": kinds[layer]} if several and kinds else {}))
    return Turn(*(each.reshape(-1, *each.shape[-2:])[0] for each in (cos, sin)))


def _of_attention(model: "TransformerBridge", positions: int, layer: int) -> Turn | None:
    """The sines and cosines that GPT-J's attention keeps: a row for each position, neighbours together."""
    kept = getattr(model.blocks[layer].attn.original_component, "embed_positions", None)
    if not isinstance(kept, Tensor):
        return None
    sin, cos = kept[:positions].to(model.W_E).repeat_interleave(2, dim=-1).chunk(2, dim=-1)
    return Turn(cos, sin, neighbours=True)
