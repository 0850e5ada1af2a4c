"""Metrics: from logits to one number per prompt. Averaging is the technique's business.

A metric is any function from logits `[batch, pos, d_vocab]` to a tensor `[batch]`. The functions here make
the usual ones. Zero and sign: `logit_difference` is positive when the model prefers `answers` to `wrong`.
`recovered` puts any metric on one scale: 0 = the patch did nothing, 1 = it did everything.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

Metric = Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, "batch"]]
Ids = Int[Tensor, "batch"] | Sequence[int] | int


def logit_difference(answers: Ids, wrong: Ids, *, end: Ids = -1) -> Metric:
    """Logit of the answer minus logit of the wrong answer, at position `end`, in logits (nats).

    The metric of the IOI paper (Wang et al. 2022). It ignores whatever raises both answers alike, and
    anything that moves all logits by one constant. `end` is one position, or one for each prompt.
    """
    return lambda logits: _at(logits, end, answers) - _at(logits, end, wrong)


def log_prob(answers: Ids, *, end: Ids = -1) -> Metric:
    """Log-probability of the answer at position `end`, in nats: 0 is certain, more negative is less likely."""
    return lambda logits: _at(logits.log_softmax(-1), end, answers)


def kl_divergence(reference: Float[Tensor, "batch pos d_vocab"], *, end: Ids = -1) -> Metric:
    """KL(reference ‖ run) of the next-token distributions at `end`, in nats: 0 when they are equal."""
    target = _rows(reference, end).log_softmax(-1).detach()

    def metric(logits):
        found = _rows(logits, end).log_softmax(-1)
        return (target.exp() * (target - found)).sum(-1)

    return metric


def recovered(
    patched: Float[Tensor, "..."], base: Float[Tensor, "..."], source: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """(patched − base) / (source − base): 0 = the patch did nothing, 1 = it did everything.

    It can be below 0 (the wrong way) or above 1 (too far).
    Where base and source are equal the fraction has no meaning: 0 if the patch changed nothing either,
    else a `ValueError`. Never NaN.
    """
    patched, base, source = map(torch.as_tensor, (patched, base, source))
    change, whole = torch.broadcast_tensors(patched - base, source - base)
    same = whole.abs() < 1e-6
    if (same & (change.abs() > 1e-4)).any():
        raise ValueError(
            "base and source give the same metric, so there is nothing to recover: the score would be a division by "
            "zero. Check that the two prompts differ in what the metric measures."
        )
    return torch.where(same, torch.zeros_like(change), change / torch.where(same, 1.0, whole))


def per_prompt(metric: Metric, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, "batch"]:
    """Apply a metric and insist on one finite number per prompt."""
    values = metric(logits)
    if not isinstance(values, Tensor) or tuple(values.shape) != (len(logits),):
        found = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"The metric returned {found} for {len(logits)} prompts. It must return one number per prompt, "
            f"shape ({len(logits)},): leave out the `.mean()`; averaging comes later."
        )
    if torch.isnan(values).any():
        raise ValueError("The metric is NaN: there is NaN in the activations. Look at your hooks.")
    return values


def _rows(logits: Float[Tensor, "batch pos d_vocab"], end: Ids) -> Float[Tensor, "batch d_vocab"]:
    batch = torch.arange(len(logits), device=logits.device)
    return logits[batch, torch.as_tensor(end, device=logits.device).expand(len(logits))]


def _at(logits: Float[Tensor, "batch pos d_vocab"], end: Ids, ids: Ids) -> Float[Tensor, "batch"]:
    ids = torch.as_tensor(ids, device=logits.device)
    if ids.ndim and len(ids) != len(logits):
        raise ValueError(
            f"{len(logits)} prompts and {len(ids)} answers: give one answer for each prompt, or one for all."
        )
    return _rows(logits, end).gather(-1, ids.expand(len(logits))[:, None])[:, 0]
