"""Finding a circuit without looking.

Take parts away, last layer first, as long as the metric stays where it is.

The search of ACDC (Conmy et al. 2023) over heads at positions instead of edges, with mean or resample
ablation as the `CircuitRuns` say. Going from the last layer to the first, all that comes before the part in
question is still whole, so every trial is taken up in its layer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.arguments import one_of
from mechlab.circuits.circuits import Circuit, CircuitError, Head, by_node
from mechlab.circuits.knockouts import CircuitRuns, check_ability
from mechlab.results import Scores

ERRORS = ("mean", "prompt")


def prune(
    knockouts: CircuitRuns,
    threshold: float,
    *,
    candidates: Mapping[Head, Sequence[str]] | Sequence[Head] | None = None,
    error: str = "mean",
    mlps: Sequence[int] = (),
) -> Circuit:
    """The circuit that is left when each head, at each position, goes that can go for less than `threshold`.

    threshold:  by how much the error may grow with one more part gone, as a share of the intact metric
    candidates: heads, with the names of positions where each may act, or heads that act everywhere (default:
                all); everything else is gone from the start
    error:      "mean": how far the mean metric is from the intact one, so that parts that help and parts that
                hurt may cancel; "prompt": the mean over prompts of how far each is
    mlps:       layers whose MLP may go as well; without any, the circuit says nothing of MLPs
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
    kept, whole = knockouts.keeping(_circuit(left)), torch.ones(layers, dtype=torch.bool)
    size = knockouts.intact.mean().abs()
    now = _error(knockouts, knockouts.measure_kept(kept[None])[0], error)
    # Below the layer of a trial nothing has been tried yet, so one run serves every trial.
    run = knockouts.run.changed(knockouts.edits(kept[None]))
    for layer, head, name in _trials(left, mlps, layers):
        trial, those = kept, whole
        if head is None:
            those = whole & (torch.arange(layers) != layer)
        else:
            trial = kept & ~knockouts.keeping(_circuit({(layer, head): [name]}))
        edits = [put for put in knockouts.edits(trial[None], those[None]) if put.layer >= layer]
        then = _error(knockouts, run.edited(knockouts.metric, edits)[0], error)
        if then - now < threshold * size:
            kept, whole, now = trial, those, then
            if head is not None:
                left[layer, head].remove(name)
    return replace(_circuit(left), mlps=whole.nonzero()[:, 0].tolist() if len(mlps) else None)


def prune_ranking(
    knockouts: CircuitRuns, thresholds: Sequence[float], *, error: str = "mean", mlps: bool = False
) -> Scores:
    """The largest threshold at which `prune` leaves a part; 0 where it goes at all. Dims ("layer", "head").

    A search gives a set; many searches rank. Where two parts do the same, one of them goes first and the
    other then cannot: the two differ by the order of the search, not by what they do.

    mlps: MLPs may go too; dims are then ("node",), named as `edge_attribution` names what sends
    """
    if not len(thresholds):
        raise CircuitError("There is no threshold to prune at: the list is empty.")
    layers, heads = knockouts.z.shape[0], knockouts.z.shape[3]
    values, late = torch.zeros(layers, heads), torch.zeros(layers)
    for threshold in sorted(thresholds):
        found = prune(knockouts, threshold, error=error, mlps=range(layers) if mlps else ())
        for head in found.heads:
            values[head] = threshold
        late[[*(found.mlps or ())]] = threshold
    name = "largest threshold at which it stays"
    ranked = Scores(values, ("layer", "head"), name, signed=False)
    return by_node(ranked, Scores(late, ("layer",), name)) if mlps else ranked


def _trials(
    left: Mapping[Head, Sequence[str | None]], mlps: Sequence[int], layers: int
) -> list[tuple[int, int | None, str | None]]:
    """In which order parts are tried, the last first: (layer, head or None for the MLP, position)."""
    stray = [layer for layer in mlps if not 0 <= layer < layers]
    if stray:
        raise CircuitError(f"The MLP of layer {stray[0]} cannot go: there are layers 0 to {layers - 1}.")
    found: list[tuple[int, int | None, str | None]] = []
    for layer in reversed(range(layers)):
        found += [(layer, None, None)] * (layer in mlps)
        here = sorted((head for head in left if head[0] == layer), reverse=True)
        found += [(*head, name) for head in here for name in left[head]]
    return found


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
