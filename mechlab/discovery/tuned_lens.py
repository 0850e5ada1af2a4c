"""The tuned lens: a map for each layer, so that earlier streams can be read as if they were the last one.

Belrose et al. 2023 train the maps by gradient descent on the KL divergence to the model's own output. Here
they are fitted by least squares on the streams, in closed form: less work, but less close (notebook 21
measures it).
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.discovery.streams import residual_entries

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class TunedLens:
    """One affine map for each layer, from the stream on entering it to (the direction of) the last stream.

    The stream is divided by its root mean square, then becomes x + x @ weight + bias.
    """

    weight: Float[Tensor, "layer d_model d_model"]
    bias: Float[Tensor, "layer d_model"]

    def __call__(self, stream: Float[Tensor, "... d_model"], entry: int) -> Float[Tensor, "... d_model"]:
        """Carry a stream over to the last layer; the last entry stays. TransformerLens takes it as `lens`."""
        if entry == len(self.bias):
            return stream
        if not 0 <= entry < len(self.bias):
            raise ValueError(f"There is no entry {entry}: this lens has 0 to {len(self.bias)}.")
        unit = _unit(stream)
        return unit + unit @ self.weight[entry].to(stream) + self.bias[entry].to(stream)

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        model: "TransformerBridge",
        texts: Int[Tensor, "batch pos"],
        *,
        ridge: float = 0.001,
        skip: int = 4,
    ) -> "TunedLens":
        """Fit by ridge regression on the streams of `texts` after the first `skip` positions.

        ridge: penalty on the change from the plain logit lens, as a share of the mean variance. Twenty texts
        of 400 tokens take about 20 seconds on two cores; more tokens fit better.
        """
        d, layers = model.cfg.d_model, model.cfg.n_layers
        moments = torch.zeros(layers, 2 * d + 1, 2 * d + 1, dtype=torch.float64)
        for streams in residual_entries(model, texts, batch=16):
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
        weight, bias = zip(*(_ridge(m, d, ridge) for m in moments), strict=True)
        return cls(torch.stack(weight).float(), torch.stack(bias).float())

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file: weights as numbers of 8 bits, one scale a column; 10 MB for 30 layers."""
        from safetensors.torch import save_file

        scale = self.weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        small = (self.weight / scale).round().to(torch.int8)
        save_file({"weight": small, "scale": scale, "bias": self.bias}, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "TunedLens":
        """Read what `save` wrote."""
        from safetensors.torch import load_file

        parts = load_file(path)
        if set(parts) != {"weight", "scale", "bias"}:
            raise ValueError(
                f"{path} is no tuned lens: it holds {', '.join(sorted(parts))}, not weight, scale and bias."
            )
        return cls(parts["weight"] * parts["scale"], parts["bias"])


def _ridge(
    moments: Float[Tensor, "both both"], d: int, ridge: float
) -> tuple[Float[Tensor, "d_model d_model"], Float[Tensor, "d_model"]]:
    """Least squares from the moments of [x, 1, y]: a matrix and a bias."""
    count = moments[d, d]
    mean_x, mean_y = moments[:d, d] / count, moments[d, d + 1 :] / count
    xx = moments[:d, :d] / count - torch.outer(mean_x, mean_x)
    xy = moments[:d, d + 1 :] / count - torch.outer(mean_x, mean_y)
    weight = torch.linalg.solve(xx + ridge * xx.diagonal().mean() * torch.eye(d, dtype=xx.dtype), xy)
    return weight, mean_y - mean_x @ weight


def _unit(stream: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
    """Divided by its root mean square, as an RMS norm does."""
    return stream / stream.pow(2).mean(-1, keepdim=True).sqrt().clamp_min(1e-8)
