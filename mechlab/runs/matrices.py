"""The matrices of a layer as a run needs them: [in, out], heads side by side, in the model's own memory."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

ACTIVATIONS = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}

Affine = tuple[
    Float[Tensor, "_ _"], Float[Tensor, "_"] | None
]  # [in, out] and a bias for each output, or none


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
        cast = lambda x: None if x is None else x.to(dtype)
        return Layer(*(part and (cast(part[0]), cast(part[1])) for part in vars(self).values()))


def project(x: Float[Tensor, "copy pos in"], matrix: Affine) -> Float[Tensor, "copy pos out"]:
    """x W + b in the precision of W, back in the precision of x."""
    W, b = matrix
    rows = x.flatten(0, 1).to(W.dtype)
    found = rows @ W if b is None else torch.addmm(b, rows, W)
    return found.to(x.dtype).view(*x.shape[:2], -1)


def rotate(
    x: Float[Tensor, "copy head pos d_head"],
    turn: tuple[Float[Tensor, "all_pos turned"], Float[Tensor, "all_pos turned"]],
    first: int | Int[Tensor, "copy pos"],
) -> Float[Tensor, "copy head pos d_head"]:
    """Queries or keys turned by their positions: from `first` on, or as given. turn: cosines and sines."""
    where = slice(first, first + x.shape[2]) if isinstance(first, int) else first[:, None]
    cos, sin = (part[where] for part in turn)
    x, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    left, right = x.chunk(2, dim=-1)
    return torch.cat([x * cos + torch.cat([-right, left], -1) * sin, rest], -1)


def matrices_of(model, index: int) -> Layer:
    attn, mlp = model.blocks[index].attn, model.blocks[index].mlp

    def affine(owner, name: str, bias: str) -> Affine:
        W, b = getattr(owner, f"W_{name}").detach(), getattr(owner, f"b_{bias}", None)
        if W.ndim == 3:  # heads first
            W = W.flatten(0, 1) if name == "O" else W.transpose(0, 1).flatten(1)
        return W, None if b is None else b.detach().flatten()

    heads = [affine(attn, name, name) for name in "QKVO"]
    gate = affine(mlp, "gate", "gate") if model.cfg.gated_mlp else None
    return Layer(*heads, gate, affine(mlp, "in", "in"), affine(mlp, "out", "out"))


class Arithmetic:
    """What norms, heads and MLPs compute, from their matrices. A run (`Resume`) brings the model and its sizes."""

    def norm(self, x: Tensor) -> Tensor:
        x = self._centre(x)
        return x * self._scale(x)

    def _centre(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def _scale(self, x: Tensor) -> Tensor:
        """What a norm multiplies a stream by that is centred already."""
        return (x.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt()

    def held_norm_slope(self, x: Tensor, slope: Tensor) -> Tensor:
        """The gradient for the stream x where the norm's length is held, from one for what the norm makes of it."""
        return self._centre(slope) * self._scale(self._centre(x))

    def norm_slope(
        self, x: Float[Tensor, "copy pos d_model"], slope: Float[Tensor, "copy pos reader d_model"]
    ) -> Float[Tensor, "copy pos reader d_model"]:
        """The gradient for the stream x, from gradients for what the norm makes of it."""
        x = self._centre(x)
        scale = self._scale(x)
        y, scale = (x * scale)[:, :, None], scale[:, :, None]
        return self._centre(scale * (slope - y * (slope * y).mean(-1, keepdim=True)))

    def heads_of(
        self, x: Tensor, matrix: Affine, first: int | Tensor | None = None
    ) -> Float[Tensor, "copy head pos d_head"]:
        """One vector for each head; queries and keys turned by their positions: from `first` on, or as given."""
        found = project(x, matrix).unflatten(-1, (-1, self.d_head)).transpose(1, 2)
        return found if first is None or self.turn is None else rotate(found, self.turn, first)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, first: int = 0
    ) -> Float[Tensor, "copy pos head d_head"]:
        """What the heads hand to W_O. Query i looks at keys up to `first` + i."""
        count = q.shape[2]
        seen = torch.ones(count, first + count, dtype=torch.bool, device=q.device).tril(first)
        if k.shape[1] != v.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        z = F.scaled_dot_product_attention(
            q, k, v, attn_mask=None if count == 1 else seen, enable_gqa=q.shape[1] != k.shape[1]
        )
        return z.transpose(1, 2)

    def mlp(self, W: Layer, x: Float[Tensor, "copy pos d_model"]) -> Float[Tensor, "copy pos d_model"]:
        """What the MLP writes, from a stream after its norm."""
        if W.gate is None:
            return project(self.act(project(x, W.up)), W.down)
        return project(self.act(project(x, W.gate)) * project(x, W.up), W.down)

    def unembed(self, stream: Float[Tensor, "copy pos d_model"]) -> Float[Tensor, "copy pos d_vocab"]:
        return self.norm(stream) @ self.model.W_U + self.model.b_U
