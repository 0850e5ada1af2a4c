"""How faithful are the circuits of every size that a ranking of nodes gives? A curve, and two areas.

Mueller et al. 2025 (MIB). C(k) are the best nodes of the ranking, a share k of all, and everything else is
what it would be in another prompt. m is the mean metric:

    f(k) = (m(C(k)) − m(nothing)) / (m(everything) − m(nothing))

CPR is the area under f: large when few nodes bring the metric back, and also when some of them bring back
more than all do. CMD is the area under |1 − f|: small when circuits of every size do what the model does.
Both are sums of trapezoids over k. Random rankings do not have 0, and the truth does not have 1: see `areas`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.arguments import at_least
from mechlab.circuits.circuits import CircuitError, by_node
from mechlab.metrics import Metric
from mechlab.results import Scores
from mechlab.runs.engines import runs_of
from mechlab.runs.run import Put, Run
from mechlab.tokens import Prompts

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

    from mechlab.pictures.plots import Picture

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # MIB's sizes
FEW = 48  # nodes, up to which every size is measured
Node = tuple[int, int | None]  # layer, and head or, for the MLP, None


@runtime_checkable
class Knockouts(Protocol):
    """What runs a model with some heads and MLPs alone, such as `CircuitRuns` and `Counterfactuals`.

    z: what stands in for the heads, [layer batch pos head d_head]
    """

    z: Float[Tensor, "layer batch pos head d_head"]

    def measure_kept(
        self, kept: Bool[Tensor, "circuit layer batch pos head"], mlps: Bool[Tensor, "circuit layer"] | None
    ) -> Float[Tensor, "circuit batch"]: ...


class Counterfactuals:
    """A model on some prompts, where all that a circuit leaves out is as in the prompt's counterfactual.

    base, source: prompts and, for each, the one that stands in for it; equal in length
    """

    def __init__(
        self, model: "TransformerBridge", base: Prompts | Run, source: Prompts | Run, metric: Metric
    ):
        self.run, other = runs_of(model, base, source)
        self.metric, self.intact = metric, self.run.value(metric)
        layers = range(model.cfg.n_layers)
        self.z, self.mlp_out = (
            torch.stack([other.at(site, layer) for layer in layers]) for site in ("z", "mlp_out")
        )

    def measure_kept(
        self,
        kept: Bool[Tensor, "circuit layer batch pos head"],
        mlps: Bool[Tensor, "circuit layer"] | None = None,
    ) -> Float[Tensor, "circuit batch"]:
        """The metric where only what is marked is computed; without `mlps` all MLPs are."""
        puts = [Put("z", layer, self.z[layer][None], ~kept[:, layer]) for layer in range(len(self.z))]
        for layer, here in enumerate([] if mlps is None else mlps.T):
            puts.append(Put("mlp_out", layer, self.mlp_out[layer][None], ~here[:, None, None]))
        return self.run.edited(self.metric, puts)


@dataclass(frozen=True)
class CircuitCurve:
    """f of the circuits that a ranking gives, from no node to all.

    counts: how many nodes are kept, of counts[-1]
    found:  f at each size: 0 for nothing, 1 for the whole model
    random: f of random rankings
    truth:  f when the true nodes come first and the others by chance, drawn anew for each row; None: unknown
    ends:   the mean metric with nothing and with everything
    """

    counts: Int[Tensor, "size"]
    found: Float[Tensor, "size"]
    random: Float[Tensor, "draw size"]
    truth: Float[Tensor, "draw size"] | None
    ends: tuple[float, float]

    @property
    def shares(self) -> Float[Tensor, "size"]:
        """Nodes kept, as a share of all."""
        return self.counts / self.counts[-1]

    @property
    def cpr(self) -> float:
        """The area under f."""
        return float(self._cpr(self.found))

    @property
    def cmd(self) -> float:
        """The area under |1 − f|."""
        return float(self._cmd(self.found))

    def areas(self) -> "pd.DataFrame":
        """CPR and CMD of the ranking, of the truth (mean over draws), and of random rankings.

        "random, best": the best of the draws by either area, which a method must beat to say anything.
        """
        import pandas as pd

        cpr, cmd = self._cpr(self.random), self._cmd(self.random)
        rows = {"ranking": (self.cpr, self.cmd)}
        if self.truth is not None:
            rows["truth"] = (float(self._cpr(self.truth).mean()), float(self._cmd(self.truth).mean()))
        rows["random, mean"] = (float(cpr.mean()), float(cmd.mean()))
        rows["random, best"] = (float(cpr.max()), float(cmd.min()))
        return pd.DataFrame.from_dict(rows, orient="index", columns=["CPR", "CMD"]).round(3)

    def plot(self, **layout) -> "Picture":
        """f over the number of nodes kept, beside the truth's and the mean of random rankings."""
        from mechlab.pictures import plots

        lines = {"ranking": self.found}
        if self.truth is not None:
            lines["truth"] = self.truth.mean(0)
        lines[f"mean of {len(self.random)} random rankings"] = self.random.mean(0)
        labels = {"ranking": [*lines], "nodes kept": [str(count) for count in self.counts.tolist()]}
        shown = Scores(torch.stack([*lines.values()]), ("ranking", "nodes kept"), "faithfulness f", labels)
        return plots.scores(shown, lines=True, **layout)

    def _cpr(self, f: Float[Tensor, "... size"]) -> Float[Tensor, "..."]:
        return torch.trapezoid(f, self.shares)

    def _cmd(self, f: Float[Tensor, "... size"]) -> Float[Tensor, "..."]:
        return torch.trapezoid((1 - f).abs(), self.shares)


