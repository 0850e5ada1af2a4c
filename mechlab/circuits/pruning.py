"""Finding a circuit without looking.

Take parts away, last layer first, as long as the metric stays where it is.

The search of ACDC (Conmy et al. 2023) over heads at positions instead of edges, with mean or resample
ablation as the `CircuitRuns` say. Going from the last layer to the first, all that comes before the part in
question is still whole, so every trial is taken up in its layer.
"""

import math
from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from mechlab.arguments import one_of
from mechlab.circuits.circuits import Circuit, CircuitError, Head
from mechlab.circuits.knockouts import CircuitRuns, check_ability

ERRORS = ("mean", "prompt")


def prune(
    knockouts: CircuitRuns,
    threshold: float,
    *,
    candidates: Mapping[Head, Sequence[str]] | Sequence[Head] | None = None,
    error: str = "mean",
) -> Circuit:
    """The circuit that is left when each head, at each position, goes that can go for less than `threshold`.

    threshold:  by how much the error may grow with one more part gone, as a share of the intact metric
    candidates: heads, with the names of positions where each may act, or heads that act everywhere (default:
                all); everything else is gone from the start
    error:      "mean": how far the mean metric is from the intact one, so that parts that help and parts that
                hurt may cancel; "prompt": the mean over prompts of how far each is
    """
    one_of("error", error, ERRORS)
    if not isinstance(threshold, (int, float)) or math.isnan(threshold):
        raise CircuitError(f"threshold is {threshold!r}; it must be a number, such as 0.01.")
    check_ability(knockouts)
    layers, heads = knockouts.z.shape[0], knockouts.z.shape[3]
    if candidates is None:
        candidates = [(layer, head) for layer in range(layers) for head in range(heads)]
    if not isinstance(candidates, Mapping):
        candidates = dict.fromkeys(Circuit.of(candidates).heads, ())
    left = {head: [*names] or [None] for head, names in candidates.items()}
    kept = knockouts.keeping(_circuit(left))
    size = knockouts.intact.mean().abs()
    now = _error(knockouts, knockouts.measure_kept(kept[None])[0], error)
    # Below the layer of a trial nothing has been tried yet, so one run serves every trial.
    run = knockouts.run.changed(knockouts.edits(kept[None]))
    for head in sorted(left, reverse=True):
        for name in [*left[head]]:
            trial = kept & ~knockouts.keeping(_circuit({head: [name]}))
            edits = [put for put in knockouts.edits(trial[None]) if put.layer >= head[0]]
            then = _error(knockouts, run.edited(knockouts.metric, edits)[0], error)
            if then - now < threshold * size:
                left[head].remove(name)
                kept, now = trial, then
    return _circuit(left)


def _error(knockouts: CircuitRuns, found: Float[Tensor, "batch"], how: str) -> Tensor:
    off = found - knockouts.intact
    return off.mean().abs() if how == "mean" else off.abs().mean()


def _circuit(left: Mapping[Head, Sequence[str | None]]) -> Circuit:
    """Heads, grouped by where they act."""
    roles: dict[str, list[Head]] = {}
    at: dict[str, tuple[str, ...]] = {}
    for head, names in left.items():
        if not names:
            continue
        places = tuple(name for name in names if name is not None)
        role = "at " + ", ".join(places) if places else "everywhere"
        roles.setdefault(role, []).append(head)
        if places:
            at[role] = places
    return Circuit(roles, at)
