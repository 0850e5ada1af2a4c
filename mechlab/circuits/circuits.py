"""Circuits: which few heads, at which places, do the work?

A circuit names heads by role, each with the positions where the role acts, and perhaps the edges between
them. How to find one: `path_patching`, `edge_attribution`, `prune`. How to prove one: `knockouts.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from mechlab.arguments import head_of
from mechlab.results import Scores, named

Head = tuple[int, int]


class CircuitError(ValueError):
    """A circuit that says nothing, or that the model or the prompts do not have."""


@dataclass(frozen=True)
class Edge:
    """One head that another reads: through its queries, keys or values, or that the logits read directly.

    effect: what the path does to the metric, a share of the way from base to source (see `path_patching`)
    """

    sender: Head
    receiver: Head | None  # None: the logits
    into: str  # "q", "k", "v" or "logits"
    effect: float = 0.0


@dataclass(frozen=True)
class Circuit:
    """Heads by role, and where each role acts.

    roles: {"name mover": [(23, 0), (23, 1)], ...}; a head has one role
    at:    {"name mover": ["end"], ...}: names of positions, as in the prompts; a role that is missing acts
           everywhere
    edges: who reads whom, where that was measured
    mlps:  the layers whose MLP belongs to the circuit; None: MLPs are left alone, as in the IOI paper
    """

    roles: Mapping[str, Sequence[Head]]
    at: Mapping[str, Sequence[str]] = field(default_factory=dict)
    edges: Sequence[Edge] = ()
    mlps: Sequence[int] | None = None

    def __post_init__(self):
        if not isinstance(self.roles, Mapping):
            raise CircuitError('Give heads by role, {"name mover": [(23, 0)]}, or `Circuit.of([(23, 0)])`.')
        roles = {role: tuple(map(_head, heads)) for role, heads in self.roles.items()}
        object.__setattr__(self, "roles", roles)
        all_heads = [head for heads in roles.values() for head in heads]
        twice = sorted({head for head in all_heads if all_heads.count(head) > 1})
        if twice:
            raise CircuitError(
                f"{named(twice)} has two roles: give each head one, and all its positions to it."
            )
        unknown = [role for role in self.at if role not in roles]
        if unknown:
            raise CircuitError(f"`at` names {unknown[0]!r}, and the roles are {', '.join(map(repr, roles))}.")
        stray = [e for e in self.edges if not {e.sender, e.receiver} - {None} <= {*all_heads}]
        if stray:
            raise CircuitError(
                f"The edge {stray[0].sender} to {stray[0].receiver} has an end outside the circuit."
            )

    @property
    def heads(self) -> list[Head]:
        """All heads, first layers first."""
        return sorted(head for heads in self.roles.values() for head in heads)

    def role(self, head: Head) -> str:
        """The role of a head."""
        for role, heads in self.roles.items():
            if tuple(head) in heads:
                return role
        raise CircuitError(f"Head {named([head])} is not in the circuit: {named(self.heads)}.")

    def positions(self, head: Head) -> tuple[str, ...] | None:
        """The names of the positions where a head acts; None: everywhere."""
        at = self.at.get(self.role(head))
        return None if at is None else tuple(at)

    def without(self, heads: Sequence[Head]) -> "Circuit":
        """The circuit without some heads, and without the edges from and to them."""
        gone = {tuple(head) for head in heads}
        roles = {role: [h for h in mine if h not in gone] for role, mine in self.roles.items()}
        roles = {role: mine for role, mine in roles.items() if mine}
        return replace(
            self,
            roles=roles,
            at={role: at for role, at in self.at.items() if role in roles},
            edges=[e for e in self.edges if e.sender not in gone and e.receiver not in gone],
        )

    @classmethod
    def of(cls, heads: Sequence[Head], **given) -> "Circuit":
        """A circuit of heads that have no role (yet): what an automatic method finds."""
        return cls({"head": sorted({_head(head) for head in heads})}, **given)


def _head(head: Head) -> Head:
    try:
        return head_of(head)
    except ValueError as error:
        raise CircuitError(str(error)) from None


def overlap(one: Sequence[Head], other: Sequence[Head]) -> float:
    """Jaccard index of two sets of heads: shared / in either. 1: the same; 0: nothing in common."""
    mine, theirs = {*map(tuple, one)}, {*map(tuple, other)}
    if not mine | theirs:
        raise CircuitError("Both circuits are empty, so their overlap has no meaning.")
    return len(mine & theirs) / len(mine | theirs)


def by_node(*parts: Scores) -> Scores:
    """Scores of heads and of MLPs as one list of nodes: dims ("node",), named as `edge_attribution` does.

    parts: dims ("layer", "head"), heads: "20.0"; ("layer",), MLPs: "mlp 20"; ("part",) or ("node",), by their
           own names. The values of each prompt are kept where all have them

    A `CircuitError` for other dims. Two parts of one name are numbered, as labels are everywhere.
    """
    if not parts:
        raise CircuitError("There are no scores to put together.")
    prompts = [each.per_prompt.flatten(1) for each in parts if each.per_prompt is not None]
    kept = len(prompts) == len(parts)
    return replace(
        parts[0],
        values=torch.cat([each.values.flatten() for each in parts]),
        dims=("node",),
        labels={"node": [name for each in parts for name in _nodes(each)]},
        per_prompt=torch.cat(prompts, dim=1) if kept else None,
        units=parts[0].units if kept else None,
        whole=None,
    )


def _nodes(scores: Scores) -> list[str]:
    """What the places of some scores are called as nodes."""
    if scores.dims in (("part",), ("node",)):
        return [scores.label(scores.dims[0], n) for n in range(len(scores.values))]
    if scores.dims == ("layer",):
        return [f"mlp {scores.label('layer', n)}" for n in range(len(scores.values))]
    if scores.dims != ("layer", "head"):
        raise CircuitError(f"Scores of {scores.dims} are not of heads or MLPs.")
    layers, heads = map(range, scores.values.shape)
    return [f"{scores.label('layer', n)}.{scores.label('head', head)}" for n in layers for head in heads]


def roc(scores: Scores, truth: Sequence[Head]):
    """How well the size of a score finds the heads of a known circuit: a table of rates, and the AUC.

    scores: dims ("layer", "head"). Returns (DataFrame of "false positive rate", "true positive rate",
            "threshold", AUC).
    AUC, the area under the curve of the table, is the probability that a head of the circuit has a larger
    score than another one; 0.5 is chance.
    """
    import pandas as pd
    from sklearn.metrics import roc_auc_score, roc_curve

    sizes = scores.values.abs()
    labels = sizes.new_zeros(sizes.shape)
    for layer, head in map(_head, truth):
        if not (0 <= layer < sizes.shape[0] and 0 <= head < sizes.shape[1]):
            raise CircuitError(f"The scores have no head {layer}.{head}: they are {tuple(sizes.shape)}.")
        labels[layer, head] = 1
    if not 0 < labels.sum() < labels.numel():
        raise CircuitError("A ROC curve needs heads inside the circuit and heads outside of it.")
    flat, size = labels.flatten().numpy(), sizes.flatten().numpy()
    false, true, threshold = roc_curve(flat, size)
    table = pd.DataFrame({"false positive rate": false, "true positive rate": true, "threshold": threshold})
    return table, float(roc_auc_score(flat, size))
