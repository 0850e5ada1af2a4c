"""The tuned lens: a map for each layer, so that earlier streams can be read as if they were the last one.

Belrose et al. 2023 train the maps by gradient descent on the KL divergence to the model's own output. Here
they are fitted by least squares on the streams, in closed form: less work, but less close (notebook 21
measures it).
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.discovery.streams import residual_entries
from mechlab.loading.files import check_shapes, read_names, read_tensors
from mechlab.loading.origin import Origin
from mechlab.tokens import Prompts, texts_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class TunedLens:
    """One affine map for each layer, from the stream on entering it to (the direction of) the last stream.

    The stream is divided by its root mean square, then becomes x + x @ weight + bias, in float32 or better.
    origin: the model that it was fitted to, where that is known; `check` refuses another one
    """

    weight: Float[Tensor, "layer d_model d_model"]
    bias: Float[Tensor, "layer d_model"]
    origin: Origin | None = None

    def check(self, model: "TransformerBridge") -> None:
        """Raise a `ValueError` where the lens was fitted to other weights, or has other sizes."""
        layers, width = self.bias.shape
        if (layers, width) != (model.cfg.n_layers, model.cfg.d_model):
            raise ValueError(
                f"This lens has {layers} layers of width {width}; the model has {model.cfg.n_layers} of "
                f"width {model.cfg.d_model}."
            )
        if self.origin is not None:
            self.origin.check(model, "This lens")

    def __call__(self, stream: Float[Tensor, "... d_model"], entry: int) -> Float[Tensor, "... d_model"]:
        """Carry a stream over to the last layer; the last entry stays. TransformerLens takes it as `lens`."""
        if entry == len(self.bias):
            return stream
        if not 0 <= entry < len(self.bias):
            raise ValueError(f"There is no entry {entry}: this lens has 0 to {len(self.bias)}.")
        unit = _unit(stream)
        found = unit + unit @ self.weight[entry].to(unit) + self.bias[entry].to(unit)
        return found.to(stream.dtype)

    @classmethod
    @torch.inference_mode(False)
    @torch.no_grad()
    def fit(
        cls,
        model: "TransformerBridge",
        texts: Prompts,
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
        for streams in residual_entries(model, texts_of(model, texts), batch=16):
            unit = _unit(streams[:, :, skip:]).flatten(1, 2)  # [entry, token, d_model]
            if not torch.isfinite(unit).all():
                raise ValueError(
                    "There are NaN or infinite activations in these texts: nothing can be fitted to them."
                )
            ones = torch.ones(unit.shape[1], 1, device=unit.device, dtype=unit.dtype)
            for layer in range(layers):
                both = torch.cat([unit[layer], ones, unit[-1] - unit[layer]], dim=1)
                moments[layer] += (both.T @ both).cpu().double()
        count = int(moments[0, d, d])
        if count < 2 * d:
            raise ValueError(
                f"{count} tokens cannot fit maps of width {d}: give at least {2 * d}, better ten times that."
            )
        weight, bias = zip(*(_ridge(m, d, ridge) for m in moments), strict=True)
        return cls(torch.stack(weight).float(), torch.stack(bias).float(), Origin.of(model))

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file: weights as numbers of 8 bits, one scale a column; 10 MB for 30 layers."""
        from safetensors.torch import save_file

        scale = self.weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        small = (self.weight / scale).round().to(torch.int8)
        notes = None if self.origin is None else {"origin": self.origin.text()}
        save_file({"weight": small, "scale": scale, "bias": self.bias}, path, notes)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "TunedLens":
        """Read what `save` wrote. Raises a `ValueError` for any other file."""
        parts = read_tensors(path, "a tuned lens", needs=("weight", "scale", "bias"))
        if parts["bias"].ndim != 2:
            raise ValueError(f"{path}: bias is {tuple(parts['bias'].shape)}, not [layer, d_model].")
        layers, width = parts["bias"].shape
        check_shapes(path, parts, {"weight": (layers, width, width), "scale": (layers, 1, width)})
        origin = Origin.read(read_names(path).get("origin"))
        return cls(parts["weight"].float() * parts["scale"].float(), parts["bias"].float(), origin)


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
    """Divided by its root mean square, as an RMS norm does; in float32 or better."""
    stream = stream.to(torch.promote_types(stream.dtype, torch.float32))
    return stream / stream.pow(2).mean(-1, keepdim=True).sqrt().clamp_min(1e-8)
