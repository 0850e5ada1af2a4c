"""Proving a circuit: faithful, complete, minimal.

Wang et al. 2022, section 4. F is the mean metric, M the whole model, C the circuit, and everything outside is
knocked out (`knockouts.py`). Faithful: F(C) is near F(M). Complete: F(C without K) is near F(M without K),
for any part K of the circuit; a gap means that the model has something which the circuit lacks. Minimal: for
each head there is a K so that C without K needs the head. Miller et al. 2024: each of these numbers belongs
to its ablation, its metric and its prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from mechlab.arguments import Head, at_least, head_of
from mechlab.circuits.circuits import Circuit, CircuitError
from mechlab.circuits.knockouts import CircuitRuns, check_ability
from mechlab.metrics import PositionMetric
from mechlab.results import Scores, named
from mechlab.runs.matrices import check_sums, held_norm_slope, written_by_heads
from mechlab.statistics import Estimate

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Faithfulness:
    """F(C) beside F(M).

    share:    F(C) / F(M), a ratio of means
    accuracy: how often the metric is above zero
    """

    circuit: Estimate
    model: Estimate
    share: Estimate
    accuracy: float
    accuracy_of_model: float
    per_prompt: Float[Tensor, "batch"]

    def __str__(self) -> str:
        return (
            f"circuit {self.circuit}, model {self.model}: {self.share} of it is left; right in "
            f"{self.accuracy:.2f} of the prompts (model {self.accuracy_of_model:.2f})"
        )


def faithfulness(knockouts: CircuitRuns, circuits: Sequence[Circuit]) -> list[Faithfulness]:
    """How much of the model's metric is left, for each circuit, with everything outside it knocked out."""
    check_ability(knockouts)
    intact = knockouts.intact
    return [
        Faithfulness(
            knockouts.mean(found),
            knockouts.mean(intact),
            knockouts.ratio(found, intact),
            (found > 0).float().mean().item(),
            (intact > 0).float().mean().item(),
            found,
        )
        for found in knockouts.measure(circuits)
    ]


def completeness(
    knockouts: CircuitRuns, circuit: Circuit, sets: Mapping[str, Sequence[Head]]
) -> "pd.DataFrame":
    """F(M without K) beside F(C without K), for each set K of the circuit's heads: a table, one row a set.

    "gap" is F(C without K) − F(M without K), with its interval: negative where the model has more to fall
    back on.
    """
    import pandas as pd

    if not isinstance(sets, Mapping) or not sets:
        raise CircuitError('Give sets of heads by name, {"name movers": [(23, 0)]}.')
    parts = {name: _part(circuit, heads) for name, heads in sets.items()}
    model = knockouts.removing(list(parts.values()))
    left = knockouts.measure([circuit.without(heads) for heads in sets.values()])
    rows = []
    for name, with_all, with_few in zip(sets, model, left, strict=True):
        gap = knockouts.mean(with_few - with_all)
        rows.append(
            (
                name,
                len(sets[name]),
                with_all.mean().item(),
                with_few.mean().item(),
                gap.mean,
                gap.low,
                gap.high,
            )
        )
    columns = ["set K", "heads", "model without K", "circuit without K", "gap", "95 % low", "95 % high"]
    return pd.DataFrame(rows, columns=columns).round(3)


