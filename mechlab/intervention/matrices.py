"""The matrices of a layer as a run needs them: [in, out], heads side by side, in the model's own memory."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
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
