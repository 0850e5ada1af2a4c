"""What the explorer of a circuit asks of the model: where heads look, what they write and are needed for.

No hook is set after the start. JupyterLab answers clicks in threads of their own, where hooks would meet
those of a cell that is running; `CircuitRuns` computes with the weights alone.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.circuits.circuits import Circuit, Head
from mechlab.circuits.knockouts import CircuitRuns
from mechlab.loading.models import require_folded
from mechlab.metrics import Metric, per_prompt
from mechlab.runs.matrices import check_sums, held_norm_slope, written_by_heads
from mechlab.runs.run import Run


class Trials:
    """Runs of some prompts, as they are and without some heads; each is made once and kept.

    A head that is removed gives its mean over reference prompts, of the same template and at the same
    position, at the positions where its role acts, in each prompt its own.

    before: [batch], the metric with everything in place
    where:  [layer, batch, pos, head], true where a head of the circuit acts
    reads:  [batch, pos, d_model], what the metric reads in the last stream, whose norm is held; None for a
            metric that is no sum over parts of the stream, such as a probability
    """

    @torch.no_grad()
    def __init__(self, knockouts: CircuitRuns, circuit: Circuit):
        require_folded(knockouts.model)
        check_sums(knockouts.run)
        self.knockouts, self.circuit, self.model = knockouts, circuit, knockouts.model
        self.prompts, self.positions = knockouts.prompts.tokens, knockouts.prompts.positions
        self.run: Run = knockouts.run
        self.before = knockouts.intact.cpu()
        self.where = knockouts.keeping(circuit)
        self.reads = _direction(self.run, knockouts.metric)
        self._known = {frozenset(): self.before}

    def prompt(self, row: int) -> Int[Tensor, "pos"]:
        """The tokens of one prompt, without padding after the position named "end"."""
        end = self.positions.get("end")
        return self.prompts[row] if end is None else self.prompts[row, : int(end[row]) + 1]

    def without(self, heads: Iterable[Head]) -> Float[Tensor, "batch"]:
        """The metric without these heads."""
        heads = frozenset(heads)
        if heads not in self._known:
            part = self.circuit.without([head for head in self.circuit.heads if head not in heads])
            self._known[heads] = self.knockouts.removing([part])[0].cpu()
        return self._known[heads]

    @torch.no_grad()
    def direct(self, head: Head) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]:
        """What a head itself writes to the metric; and how that changes when it alone is removed.

        All else is held: every other part of the model, and the length by which the last norm divides. This
        is direct logit attribution.
        """
        (layer, index), reads = head, torch.as_tensor(self.reads)
        z, usual = self.run.at("z", layer)[:, :, index], self.knockouts.z[layer, :, :, index]
        change = torch.where(self.where[layer, :, :, index, None], usual - z, 0.0)
        both = torch.zeros(2, *self.run.at("z", layer).shape).to(z)
        both[0, :, :, index], both[1, :, :, index] = z, change
        written = (written_by_heads(self.run, layer, each)[:, :, index] for each in both)
        own, lost = ((each * reads).sum((1, 2)).cpu() for each in written)
        return own, lost

    @torch.no_grad()
    def pattern(self, head: Head) -> Float[Tensor, "batch query_pos key_pos"]:
        """The attention of a head."""
        return self.run.at("pattern", head[0])[:, :, head[1]].cpu()

    def looks(self, head: Head) -> dict[str, dict[str, float]]:
        """Mean attention over the prompts, from each position where a head acts to each that has a name."""
        pattern, rows = self.pattern(head), torch.arange(len(self.prompts))
        at = {name: place.cpu() for name, place in self.positions.items()}
        share = lambda query, key: pattern[rows, at[query], at[key]].mean().item()
        names = self.circuit.positions(head) or ()
        return {name: {other: share(name, other) for other in at} for name in names}


def _direction(run: Run, metric: Metric) -> Float[Tensor, "batch pos d_model"] | None:
    """The gradient of a metric on the last stream, its norm held.

    None unless twice the logits double the metric, and where the model caps its logits.
    """
    if getattr(run.model.original_model.config, "final_logit_softcapping", None) is not None:
        return None
    logits, count = run.logits([], run.tokens.shape[1]), run.model.cfg.n_layers
    once, twice = per_prompt(metric, logits), per_prompt(metric, 2 * logits)
    if not torch.allclose(2 * once, twice, rtol=1e-3, atol=1e-3):
        return None
    with torch.enable_grad():
        logits.requires_grad_()
        value = per_prompt(metric, logits).sum()
        if not value.requires_grad:
            return None
        (slope,) = torch.autograd.grad(value, logits)
    return held_norm_slope(run.model, run.at("resid_pre", count), slope @ run.model.W_U.T)
