"""A circuit as a figure."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from mechlab.circuits.circuits import Circuit
from mechlab.pictures import plots
from mechlab.pictures.colours import sign
from mechlab.pictures.graph.plan import Plan, lay_out
from mechlab.pictures.graph.words import described, in_words, reader
from mechlab.results import named

SHAPES = (*plots.SYMBOLS, "hexagon", "triangle-down")
# Pixels, of about one area.
SIZES = {"square": 32, "diamond": 33, "cross": 33, "triangle-up": 42, "triangle-down": 42}
# Told apart by every kind of colour vision (Okabe and Ito; Tol); the two that stand for signs are the edges'.
COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#B8A800", "#444444", "#332288")
ROW = 37  # pixels


def circuit_picture(
    circuit: Circuit, *, title: str = "Circuit", order: Sequence[str] | None = None, **layout
) -> plots.Picture:
    """Draw a circuit: heads by layer and position, early layers at the bottom, and edges by effect.

    order: names of positions from left to right (default: as `circuit.at` names them)

    Colour and shape tell the role. Edges are as wide as their effect is large: red lines for effects above 0,
    dashed blue ones below. The letter on an edge says what it enters: queries, keys or values. Raises
    `CircuitError` for a circuit that cannot be drawn.
    """
    plan = lay_out(circuit, order)
    legend = 22 * -(-(len(circuit.roles) + 2) // 4)
    inner = max(ROW * plan.size[1], 220)
    sizes = {"height": int(inner + 130 + legend), "margin": {"l": 64, "r": 16, "t": 48, "b": 82 + legend}}
    fig = plots.figure(title, "position", "layer (of those with heads)", **(sizes | layout))
    _draw_frame(fig, plan)
    _draw_edges(fig, plan)
    _draw_heads(fig, plan, circuit)
    if circuit.edges:
        for name, effect in (("effect above 0", 1), ("effect below 0", -1)):
            line = sign(effect) | {"width": 3}
            fig.add_scatter(x=[None], y=[None], mode="lines", name=name, line=line)
    place = {"orientation": "h", "y": -60 / inner, "yanchor": "top", "x": 0}
    fig.update_layout(legend=place | {"itemclick": False, "itemdoubleclick": False}, hoverdistance=30)
    return plots.Picture(fig, in_words(circuit, title))


def looks(circuit: Circuit) -> dict[str, tuple[str, str]]:
    """Shape and colour of each role; no two roles share both."""
    return {
        role: (SHAPES[n % len(SHAPES)], COLOURS[(n + n // len(SHAPES)) % len(COLOURS)])
        for n, role in enumerate(circuit.roles)
    }


def tint(colour: str, share: float = 0.25) -> str:
    """A colour mixed with white, light enough for dark text."""
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - share * (255 - part)):02X}" for part in parts)


def _draw_frame(fig: go.Figure, plan: Plan) -> None:
    """The columns and their names, the layers, the logits."""
    width, height = plan.size
    for _, left, right in plan.columns:
        ends = {"x0": left, "x1": right, "y0": -0.5, "y1": height - 1.5}
        fig.add_shape(type="rect", fillcolor="#F4F4F4", line_width=0, layer="below", **ends)
    bare = {"showgrid": False, "showline": False, "ticks": "", "fixedrange": True}
    margin = max(0, 8 - width) / 2  # few heads stand together in the middle
    names = [name for name, _, _ in plan.columns]
    middles = [(left + right) / 2 for _, left, right in plan.columns]
    fig.update_xaxes(range=[-margin, width + margin], tickvals=middles, ticktext=names, **bare)
    layers, heights = zip(*plan.layers, strict=True)
    fig.update_yaxes(range=[-0.6, height - 0.5], tickvals=heights, ticktext=list(map(str, layers)), **bare)
    x, y = plan.logits
    box = {"bgcolor": "#FFFFFF", "bordercolor": "#222222", "borderwidth": 2, "borderpad": 5}
    fig.add_annotation(x=x, y=y, text="<b>logits</b>", showarrow=False, **box)


def _draw_edges(fig: go.Figure, plan: Plan) -> None:
    """Curves as shapes, which take few bytes; on each a letter that tells the rest when pointed at."""
    if not plan.edges:
        return
    for edge, curve, _ in plan.edges:
        first, *rest = (f"{x:.4g},{y:.4g}" for x, y in curve)
        line = sign(edge.effect) | {"width": plan.thickness(edge)}
        fig.add_shape(type="path", path=f"M{first}C{' '.join(rest)}", layer="below", opacity=0.75, line=line)
    edges = [edge for edge, _, _ in plan.edges]
    x, y = np.array([label for *_, label in plan.edges]).round(2).T.tolist()
    outline = {"color": [sign(edge.effect)["color"] for edge in edges], "width": 1}
    sizes = [7 if edge.receiver is None else 14 for edge in edges]
    marker = {"size": sizes, "color": "#FFFFFF", "line": outline}
    letters = ["" if edge.receiver is None else edge.into for edge in edges]
    told = [f"{named([e.sender])} into {reader(e)}: {e.effect:+.3f}" for e in edges]
    hover = {"customdata": told, "hovertemplate": "%{customdata}<extra></extra>", "showlegend": False}
    fig.add_scatter(x=x, y=y, mode="markers+text", text=letters, textfont_size=10, marker=marker, **hover)


def _draw_heads(fig: go.Figure, plan: Plan, circuit: Circuit) -> None:
    narrow = min(1.0, 640 / plan.size[0] / 54)
    for role, (shape, colour) in looks(circuit).items():
        heads = circuit.roles[role]
        if not heads:
            continue
        x, y = zip(*(plan.heads[head] for head in heads), strict=True)
        marker: dict[str, Any] = {"symbol": shape, "size": narrow * SIZES.get(shape, 36)}
        marker |= {"color": tint(colour), "line": {"color": colour, "width": 2.5}}
        told = [described(circuit, head) for head in heads]
        hover = {"text": told, "hovertemplate": "%{text}<extra></extra>"}
        fig.add_scatter(x=x, y=y, mode="markers", name=role, marker=marker, **hover)
    x, y = zip(*plan.heads.values(), strict=True)
    names = [f"<b>{named([head])}</b>" for head in plan.heads]
    fig.add_scatter(x=x, y=y, mode="text", text=names, textfont_size=12, showlegend=False, hoverinfo="skip")
