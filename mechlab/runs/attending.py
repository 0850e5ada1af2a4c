"""How heads look back: the scale and the cap of their scores, who is seen, how positions come in.

Families differ in all of these, and store them under different names. A layer's way is put together from what
the model's configuration says, and kept if it gives the pattern that the model itself had on a prompt.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from mechlab.runs.norms import Norm
from mechlab.runs.rotary import Turn, rotate, turn_of
from mechlab.runs.run import NotResumable, norm_over_heads

if TYPE_CHECKING:
    from transformer_lens import ActivationCache
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class Attending:
    """How the heads of a layer look back, beyond their matrices.

    scale:  what products of queries and keys are multiplied by
    turn:   of rotary positions, or None
    norms:  of queries and of keys, before they are turned; None where there are none
    whole:  whether these norms are over all heads together, and not for each alone
    cap:    scores s become cap · tanh(s / cap), or None
    window: how many positions are seen, the query's own included; None: all
    slopes: what a head's scores gain for each position of the key (ALiBi), or None
    """

    scale: float
    turn: Turn | None = None
    norms: tuple[Norm | None, Norm | None] = (None, None)
    whole: bool = False
    cap: float | None = None
    window: int | None = None
    slopes: Float[Tensor, "head"] | None = None

    @property
    def plain(self) -> bool:
        """Whether queries and keys are used as they are made."""
        return self.turn is None and self.norms == (None, None)

    def normed(
        self, site: str, x: Float[Tensor, "row its_head pos d_head"]
    ) -> Float[Tensor, "row its_head pos d_head"]:
        """Queries ("q") or keys ("k") after a norm over all heads together, where there is one."""
        norm = self.norms[site == "k"]
        if norm is None or not self.whole:
            return x
        return norm(x.transpose(1, 2).flatten(2)).unflatten(2, (x.shape[1], -1)).transpose(1, 2)

    def finished(
        self, site: str, x: Float[Tensor, "row its_head pos d_head"], places: slice
    ) -> Float[Tensor, "row its_head pos d_head"]:
        """Queries or keys as they are compared: after each head's norm, turned by their positions."""
        norm = self.norms[site == "k"]
        x = x if norm is None or self.whole else norm(x)
        return x if self.turn is None else rotate(x, self.turn, places)

    def attend(
        self,
        q: Float[Tensor, "row head query d_head"],
        k: Float[Tensor, "row kv_head pos d_head"],
        v: Float[Tensor, "row its_head pos d_head"],
    ) -> Float[Tensor, "row query head d_head"]:
        """What the heads hand to W_O; the queries are the last ones."""
        if k.shape[1] != v.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        if self.cap is not None:
            v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
            return (self.pattern(q, k).transpose(1, 2) @ v).transpose(1, 2)
        mask = None if q.shape[2] == 1 and self.window is None and self.slopes is None else self.mask(q, k)
        z = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=self.scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        return z.transpose(1, 2)

    def pattern(
        self, q: Float[Tensor, "row head query d_head"], k: Float[Tensor, "row kv_head pos d_head"]
    ) -> Float[Tensor, "row query head pos"]:
        """The attention of each head; the queries are the last ones, with the keys up to their own."""
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        fit = (q @ k.transpose(2, 3)) * self.scale
        fit = fit if self.cap is None else self.cap * torch.tanh(fit / self.cap)
        mask = self.mask(q, k)
        fit = fit + mask if mask.is_floating_point() else fit.masked_fill(~mask, float("-inf"))
        return fit.softmax(-1).transpose(1, 2)

    def mask(self, q: Tensor, k: Tensor) -> Tensor:
        """Which keys are seen: true or false, or what is added to the scores."""
        seen = _seen(q.shape[2], k.shape[2], self.window, q.device)
        if self.slopes is None:
            return seen
        gain = self.slopes.to(q)[:, None, None] * torch.arange(k.shape[2], device=q.device)
        return torch.where(seen, gain, float("-inf"))


def _seen(queries: int, keys: int, window: int | None, device: torch.device) -> Bool[Tensor, "query pos"]:
    seen = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return seen if window is None else seen.triu(keys - queries - window + 1)


def ways_of_attending(model: "TransformerBridge", seen: "ActivationCache", positions: int) -> list[Attending]:
    """How each layer's heads look back.

    seen: queries, keys and patterns of a prompt, as the hooks give them

    Raises `NotResumable` where no way that is known gives the pattern.
    """
    found, turns = [], {}
    kinds = getattr(model.original_model.config, "layer_types", None)
    for layer in range(model.cfg.n_layers):
        kind = kinds[layer] if kinds else ""
        if kind not in turns:
            turns[kind] = turn_of(model, positions, layer)
        name = f"blocks.{layer}.attn.hook_"
        q, k = (seen[f"{name}{site}"].transpose(1, 2) for site in "qk")
        for way in _guesses(model, layer, turns[kind]):
            every = slice(q.shape[2])
            ours = (way.finished(site, way.normed(site, x), every) for site, x in (("q", q), ("k", k)))
            if torch.allclose(way.pattern(*ours).transpose(1, 2), seen[f"{name}pattern"], atol=1e-4):
                found.append(way)
                break
        else:
            raise NotResumable(f"The fast engine does not know how layer {layer} of this model attends.")
    return found


def _guesses(model: "TransformerBridge", layer: int, turn: Turn | None) -> Iterator[Attending]:
    """What the configuration says, with each scale that it could mean."""
    attn, config = model.blocks[layer].attn, model.original_model.config
    inner: Any = attn.original_component
    q_norm, k_norm = (Norm.of(getattr(attn, name, None), model) for name in ("q_norm", "k_norm"))
    norms, wide = (q_norm, k_norm), norm_over_heads(model, layer)
    window, slopes = _window(inner, config, layer), None
    if model.cfg.positional_embedding_type == "alibi":
        slopes = _alibi_slopes(model.cfg.n_heads)
    known = getattr(inner, "scaling", None), getattr(inner, "inv_norm_factor", None)
    scales = [float(each) for each in (*known, model.cfg.d_head**-0.5, 1.0) if isinstance(each, float)]
    cap = getattr(inner, "attn_logit_softcapping", None)
    turns = [turn] if turn is None else [turn, turn._replace(neighbours=not turn.neighbours)]
    for scale in dict.fromkeys(scales):
        yield from (Attending(scale, each, norms, wide, cap, window, slopes) for each in turns)


def _window(inner: Any, config: Any, layer: int) -> int | None:
    """How many positions the heads of a layer see; None: all."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)
    if kinds is not None and not ("sliding" in kinds[layer] or kinds[layer] == "local"):
        return None
    return getattr(config, "sliding_window", None) or getattr(config, "window_size", None)


def _alibi_slopes(heads: int) -> Float[Tensor, "head"]:
    """Press et al. 2022: powers of 2^(−8/n) for n a power of two, those of 2n between them for the rest."""
    whole = 1 << (heads.bit_length() - 1)
    first = 2.0 ** (-8 / whole * torch.arange(1, whole + 1))
    rest = 2.0 ** (-4 / whole * (2 * torch.arange(heads - whole) + 1))
    return torch.cat([first, rest])
