"""The weights of a model and what it computes with them: norms, rotated heads, attention, MLPs.

Matrices are [in, out], heads side by side, in the model's own memory. For models of the GPT-2 and Llama kind;
the fast engine compares with the model's own logits before it believes them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mechlab.arguments import key_value_heads
from mechlab.runs.rotary import Turn, rotate, turn_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ACTIVATIONS = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}

# [in, out] and a bias for each output, or none.
Affine = tuple[Float[Tensor, "_ _"], Float[Tensor, "_"] | None]


@dataclass(frozen=True)
class Layer:
    """The matrices of one layer, [in, out], heads side by side: the model's own memory, not a copy.

    A matrix comes with its bias, or None. `gate` is None where the MLP has none.
    """

    Q: Affine
    K: Affine
    V: Affine
    out: Affine
    gate: Affine | None
    up: Affine
    down: Affine

    def to(self, dtype: torch.dtype) -> "Layer":
        def cast(part: Affine) -> Affine:
            W, b = part
            return W.to(dtype), None if b is None else b.to(dtype)

        parts = {name: part and cast(part) for name, part in vars(self).items()}
        return replace(self, **parts)


def project(x: Float[Tensor, "copy pos in"], matrix: Affine) -> Float[Tensor, "copy pos out"]:
    """x W + b in the precision of W, back in the precision of x."""
    W, b = matrix
    rows = x.flatten(0, 1).to(W.dtype)
    found = rows @ W if b is None else torch.addmm(b, rows, W)
    return found.to(x.dtype).view(*x.shape[:2], -1)


def layer_matrices(model: "TransformerBridge", index: int) -> Layer:
    """The matrices of one layer."""
    attn, mlp = model.blocks[index].attn, model.blocks[index].mlp

    def affine(owner, name: str, bias: str) -> Affine:
        W, b = getattr(owner, f"W_{name}").detach(), getattr(owner, f"b_{bias}", None)
        if W.ndim == 3:  # heads first
            W = W.flatten(0, 1) if name == "O" else W.transpose(0, 1).flatten(1)
        return W, None if b is None else b.detach().flatten()

    heads = [affine(attn, name, name) for name in "QKVO"]
    gate = affine(mlp, "gate", "gate") if model.cfg.gated_mlp else None
    return Layer(*heads, gate, affine(mlp, "in", "in"), affine(mlp, "out", "out"))


@dataclass(frozen=True)
class Weights:
    """All that a forward pass multiplies with, and how it is done.

    heads, kv_heads, d_head: of queries, of keys and values, and the size of one
    act, centred, eps: the MLP's activation; whether norms subtract the mean; what they add to the mean square
    turn: of rotary positions, or None
    """

    layers: list[Layer]
    W_U: Float[Tensor, "d_model d_vocab"]
    b_U: Float[Tensor, "d_vocab"]
    heads: int
    kv_heads: int
    d_head: int
    act: Callable[[Tensor], Tensor]
    centred: bool
    eps: float
    turn: Turn | None

    @classmethod
    def of(cls, model: "TransformerBridge", positions: int) -> "Weights":
        """Those of a model, for prompts of at most so many positions."""
        cfg = model.cfg
        return cls(
            [layer_matrices(model, layer) for layer in range(cfg.n_layers)],
            model.W_U,
            model.b_U,
            cfg.n_heads,
            key_value_heads(model),
            cfg.d_head,
            ACTIVATIONS[cfg.act_fn],
            str(cfg.normalization_type).startswith("LN"),
            cfg.eps,
            turn_of(model, positions),
        )

    def norm(self, x: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """The stream as a layer reads it: divided by its root mean square.

        Its mean is taken off where the model does so.
        """
        x = self._centre(x)
        return x * self._scale(x)

    def _centre(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def _scale(self, x: Tensor) -> Tensor:
        """What a norm multiplies a stream by that is centred already."""
        return (x.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt()

    def norm_slope(
        self, x: Float[Tensor, "row pos d_model"], slope: Float[Tensor, "row pos reader d_model"]
    ) -> Float[Tensor, "row pos reader d_model"]:
        """The gradient for the stream x, from gradients for what the norm makes of it."""
        x = self._centre(x)
        scale = self._scale(x)
        y, scale = (x * scale)[:, :, None], scale[:, :, None]
        return self._centre(scale * (slope - y * (slope * y).mean(-1, keepdim=True)))

    def heads_of(
        self, x: Float[Tensor, "row pos d_model"], matrix: Affine, places: slice | Tensor | None = None
    ) -> Float[Tensor, "row head pos d_head"]:
        """One vector for each head; queries and keys turned by their positions, which `places` says."""
        found = project(x, matrix).unflatten(-1, (-1, self.d_head)).transpose(1, 2)
        return found if places is None or self.turn is None else rotate(found, self.turn, places)

    def attend(
        self,
        q: Float[Tensor, "row head query d_head"],
        k: Float[Tensor, "row kv_head pos d_head"],
        v: Float[Tensor, "row its_head pos d_head"],
    ) -> Float[Tensor, "row query head d_head"]:
        """What the heads hand to W_O.

        The queries are the last ones; each looks at its own position and earlier ones.
        """
        count, first = q.shape[2], k.shape[2] - q.shape[2]
        seen = torch.ones(count, first + count, dtype=torch.bool, device=q.device).tril(first)
        if k.shape[1] != v.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        z = F.scaled_dot_product_attention(
            q, k, v, attn_mask=None if count == 1 else seen, enable_gqa=q.shape[1] != k.shape[1]
        )
        return z.transpose(1, 2)

    def pattern(
        self, q: Float[Tensor, "row head query d_head"], k: Float[Tensor, "row kv_head pos d_head"]
    ) -> Float[Tensor, "row query head pos"]:
        """The attention of each head: softmax of scaled products of queries and keys.

        The queries are the last ones, with the keys up to their own.
        """
        k = k.repeat_interleave(self.heads // k.shape[1], dim=1)
        fit = (q @ k.transpose(2, 3)) / self.d_head**0.5
        future = torch.ones_like(fit, dtype=torch.bool).triu(1 + k.shape[2] - q.shape[2])
        return fit.masked_fill(future, float("-inf")).softmax(-1).transpose(1, 2)

    def mlp(self, W: Layer, x: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
        """What the MLP writes, from a stream after its norm."""
        if W.gate is None:
            return project(self.act(project(x, W.up)), W.down)
        return project(self.act(project(x, W.gate)) * project(x, W.up), W.down)

    def unembed(self, stream: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_vocab"]:
        """Logits of a last stream."""
        return self.norm(stream) @ self.W_U + self.b_U


def held_norm_slope(
    model: "TransformerBridge", x: Float[Tensor, "*any d_model"], slope: Float[Tensor, "*any d_model"]
) -> Float[Tensor, "*any d_model"]:
    """The gradient for the last stream x where the norm's length is held.

    It is found from the gradient for what the norm makes of x.
    """
    if str(model.cfg.normalization_type).startswith("LN"):
        x, slope = (each - each.mean(-1, keepdim=True) for each in (x, slope))
    return slope * (x.pow(2).mean(-1, keepdim=True) + model.cfg.eps).rsqrt()
