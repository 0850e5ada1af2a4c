"""A graph of few neurons: who changed whom directly, and what is left over, under its own name.

`attribution_graph` makes it of a `Contrast`, or of one prompt (`FrozenRun`). Each row, of a neuron or of the
metric, adds up to the change of its target: from the neurons kept, from the embeddings, and from the errors,
which are the neurons that were not kept, heads that looked elsewhere, and norms of another length.
Influence, completeness and replacement score are those of Ameisen et al. 2025; none of the three says that a
graph is right (random weights score as well).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.attribution.following import Direct, Following, Place

if TYPE_CHECKING:
    import pandas as pd

    from mechlab.pictures.plots import Picture

ERRORS = ("other neurons", "patterns", "norms")
# What viewers of attribution graphs call the kinds of nodes.
TYPES = {"neuron": "cross layer transcoder", "embedding": "embedding", "metric": "logit"}
TYPES["biases"] = "embedding"  # no error: an end at which paths begin
TYPES |= dict.fromkeys(ERRORS, "mlp reconstruction error")


@dataclass(frozen=True)
class Source:
    """Where a part of a change comes from; layer and pos are -1 where it has none of its own."""

    kind: str  # "neuron", "embedding", "biases", or one of ERRORS
    layer: int = -1
    pos: int = -1
    neuron: int = -1


@dataclass(frozen=True)
class AttributionGraph:
    """Few neurons of a contrast. The targets are the neurons and, last, the metric.

    sources: the neurons first, in the same order; then embeddings and errors
    links:   [target, source]; each row adds up to the target's change
    change:  [target];  tokens: of the base prompt;  name: of the metric
    """

    sources: tuple[Source, ...]
    links: Float[Tensor, "target source"]
    change: Float[Tensor, "target"]
    tokens: tuple[str, ...]
    name: str = "metric"

    @property
    def nodes(self) -> list[Place]:
        """The neurons: (layer, position, neuron)."""
        return [(s.layer, s.pos, s.neuron) for s in self.sources if s.kind == "neuron"]

    def influence(self) -> Float[Tensor, "source"]:
        """How much of all that reaches the metric, on any path, passes each source; sizes without signs.

        Each row's sizes are made to add up to 1; a path counts the product of its links.
        """
        reached, weights = torch.zeros(len(self.sources)), self._shares()
        reached += weights[-1]
        for node in reversed(range(len(self.nodes))):  # first layers first: causes come before
            reached += reached[node] * weights[node]
        return reached

    def scores(self) -> dict[str, float]:
        """Completeness: what share of the links, weighed by their target's influence, is no error.

        Replacement: what share of all paths from the ends to the metric begins at an embedding, and not at
        an error.
        """
        count, reached = len(self.nodes), self.influence()
        wrong = torch.tensor([source.kind in ERRORS for source in self.sources])
        of_target = torch.cat([reached[:count], torch.ones(1)])
        right = (self._shares() * ~wrong).sum(1)
        ends = reached[count:]
        return {
            "completeness": float((of_target * right).sum() / of_target.sum()),
            "replacement": float(ends[~wrong[count:]].sum() / ends.sum()),
        }

    def prune(self, keep: float = 0.8) -> "AttributionGraph":
        """Only the neurons that hold this share of the neurons' influence; the others become errors."""
        if not 0 < keep <= 1:
            raise ValueError(f"keep is {keep}: a share above 0, up to 1.")
        reached = self.influence()[: len(self.nodes)]
        order = reached.argsort(descending=True, stable=True)
        before = reached[order].cumsum(0) - reached[order]
        kept = {int(node) for node in order[before < keep * reached.sum()]}
        return self._without([n for n in range(len(self.nodes)) if n not in kept])

    def _without(self, gone: Sequence[int]) -> "AttributionGraph":
        sources, links = list(self.sources), self.links.clone()
        for node in gone:
            error = Source("other neurons", sources[node].layer, sources[node].pos)
            if error not in sources:
                sources.append(error)
                links = torch.cat([links, torch.zeros(len(links), 1)], 1)
            links[:, sources.index(error)] += links[:, node]
        columns = [n for n in range(len(sources)) if n not in gone]
        rows = [n for n in range(len(links)) if n not in gone]
        return replace(
            self,
            sources=tuple(sources[n] for n in columns),
            links=links[rows][:, columns],
            change=self.change[rows],
        )

    def _shares(self) -> Float[Tensor, "target source"]:
        sizes = self.links.abs()
        return sizes / sizes.sum(1, keepdim=True).clamp_min(1e-12)

    def top(self, k: int = 20) -> "pd.DataFrame":
        """The k largest links: from, to, how much, and what share of the target's change that is."""
        import pandas as pd

        order = self.links.abs().flatten().argsort(descending=True, stable=True)[:k].tolist()
        rows = []
        for target, source in (divmod(place, len(self.sources)) for place in order):
            value = float(self.links[target, source])
            rows.append(
                {
                    "from": self.label(self.sources[source]),
                    "to": self.label(self.targets[target]),
                    "change": value,
                    "share": value / (float(self.change[target]) or float("nan")),
                }
            )
        return pd.DataFrame(rows).round(3)

    def plot(self, most: int = 40, **layout) -> "Picture":
        """Neurons by position and layer, and the largest links. Keywords go to plotly's layout."""
        from mechlab.pictures.tracing.graphs import graph_picture

        return graph_picture(self, most=most, **layout)

    @property
    def targets(self) -> list[Source]:
        """The neurons and, last, the metric: a row of links each."""
        return [*self.sources[: len(self.nodes)], Source("metric", pos=len(self.tokens) - 1)]

    def label(self, source: Source) -> str:
        """What a source is called: L13N1033 at ' France' 4."""
        where = f" at {self.tokens[source.pos]!r} {source.pos}" if source.pos >= 0 else ""
        names = {"neuron": f"L{source.layer}N{source.neuron}", "metric": self.name}
        layer = f" of layer {source.layer}" if source.layer >= 0 else ""
        return names.get(source.kind, source.kind + layer) + ("" if source.kind == "metric" else where)

    def to_json(
        self, path: str | Path, *, slug: str, scan: str, labels: Mapping[Place, str] | None = None
    ) -> None:
        """Write the graph as the viewers of circuit-tracer and Neuronpedia read it.

        slug: the graph's name there; scan: the model's; labels: a better name for some neurons.
        """
        targets, names = self.targets, labels or {}
        reached = self.influence()
        order = reached.argsort(descending=True, stable=True)
        summed = torch.zeros_like(reached)
        summed[order] = reached[order].cumsum(0) / reached.sum()
        nodes = [
            self._node(source, float(summed[n]), self._activation(n), names)
            for n, source in enumerate(self.sources)
        ]
        nodes.append(self._node(targets[-1], 0.0, float(self.change[-1]), names))
        links = [
            {"source": _id(source), "target": _id(targets[t]), "weight": round(float(self.links[t, s]), 6)}
            for t in range(len(targets))
            for s, source in enumerate(self.sources)
            if self.links[t, s] != 0
        ]
        metadata: dict[str, Any] = {
            "slug": slug,
            "scan": scan,
            "transcoder_list": [],
            "prompt": "".join(self.tokens),
        }
        metadata |= {"prompt_tokens": [*self.tokens], "node_threshold": 1.0, "schema_version": 1}
        view = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
        whole = {"metadata": metadata, "qParams": view, "nodes": nodes, "links": links}
        Path(path).write_text(json.dumps(whole, ensure_ascii=False, indent=1), encoding="utf-8")

    def _activation(self, source: int) -> float | None:
        return float(self.change[source]) if source < len(self.nodes) else None

    def _node(self, source: Source, influence: float, activation: float | None, names: Mapping) -> dict:
        label = names.get((source.layer, source.pos, source.neuron), self.label(source))
        last = source.kind == "metric"
        feature = (
            _paired(max(source.layer, 0), source.neuron) if source.kind == "neuron" else max(source.pos, 0)
        )
        layer = {"embedding": "E", "metric": str(1 + max(s.layer for s in self.sources))}
        return {
            "node_id": _id(source),
            "feature": feature,
            "layer": layer.get(source.kind, str(max(source.layer, 0))),
            "ctx_idx": max(source.pos, 0),
            "feature_type": TYPES[source.kind],
            "jsNodeId": f"{_id(source)}-0",
            "clerp": f'Output "{label}" (p=1.000)' if last else label,
            "influence": influence,
            "activation": activation,
            "token_prob": 1.0 if last else 0.0,
            "is_target_logit": last,
            "run_idx": 0,
            "reverse_ctx_idx": 0,
        }


