"""Rotary positions (Su et al. 2021): queries and keys turned by the positions they stand at.

A head's numbers are taken in pairs (i, i + n/2); a pair at position p is turned by the angle p ·
theta^(−2i/n). The inner product of a turned query and a turned key depends on how far apart they stand, and
on nothing else about their positions.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# Cosines and sines of every position.
Turn = tuple[Float[Tensor, "all_pos turned"], Float[Tensor, "all_pos turned"]]


def rotate(
    x: Float[Tensor, "*any pos d_head"],
    turn: Turn,
    places: slice | Int[Tensor, "*some_any pos"] = slice(None),
) -> Float[Tensor, "*any pos d_head"]:
    """Queries or keys turned by the positions they stand at, given as `places` of `turn`.

    In some models only the first `turned` numbers of a head are turned; the rest stays.
    """
    cos, sin = (part[places] for part in turn)
    x, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    left, right = x.chunk(2, dim=-1)
    return torch.cat([x * cos + torch.cat([-right, left], -1) * sin, rest], -1)


def turn_by(theta: float | int, positions: int, turned: int, device: torch.device | str = "cpu") -> Turn:
    """Cosines and sines for the first positions, from the base `theta` of the frequencies."""
    frequency = theta ** (-torch.arange(0, turned, 2, device=device) / turned)
    angle = torch.arange(positions, device=device)[:, None] * torch.cat([frequency, frequency])
    return angle.cos(), angle.sin()


def turn_of(model: "TransformerBridge", positions: int) -> Turn | None:
    """Cosines and sines of the first positions as the model itself has them.

    None where positions are not rotary.
    """
    names = [f"rotary_emb.hook_{part}" for part in ("cos", "sin")]
    if not all(name in model.hook_dict for name in names):
        return None
    tokens = torch.zeros(1, positions, dtype=torch.long, device=model.cfg.device)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=names, stop_at_layer=1)
    cos, sin = (cache[name].reshape(-1, *cache[name].shape[-2:])[0] for name in names)
    return cos, sin
