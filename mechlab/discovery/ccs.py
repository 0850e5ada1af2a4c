"""Contrast-consistent search: a probe for truth without labels, and why it is hard to know what it found.

Burns et al. 2022 look for a direction on which a statement and its denial get opposite, confident answers.
Truth has that property. So has anything else in which the two sides of each pair differ: a low loss proves
nothing, and the accuracy, which needs labels again, has to be looked at (Farquhar et al. 2023).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.arguments import at_least, gradients, outside_inference


@dataclass(frozen=True)
class CCS:
    """A direction found without labels; `truth(yes, no)` is the probability it gives to "yes is true"."""

    direction: Float[Tensor, "d_model"]
    offset: float
    loss: float
    means: tuple[Float[Tensor, "d_model"], Float[Tensor, "d_model"]]

    def truth(
        self, yes: Float[Tensor, "pair d_model"], no: Float[Tensor, "pair d_model"]
    ) -> Float[Tensor, "pair"]:
        says = lambda x, mean: torch.sigmoid((x.float() - mean) @ self.direction + self.offset)
        return (says(yes, self.means[0]) + 1 - says(no, self.means[1])) / 2


@outside_inference
def contrast_consistent_search(
    yes: Float[Tensor, "pair d_model"],
    no: Float[Tensor, "its_pair its_d_model"],
    *,
    restarts: int = 8,
    steps: int = 300,
    seed: int = 0,
) -> list[CCS]:
    """Find a direction on which a statement and its denial get opposite, confident answers; best loss first.

    yes, no: activations of each statement, followed by "Yes" and by "No" (or affirmed and denied).

    No labels are used, so the sign is open: an accuracy a is as good as 1 − a. Loss: (p(yes) − (1 − p(no)))²
    + min(p(yes), p(no))², on activations centred for each side. Burns et al. 2022. Any property that differs
    between the pairs satisfies it. Raises a `ValueError` for pairs that do not correspond or do not differ.
    """
    at_least("restarts", restarts, 1)
    at_least("steps", steps, 1)
    if yes.shape != no.shape or len(yes) < 2:
        raise ValueError(
            f"yes is {tuple(yes.shape)} and no {tuple(no.shape)}: give two pairs or more, of one shape."
        )
    yes, no = yes.detach().float(), no.detach().float()
    if not (torch.isfinite(yes).all() and torch.isfinite(no).all()):
        raise ValueError("There are NaN or infinite activations: nothing can be found in them.")
    means = yes.mean(0), no.mean(0)
    scale = torch.cat([yes - means[0], no - means[1]]).std()
    if scale == 0:
        raise ValueError("All statements have the same activations, so there is nothing to find in them.")
    pair = [(x - m) / scale for x, m in zip((yes, no), means, strict=True)]
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(restarts):
        start = (torch.randn(yes.shape[1] + 1, generator=generator) / yes.shape[1] ** 0.5).to(yes)
        weights, loss = _descend(*pair, start, steps)
        found.append(CCS(weights[:-1] / scale, weights[-1].item(), loss, means))
    return sorted(found, key=lambda probe: probe.loss)


def _descend(
    yes: Float[Tensor, "pair d_model"],
    no: Float[Tensor, "pair d_model"],
    weights: Float[Tensor, "d_model_and_one"],
    steps: int,
) -> tuple[Float[Tensor, "d_model_and_one"], float]:
    """The direction and offset that gradient descent reaches, and their loss."""
    loss = torch.tensor(torch.inf)  # of no step at all
    with gradients():
        weights.requires_grad_()
        optimiser = torch.optim.AdamW([weights], lr=0.01, weight_decay=0.01)
        for _ in range(steps):
            p, q = (torch.sigmoid(x @ weights[:-1] + weights[-1]) for x in (yes, no))
            loss = ((p - (1 - q)) ** 2 + torch.minimum(p, q) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return weights.detach(), loss.item()