def attribution_graph(contrast: Following, nodes: Sequence[Place], name: str = "metric") -> AttributionGraph:
    """Some neurons of one pair of prompts: what changed each of them and the metric, the rest by its names.

    Of one prompt with a `FrozenRun`: what each neuron is made of.

    nodes: (layer, position, neuron), in any order; name: what to call the metric
    """
    nodes = sorted(set(nodes))
    parts = zip(
        vars(contrast.direct(nodes)).values(), vars(contrast.direct_on_metric()).values(), strict=True
    )
    rows = Direct(*(torch.cat(pair) for pair in parts))
    tokens = [str(contrast.model.to_string([token])) for token in contrast.base.tokens[0].tolist()]
    others, columns = rows.neurons.clone(), []
    for layer, pos, neuron in nodes:
        columns.append(others[:, layer, pos, neuron].clone())
        others[:, layer, pos, neuron] = 0
    sources = [Source("neuron", *node) for node in nodes]
    sources += [Source("embedding", -1, pos) for pos in range(len(tokens))]
    columns += [*rows.embeddings.T]
    for kind, each in (("other neurons", others.sum(-1)), ("patterns", rows.patterns.sum(-1))):
        layers, places = each.shape[1:]
        sources += [Source(kind, layer, pos) for layer in range(layers) for pos in range(places)]
        columns += [*each.flatten(1).T]
    links = torch.stack([*columns, rows.rest], 1)
    used = links.abs().sum(0) > 0
    used[: len(nodes)] = True
    kept = [source for source, keep in zip([*sources, Source(contrast.rest)], used, strict=True) if keep]
    return AttributionGraph(tuple(kept), links[:, used], rows.change, tuple(tokens), name)


def _id(source: Source) -> str:
    """A name of its own for each node; that of a neuron is layer_neuron_position."""
    if source.kind == "neuron":
        return f"{source.layer}_{source.neuron}_{source.pos}"
    return "_".join([source.kind.replace(" ", "-"), *(str(n) for n in (source.layer, source.pos) if n >= 0)])


def _paired(first: int, second: int) -> int:
    """One number for two (Cantor's pairing), by which viewers tell features of all layers apart."""
    return (first + second) * (first + second + 1) // 2 + second
