"""Features of a dictionary: does it preserve what the model does, and what is one feature about?

`splice` is the test that comes first. Then a feature is explained three ways: from its inputs (where it is active),
from its outputs (which logits its direction raises) and by intervention (setting it to another value).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.discovery.sae import SparseAutoencoder
from mechlab.hooks import Hook, intervene


@dataclass(frozen=True)
class Splice:
    """What the model loses when the dictionary's reconstruction stands in for the activation.

    loss: next-token loss (nats) for "intact", "spliced", "mean" (the activation's mean instead) and "zero"
    recovered: (mean − spliced) / (mean − intact): 1 is no loss. Against zero ablation the same number flatters
    unexplained: share of the variance that is not rebuilt; active: features active a token; silent: share never active
    """

    loss: dict[str, float]
    recovered: float
    unexplained: float
    active: float
    silent: float

    def __repr__(self) -> str:
        return (
            f"loss {self.loss['intact']:.2f}, spliced {self.loss['spliced']:.2f}, mean {self.loss['mean']:.2f}, zero "
            f"{self.loss['zero']:.2f}; recovered {self.recovered:.2f} of what the mean loses; unexplained variance "
            f"{self.unexplained:.2f}; {self.active:.1f} features active; {self.silent:.1%} silent"
        )


@torch.no_grad()
def splice(model, sae: SparseAutoencoder, texts: Int[Tensor, "text pos"], *, skip: int = 1) -> Splice:
    """Put the reconstruction in the place of the activation, at all positions but the first `skip`, and measure the loss.

    Reconstruction can look good and behaviour not be preserved: what is missing may be what the model reads.
    """
    name, seen = _hook(model, sae), []
    with intervene(model, [(name, lambda x, hook: seen.append(x[:, skip:]))]):
        intact = model(texts, return_type="loss", loss_per_token=True)[:, skip:]
    x = torch.cat(seen)
    features = sae.encode(x)
    back, mean = sae.decode(features), x.flatten(0, 1).mean(0)
    loss = {"intact": intact.mean().item()}
    for name_, value in (("spliced", back), ("mean", mean.expand_as(x)), ("zero", torch.zeros_like(x))):
        with intervene(model, replaced(name, value, skip)):
            loss[name_] = model(texts, return_type="loss", loss_per_token=True)[:, skip:].mean().item()
    return Splice(
        loss,
        (loss["mean"] - loss["spliced"]) / (loss["mean"] - loss["intact"]),
        ((x - back).pow(2).sum() / (x - mean).pow(2).sum()).item(),
        (features > 0).float().sum(-1).mean().item(),
        (features.flatten(0, 1) > 0).any(0).logical_not().float().mean().item(),
    )


def replaced(name: str, value: Float[Tensor, "batch pos d_in"], skip: int) -> list[Hook]:
    """Write `value` over an activation at all positions but the first `skip`."""
    return [(name, lambda x, hook: torch.cat([x[:, :skip], value.to(x)], dim=1))]


def _hook(model, sae: SparseAutoencoder) -> str:
    if not sae.hook:
        raise ValueError(
            'This dictionary does not say which activation it reads: load it with hook="blocks....".'
        )
    return sae.hook
