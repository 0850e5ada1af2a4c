"""Metrics: from logits to one number per prompt. Averaging is the technique's business.

A metric is any function from logits `[batch, pos, d_vocab]` to a tensor `[batch]`. The functions here make
the usual ones. Zero and sign: `logit_difference` is positive when the model prefers `answers` to `incorrect`.
`recovered` puts any metric on one scale: 0 = the patch did nothing, 1 = it did everything.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.moved import old_name, was

Metric = Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, "batch"]]
Ids = Int[Tensor, "batch"] | Sequence[int] | int


@dataclass(frozen=True)
class PositionMetric:
    """A metric that says what it reads: one position, and perhaps only some tokens there.

    Called like any metric. The fast engine (`runs/fast.py`) computes only the logits it reads.

    of:     from what is read, [batch, d_vocab] or [batch, token], to one number per prompt
    pos:    the position, for all or for each prompt
    tokens: the ids it reads, in the order in which `of` wants them; None: all
    """

    of: Callable[[Float[Tensor, "batch read"]], Float[Tensor, "batch"]]
    pos: Ids = -1
    tokens: tuple[Ids, ...] | None = None

    def __call__(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, "batch"]:
        rows = _rows(logits, self.pos)
        return self.of(rows if self.tokens is None else rows.gather(-1, self.ids(len(rows), rows.device)))

    def ids(self, batch: int, device=None) -> Int[Tensor, "batch token"]:
        """The ids it reads, for each prompt."""
        return torch.stack([_for_each(ids, batch, device) for ids in self.tokens or ()], dim=-1)


@was(wrong="incorrect", end="pos")
def logit_difference(answers: Ids, incorrect: Ids, *, pos: Ids = -1) -> Metric:
    """Logit of the answer minus logit of the incorrect one, at position `pos`, in logits (nats).

    The metric of the IOI paper (Wang et al. 2022). It ignores whatever raises both answers alike, and
    anything that moves all logits by one constant. `pos` is one position, or one for each prompt.
    """
    return PositionMetric(lambda read: read[:, 0] - read[:, 1], pos, (answers, incorrect))


@was(end="pos")
def log_prob(answers: Ids, *, pos: Ids = -1) -> Metric:
    """Log-probability of the answer at position `pos`, in nats.

    0 is certain, more negative is less likely.
    """
    return PositionMetric(lambda rows: _of(rows.log_softmax(-1), answers), pos)


@was(end="pos")
def probability(answers: Ids, *, pos: Ids = -1) -> Metric:
    """Probability of the answer at position `pos`.

    Near 0 and near 1 it hardly moves, whatever happens to the logits.
    """
    return PositionMetric(lambda rows: _of(rows.softmax(-1), answers), pos)


@was(end="pos")
def kl_divergence(reference: Float[Tensor, "batch pos d_vocab"], *, pos: Ids = -1) -> Metric:
    """KL(reference ‖ run) of the next-token distributions at `pos`, in nats: 0 when they are equal."""
    target = _rows(reference, pos).log_softmax(-1).detach()
    return PositionMetric(lambda rows: (target.exp() * (target - rows.log_softmax(-1))).sum(-1), pos)


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
            "base and source give the same metric, so there is nothing to recover: the score would be a "
            "division by "
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


def _rows(logits: Float[Tensor, "batch pos d_vocab"], pos: Ids) -> Float[Tensor, "batch d_vocab"]:
    batch = torch.arange(len(logits), device=logits.device)
    return logits[batch, torch.as_tensor(pos, device=logits.device).expand(len(logits))]


def _of(rows: Float[Tensor, "batch d_vocab"], ids: Ids) -> Float[Tensor, "batch"]:
    return rows.gather(-1, _for_each(ids, len(rows), rows.device)[:, None])[:, 0]


def _for_each(ids: Ids, batch: int, device) -> Int[Tensor, "batch"]:
    ids = torch.as_tensor(ids, device=device)
    if ids.ndim and len(ids) != batch:
        raise ValueError(
            f"{batch} prompts and {len(ids)} answers: give one answer for each prompt, or one for all."
        )
    return ids.expand(batch)


if not TYPE_CHECKING:  # a type checker would take every name for one that is there

    def __getattr__(name: str):
        return old_name(__name__, name, {"Reading": "PositionMetric"})