def greedy_gap(
    knockouts: CircuitRuns, circuit: Circuit, *, candidates: int = 10, steps: int = 10, seed: int = 0
) -> tuple[list[Head], float]:
    """The set K with the largest completeness gap that a greedy search finds, and that gap.

    Wang et al. 2022, appendix M. Each step adds, of `candidates` heads drawn at random, the one that makes
    the gap largest. The gap is selected to be large on these prompts: measure it again on others.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[Head] = []
    best: tuple[list[Head], float] = ([], 0.0)
    at_least("candidates", candidates, 1)
    for _ in range(min(steps, len(circuit.heads) - 1)):
        left = [head for head in circuit.heads if head not in found]
        drawn = [left[i] for i in torch.randperm(len(left), generator=generator)[:candidates].tolist()]
        table = completeness(knockouts, circuit, {named([head]): [*found, head] for head in drawn})
        number = int(table["gap"].abs().argmax())
        found.append(drawn[number])
        if abs(table["gap"][number]) > abs(best[1]):
            best = ([*found], float(table["gap"][number]))
    return best


def minimality(
    knockouts: CircuitRuns, circuit: Circuit, sets: Mapping[Head, Sequence[Head]] | None = None
) -> "pd.DataFrame":
    """For each head v, a set K so that C without K changes most when v goes too: a table, one row a head.

    "change" is F(C without K and v) − F(C without K), "share" its size in parts of F(M); the paper asks for
    0.01.
    sets: the K of each head. None: the best of nothing, the head's role without it, and every other role.
          What is selected here should be measured again on other prompts: pass
          `dict(zip(circuit.heads, table["K"]))`.
    """
    import pandas as pd

    check_ability(knockouts)
    if not circuit.heads:
        raise CircuitError("The circuit has no heads, so there is none to be minimal.")
    options = {head: _options(circuit, head, sets) for head in circuit.heads}
    wanted = {frozenset(K) for each in options.values() for K in each}
    wanted |= {frozenset((*K, head)) for head, each in options.items() for K in each}
    order = sorted(wanted, key=sorted)
    found = dict(zip(order, knockouts.measure([circuit.without([*gone]) for gone in order]), strict=True))
    rows = []
    for head in circuit.heads:
        change = {K: found[frozenset((*K, head))] - found[frozenset(K)] for K in options[head]}
        best = max(change, key=lambda K: change[K].mean().abs().item())
        size = knockouts.mean(change[best])
        before, after = (found[frozenset(K)].mean().item() for K in (best, (*best, head)))
        share = abs(size.mean) / abs(knockouts.intact.mean().item())
        rows.append(
            (named([head]), circuit.role(head), best, before, after, size.mean, size.low, size.high, share)
        )
    columns = [
        "head",
        "role",
        "K",
        "without K",
        "without K and head",
        "change",
        "95 % low",
        "95 % high",
        "share",
    ]
    return pd.DataFrame(rows, columns=columns).round(3)


@torch.no_grad()
def direct_contributions(knockouts: CircuitRuns, removed: Circuit | None = None) -> Scores:
    """What each head says to the logits itself, with some heads removed from the whole model.

    Dims ("layer", "head"). In logits of the metric's answer against its rival, at its position, before
    a cap where the model has one; the last norm's length is that of the same run. The difference to
    removed=None shows who steps in (Wang et al. 2022: backup name movers; McGrath et al. 2023).
    """
    run, metric, prompts = knockouts.run, knockouts.metric, knockouts.prompts.tokens
    if not isinstance(metric, PositionMetric) or len(metric.tokens or ()) != 2:
        raise CircuitError(
            "Direct contributions need a metric that reads two logits, such as `logit_difference`."
        )
    check_sums(run)
    run = run.changed(knockouts.edits(~knockouts.keeping(removed or Circuit({}))[None]))
    rows, last = torch.arange(len(prompts), device=prompts.device), run.model.cfg.n_layers
    end = run.batch.position(metric.pos, "The metric's pos")
    ids = metric.ids(len(prompts), prompts.device)
    direction = (run.model.W_U[:, ids[:, 0]] - run.model.W_U[:, ids[:, 1]]).T
    direction = held_norm_slope(run.model, run.at("resid_pre", last)[rows, end], direction)
    written = (written_by_heads(run, layer, run.at("z", layer))[rows, end] for layer in range(last))
    said = [einsum(each, direction, "batch head d_model, batch d_model -> batch head") for each in written]
    name, units = "direct contribution (logits)", knockouts.prompts.pairs
    return Scores.over_prompts(torch.stack(said, 1), ("layer", "head"), name, units=units)


def _options(
    circuit: Circuit, head: Head, sets: Mapping[Head, Sequence[Head]] | None
) -> list[tuple[Head, ...]]:
    """The sets K that are tried for a head: the one that is given, or the usual ones."""
    if not sets:
        return _minimality_sets(circuit, head)
    if head not in sets:
        raise CircuitError(
            f"`sets` has no K for head {named([head])}: give one for each head of the circuit."
        )
    return [_inside(circuit, sets[head])]


def _inside(circuit: Circuit, heads: Sequence[Head]) -> tuple[Head, ...]:
    """The heads, if all are the circuit's: to take away another one would change nothing without a word."""
    K = tuple(head_of(head) for head in heads)
    stray = [head for head in K if head not in circuit.heads]
    if stray:
        raise CircuitError(f"{named(stray)} is in a set K, and not in the circuit: {named(circuit.heads)}.")
    return K


def _minimality_sets(circuit: Circuit, head: Head) -> list[tuple[Head, ...]]:
    mine = circuit.role(head)
    mates = tuple(other for other in circuit.roles[mine] if other != head)
    others = [tuple(heads) for role, heads in circuit.roles.items() if role != mine]
    return list(dict.fromkeys([(), mates, *others]))


def _part(circuit: Circuit, heads: Sequence[Head]) -> Circuit:
    """Some of the circuit's heads, at their positions; edges and MLPs do not count."""
    gone = _inside(circuit, heads)
    rest = [head for head in circuit.heads if head not in gone]
    return replace(circuit.without(rest), edges=(), mlps=None)
