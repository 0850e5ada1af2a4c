"""Superposition: how can there be more features than dimensions?

The toy model of Elhage et al. 2022 squeezes n sparse features through m < n dimensions and tries to get them
back: h = W x, x' = ReLU(Wᵀ h + b), with a loss weighted by each feature's importance. Dense features: it
keeps the m most important and forgets the rest. Sparse ones: it keeps more than m, in directions that
interfere a little.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from mechlab.arguments import at_least, gradients, outside_inference
from mechlab.results import Scores

if TYPE_CHECKING:
    from mechlab.pictures.plots import Picture

Drawn = Float[Tensor, "count feature"]


@dataclass(frozen=True)
class ToyModels:
    """Toy models trained side by side, one for each density.

    W: [model, feature, hidden], the direction of each feature;  b: [model, feature]
    density: how often a feature is present;  importance: [feature];  loss: [model], on fresh examples
    """

    W: Float[Tensor, "model feature hidden"]
    b: Float[Tensor, "model feature"]
    density: tuple[float, ...]
    importance: Float[Tensor, "feature"]
    loss: Float[Tensor, "model"]

    @property
    def norms(self) -> Scores:
        """How strongly each feature is represented, |W_i|: about 1 if it is kept, 0 if it is forgotten."""
        return self._scores(self.W.norm(dim=-1), "length of W_i")

    @property
    def dimensionality(self) -> Scores:
        """The share of a dimension that each feature has to itself; see `feature_dimensionality`."""
        return self._scores(feature_dimensionality(self.W), "share of a dimension that each feature has")

    def _scores(self, values: Float[Tensor, "model feature"], name: str) -> Scores:
        labels = {"density": [f"{density:.3g}" for density in self.density]}
        return Scores(values, ("density", "feature"), name, labels, signed=False)


@outside_inference
def train_toy_models(
    n_features: int = 5,
    n_hidden: int = 2,
    *,
    density: Sequence[float] = (1.0, 0.3, 0.1, 0.05, 0.02),
    importance: Float[Tensor, "feature"] | None = None,
    linear: bool = False,
    sample: Callable[[int, torch.Generator], Drawn] | None = None,
    steps: int = 2000,
    batch: int = 512,
    seed: int = 0,
) -> ToyModels:
    """Train one toy model for each density, all at once.

    A feature is absent with probability 1 − density, else uniform in [0, 1]. importance: weight of each
    feature in the loss (default: all 1). linear: without the ReLU, where superposition never pays. A density
    given twice trains two models from different starts. About 5 seconds for 8 models of 20 features.
    sample: draws the examples instead, `sample(count, generator)`, the same for all models: features that are
            not independent. Then density only sets how many models there are, and the size of their steps.
    """
    if n_hidden < 1 or n_features < 1 or not all(0 < p <= 1 for p in density):
        raise ValueError(
            "n_features and n_hidden must be at least 1, and every density above 0 and at most 1."
        )
    importance = torch.ones(n_features) if importance is None else torch.as_tensor(importance).float().cpu()
    if importance.shape != (n_features,):
        raise ValueError(f"There are {n_features} features and {importance.numel()} importances.")
    if not (torch.isfinite(importance) & (importance >= 0)).all():
        raise ValueError("Every importance is a number of at least 0.")
    at_least("steps", steps, 1)
    at_least("batch", batch, 1)
    if not len(density):
        raise ValueError("density is empty: give the density of at least one model.")
    generator, present = torch.Generator().manual_seed(seed), torch.tensor(density)[:, None]
    W = torch.randn(len(density), n_features, n_hidden, generator=generator) / n_hidden**0.5
    b = torch.zeros(len(density), n_features)

    def losses(count: int) -> Float[Tensor, "model"]:
        if sample is None:
            x = torch.rand(count, *b.shape, generator=generator)
            x = x * (torch.rand(x.shape, generator=generator) < present)
        else:
            x = _of_shape(sample(count, generator), count, n_features)[:, None].expand(count, *b.shape)
        back = _rebuilt(x, W, b) if linear else _rebuilt(x, W, b).relu()
        return ((x - back) ** 2 * importance).mean((0, 2))

    optimiser = torch.optim.AdamW([W.requires_grad_(), b.requires_grad_()], lr=1e-2, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, eta_min=1e-4)
    with gradients():
        for _ in range(steps):
            optimiser.zero_grad()
            (losses(batch) / present[:, 0]).sum().backward()  # sparse inputs make small gradients
            optimiser.step()
            schedule.step()
    return ToyModels(W.detach(), b.detach(), tuple(density), importance, losses(20_000).detach())


def _of_shape(x: Float[Tensor, "..."], count: int, features: int) -> Drawn:
    if x.shape != (count, features):
        raise ValueError(f"sample returned {tuple(x.shape)}; ({count}, {features}) is needed.")
    return x.float()


def _rebuilt(
    x: Float[Tensor, "batch model feature"],
    W: Float[Tensor, "model feature hidden"],
    b: Float[Tensor, "model feature"],
) -> Float[Tensor, "batch model feature"]:
    """The features of each model, squeezed through its hidden dimensions and back, before the ReLU."""
    hidden = einsum(x, W, "batch model feature, model feature hidden -> batch model hidden")
    return einsum(hidden, W, "batch model hidden, model feature hidden -> batch model feature") + b


def feature_dimensionality(W: Float[Tensor, "... feature hidden"]) -> Float[Tensor, "... feature"]:
    """|W_i|² / Σ_j (Ŵ_i · W_j)²: the share of a dimension that feature i has to itself.

    1: a direction of its own; 1/2: it shares a line with its opposite; 2/5: five in a plane (a pentagon); 0:
    it is not represented. They sum to at most n_hidden. Elhage et al. 2022.
    """
    W = W.float() if W.dtype in (torch.float16, torch.bfloat16) else W
    size = W.norm(dim=-1)
    unit = W / size[..., None].clamp_min(1e-8)
    overlap = (unit @ W.transpose(-1, -2)).pow(2).sum(-1)
    return torch.where(size > 1e-2, size.pow(2) / overlap.clamp_min(1e-8), torch.zeros_like(size))


def plot_directions(toy: ToyModels, models: Sequence[int] | None = None, **layout) -> "Picture":
    """Draw the feature directions of models with two hidden dimensions, side by side; a `Picture`."""
    from mechlab.pictures import plots

    if toy.W.shape[-1] != 2:
        raise ValueError(
            f"Directions are drawn in a plane, and these models have {toy.W.shape[-1]} hidden dimensions. "
            "Draw `W @ W.T` instead."
        )
    chosen = list(range(len(toy.density))) if models is None else list(models)
    titles = [f"density {toy.density[n]:.3g}" for n in chosen]
    return plots.arrows([toy.W[n] for n in chosen], titles, "feature directions", **layout)
