"""An attribution graph as a figure: neurons by position and layer, and the largest links between them."""

from typing import TYPE_CHECKING

from mechlab.pictures import plots
from mechlab.pictures.colours import GREY, sign

if TYPE_CHECKING:
    from mechlab.attribution.graphs import AttributionGraph, Source

    Places = dict[Source, tuple[float, float]]

ROW = 26  # pixels of a layer


def graph_picture(graph: "AttributionGraph", *, most: int = 40, **layout) -> plots.Picture:
    """The neurons, the embeddings below and the metric on top; errors are told in words.

    most: links that are drawn, the largest. Red for, dashed blue against; as wide as the change that they
          carry is large
    """
    places, layers, columns = _places(graph)
    links = _largest(graph, most)
    size = {"height": 190 + ROW * len(layers), "margin_b": 76}
    fig = plots.figure(f"What changed {graph.name}", "position", "layer", **(size | layout))
    widest = max((abs(value) for _, _, value in links), default=1.0)
    for source, target, value in links:
        (x, y), (u, v) = places[source], places[target]
        line = sign(value) | {"width": 0.5 + 5 * abs(value) / widest}
        path = f"M{x},{y} C{x},{(y + v) / 2} {u},{(y + v) / 2} {u},{v}"
        fig.add_shape(type="path", path=path, line=line, layer="below", opacity=0.7)
    change = dict(zip(graph.targets, graph.change.tolist(), strict=True))
    for kind, symbol in (("embedding", "square"), ("neuron", "circle"), ("metric", "star")):
        some = [source for source in places if source.kind == kind]
        told = [graph.label(s) + (f": {change[s]:+.2f}" if s in change else "") for s in some]
        at = {"x": [places[s][0] for s in some], "y": [places[s][1] for s in some], "text": told}
        mark = {"symbol": symbol, "size": 12, "color": GREY, "line": {"color": "#FFFFFF", "width": 1}}
        fig.add_scatter(**at, mode="markers", marker=mark, name=kind, hoverinfo="text", showlegend=False)
    names = [f"{graph.tokens[pos]!r}" for pos in columns]
    fig.update_xaxes(tickvals=[*range(len(columns))], ticktext=names, range=[-0.6, len(columns) - 0.4])
    rows = ["embedding", *map(str, layers[1:-1]), graph.name]
    fig.update_yaxes(tickvals=[*range(len(rows))], ticktext=rows, range=[-0.6, len(rows) - 0.4])
    return plots.Picture(fig, in_words(graph))


def in_words(graph: "AttributionGraph", most: int = 6) -> str:
    """The graph in sentences: how many neurons, the largest links, and what its errors come to."""
    listed = "; ".join(
        f"{graph.label(source)} to {graph.label(target)} {value:+.2f}"
        for source, target, value in _largest(graph, most)
    )
    last = zip(graph.sources, graph.links[-1].tolist(), strict=True)
    kept = sum(value for source, value in last if source.kind in ("neuron", "embedding"))
    return (
        f"What changed {graph.name} by {float(graph.change[-1]):+.2f}: {len(graph.nodes)} neurons, which do "
        f"{kept:+.2f} of it directly with the embeddings. The largest links: {listed or 'none'}. Errors are "
        "not drawn."
    )


def _largest(graph: "AttributionGraph", most: int) -> "list[tuple[Source, Source, float]]":
    """(source, target, change) of the largest links that begin at no error."""
    rows = [
        (source, target, value)
        for target, row in zip(graph.targets, graph.links.tolist(), strict=True)
        for source, value in zip(graph.sources, row, strict=True)
        if source.kind in ("neuron", "embedding") and value
    ]
    return sorted(rows, key=lambda each: -abs(each[2]))[:most]


def _places(graph: "AttributionGraph") -> "tuple[Places, list[int], list[int]]":
    """Where each node stands, and which layers and positions there are; neighbours share a column."""
    drawn = [source for source in graph.sources if source.kind in ("neuron", "embedding")]
    drawn.append(graph.targets[-1])
    top = 1 + max((source.layer for source in drawn), default=0)
    layer = lambda source: top if source.kind == "metric" else source.layer
    layers = sorted({-1, top, *map(layer, drawn)})
    columns = sorted({source.pos for source in drawn})
    cells: dict[tuple[int, int], list[Source]] = {}
    for source in drawn:
        cells.setdefault((columns.index(source.pos), layers.index(layer(source))), []).append(source)
    places: Places = {}
    for (x, y), some in cells.items():
        for n, source in enumerate(some):
            places[source] = x + 0.8 * ((n + 0.5) / len(some) - 0.5), float(y)
    return places, layers, columns