def circuit_curve(
    runs: Knockouts,
    scores: Scores,
    *,
    truth: Bool[Tensor, "*place"] | None = None,
    shares: Sequence[float] | None = None,
    signed: bool = False,
    random: int = 20,
    seed: int = 0,
) -> CircuitCurve:
    """f at each size of the circuits that a ranking gives, and at the same sizes for random rankings.

    runs:   `Counterfactuals` (MIB), or `CircuitRuns` with whatever it knocks out with
    scores: dims ("layer", "head"), and all MLPs stay; or ("node",), as of `by_node`. The embedding stays
    truth:  which places are true, to have the curve of a ranking that knows
    shares: of nodes, the sizes. None: every size where there are up to 48 nodes, else MIB's ten
    signed: rank by value, for circuits that are to do the task well; else by size. Equal ones stay in order
    random: how many random rankings

    0 and all nodes are measured in any case. A `CircuitError` where nothing and everything have one metric.
    """
    nodes, values = nodes_of(scores)
    counts = _counts(len(nodes), shares)
    chance, draws = torch.Generator().manual_seed(seed), at_least("random", random, 1)
    by_chance = torch.rand(draws, len(nodes), generator=chance)
    rows = [(values if signed else values.abs())[None], by_chance]
    if truth is not None:
        if truth.shape != scores.values.shape:
            raise CircuitError(f"The truth is of {(*truth.shape,)}, the scores of {(*scores.values.shape,)}.")
        true = nodes_of(replace(scores, values=truth.float(), per_prompt=None, units=None, whole=None))[1]
        rows.append(true + torch.rand(draws, len(nodes), generator=chance))
    order = torch.cat(rows).argsort(dim=1, descending=True, stable=True)
    mean = _measured(runs, nodes, order, counts)
    empty, whole = mean[0, 0], mean[0, -1]
    if (whole - empty).abs() < 1e-6:
        raise CircuitError(
            "The metric is the same with nothing as with everything, so circuits have no share of it."
        )
    f = (mean - empty) / (whole - empty)
    found, drawn, known = f[0], f[1 : 1 + draws], f[1 + draws :]
    return CircuitCurve(counts, found, drawn, None if truth is None else known, (float(empty), float(whole)))


def nodes_of(scores: Scores) -> tuple[list[Node], Float[Tensor, "node"]]:
    """The heads and MLPs that scores speak of, and their values."""
    named = scores if scores.dims == ("node",) else by_node(scores)
    names = [named.label("node", n) for n in range(named.size("node"))]
    counted = [n for n, name in enumerate(names) if name != "embed"]
    return [_node(names[n]) for n in counted], named.values[counted]


def _node(name: str) -> Node:
    """A node by its name: "20.0" a head, "mlp 20" an MLP."""
    layer, _, head = name.partition(".")
    if layer.isdecimal() and head.isdecimal():
        return int(layer), int(head)
    if not (mlp := name.removeprefix("mlp ")).isdecimal() or mlp == name:
        raise CircuitError(f'There is no node {name!r}: heads are called "20.0", MLPs "mlp 20".')
    return int(mlp), None


def _counts(nodes: int, shares: Sequence[float] | None) -> Int[Tensor, "size"]:
    """How many nodes the circuits have, each size once, with none and all."""
    if shares is None:
        if nodes <= FEW:
            return torch.arange(nodes + 1)
        shares = SHARES
    if not all(0 <= share <= 1 for share in shares):
        raise CircuitError(f"shares is {shares!r:.80}: give shares of the nodes, from 0 to 1.")
    return torch.tensor(sorted({0, nodes, *(round(share * nodes) for share in shares)}))


def _measured(
    runs: Knockouts, nodes: list[Node], order: Int[Tensor, "ranking node"], counts: Int[Tensor, "size"]
) -> Float[Tensor, "ranking size"]:
    """The mean metric of the best nodes of each ranking. Each set of nodes is measured once."""
    rank = order.argsort(1)
    kept = (rank[:, None] < counts[:, None]).flatten(0, 1)  # [ranking size, node]
    sets, which = kept.unique(dim=0, return_inverse=True)
    layers, prompts, pos, heads, _ = runs.z.shape
    marked = torch.ones(len(sets), layers, heads, dtype=torch.bool)  # what no score is of stays
    mlps = torch.ones(len(sets), layers, dtype=torch.bool)
    for number, (layer, head) in enumerate(nodes):
        if not 0 <= layer < layers or not 0 <= (head or 0) < heads:
            raise CircuitError(f"The scores name {layer}.{head}; the runs have {layers} × {heads} heads.")
        if head is None:
            mlps[:, layer] = sets[:, number]
        else:
            marked[:, layer, head] = sets[:, number]
    places = marked[:, :, None, None].expand(-1, -1, prompts, pos, -1).to(runs.z.device)
    found = runs.measure_kept(places, None if mlps.all() else mlps.to(runs.z.device)).mean(1).cpu()
    return found[which].unflatten(0, (len(order), len(counts)))
