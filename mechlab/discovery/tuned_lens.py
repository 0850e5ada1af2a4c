"""The affine lens: a map for each layer, so that earlier streams can be read as if they were the last one.

Two ways to find the maps. `fit` makes streams like the last stream, by least squares in closed form (Yom Din
et al. 2023). `tune` makes the answers like the model's own, by gradient descent on the KL divergence: the
tuned lens of Belrose et al. 2023, here started from least squares. Notebook 21 compares them.
"""

import os
from collections.abc import Callable, Iterable, Sequence
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
class AffineLens:
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
    ) -> "AffineLens":
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

    @torch.inference_mode(False)
    def tune(
        self,
        model: "TransformerBridge",
        texts: Prompts,
        layers: Sequence[int],
        *,
        steps: int = 40,
        tokens: int = 128,
        rate: float = 0.001,
        skip: int = 4,
        seed: int = 0,
    ) -> "AffineLens":
        """The same lens with the maps of `layers` trained: Adam on KL(model ‖ lens), averaged over tokens.

        Each step draws `tokens` positions of `texts` after the first `skip`. With few of them the map learns
        them by heart: compare `lens_quality` on texts that it has not seen. Belrose et al. 2023 start from
        the identity, and take 250 steps of 262,144 tokens.
        """
        from transformer_lens.tools.analysis import logit_readout

        self.check(model)
        with torch.no_grad():
            kept = [*layers, model.cfg.n_layers]
            batches = residual_entries(model, texts_of(model, texts), batch=16)
            streams = torch.cat([each[kept, :, skip:] for each in batches], dim=1).flatten(1, 2)
        read = lambda x: logit_readout(model, x, return_type="log_probs", enable_grad=True).values
        weight, bias = self.weight.clone(), self.bias.clone()
        for place, layer in enumerate(layers):
            generator = torch.Generator().manual_seed(seed)
            drawn = [torch.randint(streams.shape[1], (tokens,), generator=generator) for _ in range(steps)]
            pairs = ((_unit(streams[place, rows]), streams[-1, rows]) for rows in drawn)
            weight[layer], bias[layer] = _descended(read, pairs, weight[layer], bias[layer], rate)
        return AffineLens(weight, bias, self.origin)

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file: weights as numbers of 8 bits, one scale a column; 10 MB for 30 layers."""
        from safetensors.torch import save_file

        scale = self.weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        small = (self.weight / scale).round().to(torch.int8)
        notes = None if self.origin is None else {"origin": self.origin.text()}
        save_file({"weight": small, "scale": scale, "bias": self.bias}, path, notes)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "AffineLens":
        """Read what `save` wrote. Raises a `ValueError` for any other file."""
        parts = read_tensors(path, "an affine lens", needs=("weight", "scale", "bias"))
        if parts["bias"].ndim != 2:
            raise ValueError(f"{path}: bias is {tuple(parts['bias'].shape)}, not [layer, d_model].")
        layers, width = parts["bias"].shape
        check_shapes(path, parts, {"weight": (layers, width, width), "scale": (layers, 1, width)})
        origin = Origin.read(read_names(path).get("origin"))
        return cls(parts["weight"].float() * parts["scale"].float(), parts["bias"].float(), origin)


def _descended(
    read: Callable[[Tensor], Tensor],
    pairs: Iterable[tuple[Float[Tensor, "token d_model"], Float[Tensor, "token d_model"]]],
    weight: Float[Tensor, "d_model d_model"],
    bias: Float[Tensor, "d_model"],
    rate: float,
) -> tuple[Float[Tensor, "d_model d_model"], Float[Tensor, "d_model"]]:
    """A map after a step of Adam, on the KL, for each pair of a scaled stream and the last one."""
    weight, bias = (torch.nn.Parameter(part.clone()) for part in (weight, bias))
    adam = torch.optim.Adam([weight, bias], rate)
    for x, last in pairs:
        final = read(last).detach()
        found = read((x + x @ weight.to(x) + bias.to(x)).to(last.dtype))
        kl = (final.exp() * (final - found)).sum(-1).mean()
        weight.grad, bias.grad = torch.autograd.grad(kl, [weight, bias])
        adam.step()
    return weight.detach(), bias.detach()


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
