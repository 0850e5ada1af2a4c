"""Norms: what a layer divides by before it reads the stream, and what it makes of a small change.

LayerNorm takes the mean away, RMS norm does not; both may carry a weight and a bias. What a norm of a model
does is found out by trying, since families store the same thing differently (Gemma keeps w and uses 1 + w).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def wide(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """In single precision at least: sums of numbers of 16 bits are not taken in 16 bits."""
    return x if x.dtype == torch.float64 else x.float()


@dataclass(frozen=True)
class Norm:
    """x ↦ weight · (x − mean) / root of the mean square + bias, over the last axis.

    centred: whether the mean is taken off; weight, bias: None where they change nothing
    """

    centred: bool
    eps: float
    weight: Float[Tensor, "width"] | None = None
    bias: Float[Tensor, "width"] | None = None

    def __call__(self, x: Float[Tensor, "*any width"]) -> Float[Tensor, "*any width"]:
        x = self._centre(x)
        x = x * self._scale(x)
        x = x if self.weight is None else x * self.weight
        return x if self.bias is None else x + self.bias

    def slope(
        self, x: Float[Tensor, "*#any width"], slope: Float[Tensor, "*#any width"]
    ) -> Float[Tensor, "*#any width"]:
        """The gradient for x, from the gradient for what the norm makes of it."""
        x, slope = wide(x), wide(slope)
        return self._through(x, slope if self.weight is None else slope * self.weight)

    def moved(
        self, x: Float[Tensor, "*#any width"], change: Float[Tensor, "*#any width"]
    ) -> Float[Tensor, "*#any width"]:
        """How the output changes to first order when x changes by a little."""
        found = self._through(wide(x), wide(change))
        return found if self.weight is None else found * self.weight

    def held(
        self, x: Float[Tensor, "*#any width"], change: Float[Tensor, "*#any width"]
    ) -> Float[Tensor, "*#any width"]:
        """How the output changes when x changes and the length it divides by is held."""
        found = self._centre(wide(change)) * self._scale(self._centre(wide(x)))
        return found if self.weight is None else found * self.weight

    def held_slope(
        self, x: Float[Tensor, "*#any width"], slope: Float[Tensor, "*#any width"]
    ) -> Float[Tensor, "*#any width"]:
        """The gradient for x where the length is held."""
        slope = wide(slope) if self.weight is None else wide(slope) * self.weight
        return self._centre(slope) * self._scale(self._centre(wide(x)))

    def secant(
        self,
        x: Float[Tensor, "*any width"],
        y: Float[Tensor, "*any width"],
        slope: Float[Tensor, "*row width"],
    ) -> tuple[Float[Tensor, "*row width"], Float[Tensor, "*row"]]:
        """slope · (norm(x) − norm(y)) in two parts: a slope for x − y, and what the other length comes to.

        The slope holds the length at the mean of both; together the parts are exact.
        """
        slope = wide(slope) if self.weight is None else wide(slope) * self.weight
        x, y = self._centre(wide(x)), self._centre(wide(y))
        ours, theirs = self._scale(x), self._scale(y)
        shorter = (slope * (x + y) / 2 * (ours - theirs)).sum(-1)
        return self._centre(slope * (ours + theirs) / 2), shorter

    def _through(self, x: Tensor, each: Tensor) -> Tensor:
        """The norm's derivative without its weight: symmetric, so it serves both ways."""
        x = self._centre(x)
        scale = self._scale(x)
        y = x * scale
        return self._centre(scale * (each - y * (each * y).mean(-1, keepdim=True)))

    def _centre(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def _scale(self, x: Tensor) -> Tensor:
        """What a stream that is centred already is multiplied by."""
        return (x.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt()

    @classmethod
    def of(cls, module: Any, model: "TransformerBridge") -> "Norm | None":
        """What a norm of a model does; None where there is no module.

        Raises a `ValueError` for a module that does something else.
        """
        if module is None:
            return None
        inner = getattr(module, "original_component", module)
        eps = next(
            (getattr(inner, name) for name in ("variance_epsilon", "eps") if hasattr(inner, name)), None
        )
        width = inner.weight.shape[-1] if getattr(inner, "weight", None) is not None else model.cfg.d_model
        chance = torch.Generator().manual_seed(0)
        x = (torch.randn(2, 4, width, generator=chance) + 0.5).to(model.W_E)
        unknown = f"{type(inner).__name__} is no norm of a known kind."
        try:
            with torch.no_grad():
                there, back, shifted = inner(x), inner(-x), inner(x + 1)
        except (RuntimeError, TypeError, IndexError):  # another number of axes, or more inputs
            raise ValueError(unknown) from None
        there, back, shifted, x = (wide(each) for each in (there, back, shifted, x))
        near = max(1e-3, 8 * torch.finfo(model.W_E.dtype).eps)  # as finely as the model itself rounds
        centred = torch.allclose(there, shifted, atol=10 * near)
        plain = cls(centred, float(model.cfg.eps if eps is None else eps))
        weight, bias = _scaled_by(inner, there - back, 2 * plain(x), near), (there + back)[0, 0] / 2
        stored = getattr(inner, "bias", None)
        if stored is not None and torch.allclose(wide(stored), bias, atol=near):
            bias = wide(stored.detach())
        found = cls(
            centred,
            plain.eps,
            None if (weight - 1).abs().max() < near / 100 else weight,
            None if bias.abs().max() < near / 100 else bias,
        )
        if not torch.allclose(found(x), there, atol=near, rtol=near):
            raise ValueError(unknown)
        return found


def _scaled_by(
    inner: Any, made: Float[Tensor, "row pos width"], plain: Float[Tensor, "row pos width"], near: float
) -> Float[Tensor, "width"]:
    """The weight: the parameter itself or 1 more, whichever explains what was made; else the quotient."""
    quotient = (made * plain).sum((0, 1)) / plain.pow(2).sum((0, 1))
    stored = getattr(inner, "weight", None)
    if stored is not None:
        for guess in (wide(stored.detach()), 1 + wide(stored.detach())):
            if torch.allclose(guess, quotient.to(guess), atol=near, rtol=near):
                return guess
    return quotient
