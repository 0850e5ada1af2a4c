"""Metrics: from logits to one number per prompt. Averaging is the technique's business.

A metric is any function from logits `[batch, pos, d_vocab]` to a tensor `[batch]`. The functions here make
the usual ones. Zero and sign: `logit_difference` is positive when the model prefers `answers` to `incorrect`.
`recovered` puts any metric on one scale: 0 = the patch did nothing, 1 = it did everything.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.moved import old_name, was
from mechlab.tokens import Batch, whole_numbers

Metric = Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, "batch"]]
Ids = Int[Tensor, "_"] | Sequence[int] | int


@dataclass(frozen=True)
class PositionMetric:
    """A metric that says what it reads: one position, and perhaps only some tokens there.

    Called like any metric. The fast engine (`runs/fast.py`) computes only the logits it reads.

    of:     from what is read, [batch, d_vocab] or [batch, token], to one number per prompt
    pos:    the position, for all or for each prompt
    tokens: the ids it reads, in the order in which `of` wants them; None: all
    asked:  ids that `of` looks up itself
    beside: other logits [batch, pos, d_vocab], of which `of` gets the same position as a second argument
    """

    of: Callable[..., Float[Tensor, "batch"]]
    pos: Ids = -1
    tokens: tuple[Ids, ...] | None = None
    asked: tuple[Ids, ...] = ()
    beside: Float[Tensor, "batch pos d_vocab"] | None = None

    def __post_init__(self):
        whole_numbers(self.pos, "The metric's pos")
        for ids in (*(self.tokens or ()), *self.asked):
            _whole_ids(ids)

    def __call__(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, "batch"]:
        rows = _rows(logits, self.pos)
        read = rows if self.tokens is None else rows.gather(-1, self.ids(len(rows), rows.device))
        return self.measured(read)

    def measured(self, read: Float[Tensor, "batch read"]) -> Float[Tensor, "batch"]:
        """The metric of what is read at its position."""
        if self.beside is None:
            return self.of(read)
        beside = _rows(self.beside, self.pos).to(read)
        if beside.shape[-1] != read.shape[-1]:
            raise ValueError(
                f"The reference logits are of {beside.shape[-1]} tokens; this model has {read.shape[-1]}. "
                "They are another model's."
            )
        return self.of(read, beside)

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
    return PositionMetric(lambda rows: _of(rows.log_softmax(-1), answers), pos, asked=(answers,))


@was(end="pos")
def probability(answers: Ids, *, pos: Ids = -1) -> Metric:
    """Probability of the answer at position `pos`.

    Near 0 and near 1 it hardly moves, whatever happens to the logits.
    """
    return PositionMetric(lambda rows: _of(rows.softmax(-1), answers), pos, asked=(answers,))


@was(end="pos")
def kl_divergence(reference: Float[Tensor, "batch pos d_vocab"], *, pos: Ids = -1) -> Metric:
    """KL(reference ‖ run) of the next-token distributions at `pos`, in nats: 0 when they are equal."""

    def of(
        rows: Float[Tensor, "batch d_vocab"], theirs: Float[Tensor, "batch d_vocab"]
    ) -> Float[Tensor, "batch"]:
        target = theirs.log_softmax(-1)
        return (target.exp() * (target - rows.log_softmax(-1))).sum(-1)

    if not isinstance(reference, Tensor) or reference.ndim != 3:
        shape = tuple(reference.shape) if isinstance(reference, Tensor) else type(reference).__name__
        raise ValueError(f"The reference logits are {shape}: give all of them, [batch, pos, d_vocab].")
    return PositionMetric(of, pos, beside=reference.detach())


def recovered(
    patched: Float[Tensor, "..."], base: Float[Tensor, "..."], source: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """(patched − base) / (source − base): 0 = the patch did nothing, 1 = it did everything.

    It can be below 0 (the wrong way) or above 1 (too far).
    Where base and source are equal the fraction has no meaning: 0 if the patch changed nothing either,
    else a `ValueError`. Never NaN.
    """
    patched, base, source = (torch.as_tensor(each).cpu() for each in (patched, base, source))
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
    """Apply a metric and insist on one finite number per prompt, in float32 or better."""
    values = metric(logits if logits.dtype == torch.float64 else logits.float())
    if not isinstance(values, Tensor) or tuple(values.shape) != (len(logits),):
        found = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"The metric returned {found} for {len(logits)} prompts. It must return one number per prompt, "
            f"shape ({len(logits)},): leave out the `.mean()`; averaging comes later."
        )
    if values.is_complex():
        raise ValueError("The metric returned complex numbers; it must return one real number per prompt.")
    if torch.isnan(values).any():
        raise ValueError("The metric is NaN: there is NaN in the activations. Look at your hooks.")
    return values if values.dtype == torch.float64 else values.float()


def fitted(metric: Metric, batch: Batch) -> Metric:
    """The metric for these prompts: −1 is each prompt's own last token, padding is never read.

    Raises a `ValueError` for a position or an id that the prompts or the model do not have, and for a
    metric of your own that reads padding.
    """
    if not callable(metric):
        raise ValueError(
            f"metric is {metric!r}; it must be a function from logits [batch, pos, d_vocab] to one number "
            "per prompt, such as `ml.logit_difference(...)`."
        )
    if not isinstance(metric, PositionMetric):
        return _beside_padding(metric, batch) if batch.padded else metric
    for ids in (*(metric.tokens or ()), *metric.asked):
        _check_ids(ids, batch)
    pos = batch.position(metric.pos, "The metric's pos")
    if metric.beside is not None and (
        len(metric.beside) != len(batch) or int(pos.max()) >= metric.beside.shape[1]
    ):
        raise ValueError(
            f"The reference logits are {tuple(metric.beside.shape)}, and the prompts "
            f"{tuple(batch.tokens.shape)}."
        )
    plain = isinstance(metric.pos, int) and not batch.padded
    return metric if plain and metric.pos < 0 else replace(metric, pos=pos)


def with_rows(metric: PositionMetric, rows: Int[Tensor, "row"]) -> PositionMetric:
    """A metric of tokens for some of its prompts, as `Run.rows` chooses them."""

    def some(ids: Ids) -> Ids:
        each = whole_numbers(ids, "ids")
        return each[rows.to(each.device)] if each.ndim and len(each) > 1 else ids

    tokens = None if metric.tokens is None else tuple(some(ids) for ids in metric.tokens)
    return replace(metric, pos=some(metric.pos), tokens=tokens)


def _whole_ids(ids: Ids) -> Int[Tensor, "..."]:
    """Token ids as a tensor: one for all prompts, or one for each; words are refused."""
    try:
        found = whole_numbers(ids, "ids")
    except ValueError:
        found = torch.empty(1, 1)
    if found.ndim > 1:
        raise ValueError(
            f"The metric asks for {ids!r:.80}: give token ids, one for all prompts or one for each, such "
            'as `ml.single_token(model, " Mary")`.'
        )
    return found


def _check_ids(ids: Ids, batch: Batch) -> None:
    found, many = _whole_ids(ids), batch.model.cfg.d_vocab
    if found.numel() and (int(found.min()) < 0 or int(found.max()) >= many):
        bad = found[(found < 0) | (found >= many)].flatten()[0].item()
        raise ValueError(f"The metric asks for token {bad}; this model's ids go from 0 to {many - 1}.")
    _for_each(ids, len(batch), found.device)


def _beside_padding(metric: Metric, batch: Batch) -> Metric:
    """A metric of somebody's own, which may not read what stands behind a short prompt.

    Each time it is looked at what it says when something else stands there, and when what each prompt ends
    with does.
    """

    def careful(logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, "batch"]:
        found = per_prompt(metric, logits)
        pads = (torch.arange(logits.shape[1], device=logits.device) > batch.ends[:, None])[..., None]
        with torch.no_grad():
            ends = _rows(logits, batch.ends)[:, None]
            for other in (logits.flip(-1) * 2 + 1, ends):
                if not torch.allclose(per_prompt(metric, torch.where(pads, other, logits)), found, atol=1e-6):
                    raise ValueError(
                        f"The prompts have {batch.lengths[:8]} tokens, and this metric reads what stands "
                        "behind the short ones. Read each at its own end: `ml.logit_difference(...)` does, "
                        "or give a metric positions of its own."
                    )
        return found

    return careful


def _rows(logits: Float[Tensor, "batch pos d_vocab"], pos: Ids) -> Float[Tensor, "batch d_vocab"]:
    batch = torch.arange(len(logits), device=logits.device)
    return logits[batch, torch.as_tensor(pos, device=logits.device).long().expand(len(logits))]


def _of(rows: Float[Tensor, "batch d_vocab"], ids: Ids) -> Float[Tensor, "batch"]:
    return rows.gather(-1, _for_each(ids, len(rows), rows.device)[:, None])[:, 0]


def _for_each(ids: Ids, batch: int, device) -> Int[Tensor, "batch"]:
    ids = torch.as_tensor(_whole_ids(ids), device=device)
    if ids.ndim and len(ids) not in (1, batch):  # one answer serves any number of prompts
        raise ValueError(
            f"{batch} prompts and {len(ids)} answers: give one answer for each prompt, or one for all."
        )
    return ids.expand(batch)


if not TYPE_CHECKING:  # a type checker would take every name for one that is there

    def __getattr__(name: str):
        return old_name(__name__, name, {"Reading": "PositionMetric"})
