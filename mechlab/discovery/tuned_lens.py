"""The tuned lens: an affine map for each layer, so that earlier streams can be read as if they were the last one.

Belrose et al. 2023 train the maps by gradient descent on the KL divergence to the model's own output. Here they are
fitted by least squares on the streams, in closed form: less work, and most of the way (notebook 21 measures it).
"""

import os
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.discovery.lens import residual_entries


@dataclass(frozen=True)
class TunedLens:
    """One affine map for each layer, from the stream on entering it to (the direction of) the last stream.

    left, right: the map less the identity, as two thin matrices: h + (h @ left) @ right + bias, h divided by its length
    """

    left: Float[Tensor, "layer d_model rank"]
    right: Float[Tensor, "layer rank d_model"]
    bias: Float[Tensor, "layer d_model"]

    def __call__(self, stream: Float[Tensor, "... d_model"], entry: int) -> Float[Tensor, "... d_model"]:
        """Carry a stream over to the last layer; the last entry stays as it is. TransformerLens takes this as `lens=`."""
        if entry == len(self.bias):
            return stream
        if not 0 <= entry < len(self.bias):
            raise ValueError(f"There is no entry {entry}: this lens has 0 to {len(self.bias)}.")
        unit = _unit(stream)
        left, right, bias = (part[entry].to(stream) for part in (self.left, self.right, self.bias))
        return unit + unit @ left @ right + bias

    @classmethod
    def fit(
        cls,
        model,
        texts: Int[Tensor, "text pos"],
        *,
        rank: int | None = None,
        ridge: float = 0.01,
        skip: int = 4,
    ):
        """Fit by ridge regression, in closed form, on the streams of `texts` after the first `skip` positions.

        The published lens is trained by gradient descent on the KL divergence (Belrose et al. 2023); least squares on
        the streams is a cheaper stand-in: a second of arithmetic for each layer. ridge: penalty, as a share of the mean
        variance. rank: keep only so many directions of the correction (default all).
        """
        d, layers = model.cfg.d_model, model.cfg.n_layers
        moments = torch.zeros(layers, 2 * d + 1, 2 * d + 1, dtype=torch.float64)
        for streams in residual_entries(model, texts, batch=8):
            unit = _unit(streams[:, :, skip:]).flatten(1, 2)  # [entry, token, d_model]
            if not torch.isfinite(unit).all():
                raise ValueError(
                    "There are NaN or infinite activations in these texts: nothing can be fitted to them."
                )
            ones = torch.ones(unit.shape[1], 1, device=unit.device)
            for layer in range(layers):
                both = torch.cat([unit[layer], ones, unit[-1] - unit[layer]], dim=1)
                moments[layer] += (both.T @ both).double().cpu()
        count = int(moments[0, d, d])
        if count < 2 * d:
            raise ValueError(
                f"{count} tokens cannot fit maps of width {d}: give at least {2 * d}, better ten times that."
            )
        left, right, bias = zip(*(_ridge(m, d, ridge, rank or d) for m in moments), strict=True)
        return cls(*(torch.stack(part).float() for part in (left, right, bias)))

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file, in float16."""
        from safetensors.torch import save_file

        parts = {"left": self.left, "right": self.right, "bias": self.bias}
        save_file({name: part.half().contiguous() for name, part in parts.items()}, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "TunedLens":
        """Read what `save` wrote. `ml.lens.TunedLens.load(ml.data / ...)` for the one in the repository."""
        from safetensors.torch import load_file

        parts = load_file(path)
        if set(parts) != {"left", "right", "bias"}:
            raise ValueError(
                f"{path} is no tuned lens: it holds {', '.join(sorted(parts))}, not left, right and bias."
            )
        return cls(**{name: part.float() for name, part in parts.items()})


def _ridge(
    moments: Float[Tensor, "two two"], d: int, ridge: float, rank: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Least squares from moments of [x, 1, y]: matrices left @ right and a bias, of reduced rank."""
    count = moments[d, d]
    mean_x, mean_y = moments[:d, d] / count, moments[d, d + 1 :] / count
    xx = moments[:d, :d] / count - torch.outer(mean_x, mean_x)
    xy = moments[:d, d + 1 :] / count - torch.outer(mean_x, mean_y)
    solved = torch.linalg.solve(xx + ridge * xx.diagonal().mean() * torch.eye(d, dtype=xx.dtype), xy)
    if rank < d:  # keep the directions in which the fitted values vary most (reduced-rank regression)
        fitted = solved.T @ xx @ solved
        top = torch.linalg.eigh(fitted).eigenvectors[:, -rank:]
        left, right = solved @ top, top.T
    else:
        left, right = solved, torch.eye(d, dtype=solved.dtype)
    return left, right, mean_y - mean_x @ left @ right


def _unit(stream: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
    """Divided by its root mean square, as an RMS norm does."""
    return stream / stream.pow(2).mean(-1, keepdim=True).sqrt().clamp_min(1e-8)
