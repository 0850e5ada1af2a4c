"""Figures from results, with title, units, a text twin, and colours centred at zero where there is a sign.

Functions take a result and return a `Picture`; nothing is shown until a cell ends with it. The twin is one
sentence that says what the figure shows: for screen readers, for pages that cannot draw, and for diffs.
"""

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float

from mechlab.pictures.colours import BLUE, GREY, RED
from mechlab.pictures.twins import show_words
from mechlab.results import Scores, in_words
from mechlab.statistics import FEWEST_UNITS

SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x")  # lines are told apart by shape too
DIVERGING = [[0, BLUE], [0.5, "#FFFFFF"], [1, RED]]
RISING = [[0, "#FFFFFF"], [1, BLUE]]
PALE = {BLUE: "#66AAD1", RED: "#E49659"}  # where numbers stand on them: 4.5 to 1, on dark paper too
HEIGHT = 420  # pixels
LAYOUT = {
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#222222"},
    "plot_bgcolor": "#FFFFFF",
    "paper_bgcolor": "#FFFFFF",
    "colorway": [BLUE, RED, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"],
    "margin": {"l": 64, "r": 24, "t": 56, "b": 56},
    "hoverlabel": {"font": {"family": "ui-monospace, monospace"}},
    "width": 720,
    "height": HEIGHT,
    "template": "none",
}
CONFIG = {"displaylogo": False, "modeBarButtons": [["toImage", "resetScale2d"]]}
LETTER, BUTTONS = 7.5, 70  # pixels, of a letter of a title, and what the toolbar beside it takes
BAR = 120  # pixels that a colour bar takes; its title has no more letters than that
ROW, MOST_ROWS = 13, 36  # pixels of a row of a heat map that is labelled; rows for which it grows
OUTLINE = {"showline": True, "linecolor": "#888888", "ticks": "outside"}
AXIS = OUTLINE | {"gridcolor": "#E6E6E6", "zeroline": False}


@dataclass
class Picture:
    """A plotly figure and the sentence that says what it shows. `.figure` is the plotly object."""

    figure: go.Figure
    text: str

    def _ipython_display_(self) -> None:
        from IPython.display import display

        # The plain MIME bundle: JupyterLab, VS Code, Colab and nbviewer draw it, and it stays a few KB.
        drawn = json.loads(self.figure.to_json()) | {"config": CONFIG}
        bundle = {"application/vnd.plotly.v1+json": drawn, "text/plain": self.text}
        if in_colab():
            bundle["text/html"] = self.figure.to_html(include_plotlyjs="cdn", full_html=False, config=CONFIG)
        display(bundle, raw=True)
        show_words(self.text)

    def __repr__(self) -> str:
        return f"Picture: {self.text}"


def figure(title: str, x: str, y: str, /, **layout) -> go.Figure:
    """An empty figure in the course's style, with titled axes (name the unit in the title)."""
    fig = go.Figure(layout=go.Layout(**(LAYOUT | layout | {"title": {"x": 0.01, "font_size": 15}})))
    room = int((fig.layout.width - BUTTONS) / LETTER)
    lines = textwrap.wrap(layout.get("title", title), room)
    fig.update_layout(title_text="<br>".join(lines), margin_t=fig.layout.margin.t + 19 * len(lines[1:]))
    fig.update_xaxes(title={"text": x, "standoff": 16}, **AXIS)  # room for long tick labels
    fig.update_yaxes(title={"text": y, "standoff": 12}, automargin=True, **AXIS)  # long names are seen whole
    return fig


def scores(
    result: Scores, *, words: Sequence[Sequence[str]] | None = None, lines: bool = False, **layout
) -> Picture:
    """Draw a result by its dimensions: one becomes a bar chart (or a line, when unlabelled), two a heat map.

    words: a text for each cell of a heat map, written into it
    lines: two dimensions as one line for each label of the first, instead of a heat map
    """
    if len(result.dims) not in (1, 2):
        raise ValueError(
            f"A picture needs one or two dimensions, and this result has {result.dims}. Average over one of "
            "them first."
        )
    if len(result.dims) == 2 and not lines:
        return Picture(_heatmap(result, layout, words), result.summary())
    fig = _line(result, layout) if len(result.dims) == 1 else _lines(result, layout)
    for name, value in result.baselines.items():  # named outside: inside the name would cross what is drawn
        said = {"annotation_text": name, "annotation_position": "right"}
        fig.add_hline(y=value, line_dash="dot", line_color=GREY, **said)
        fig.update_layout(margin_r=max(fig.layout.margin.r, 16 + 7 * len(name)))
    return Picture(fig, result.summary())


def _line(result: Scores, layout: dict) -> go.Figure:
    (dim,) = result.dims
    fig = figure(result.name, in_words(dim), _unit(layout.get("title", ""), result.name), **layout)
    values, error, low, high = _floats(result.values), None, None, None
    if result.independent >= FEWEST_UNITS:
        low, high = map(_floats, result.interval())
        error = {"type": "data", "array": high - values, "arrayminus": values - low}
    if dim not in result.labels:
        fig.add_scatter(y=values, mode="lines+markers", error_y=error)
    else:
        x = [result.label(dim, i) for i in range(result.size(dim))]
        colours = [RED if v >= 0 else BLUE for v in values] if result.signed else BLUE
        fig.add_bar(x=x, y=values, error_y=error, marker_color=colours, showlegend=False)
        if len(x) <= 12:
            _write_numbers(fig, x, values, low, high)
        fig.update_xaxes(type="category")  # "23.10" is a head, not a number
        _make_room(fig, x)
    return fig


def _write_numbers(
    fig: go.Figure, x: list[str], values: np.ndarray, low: np.ndarray | None, high: np.ndarray | None
) -> None:
    """The number of each bar; beyond its interval, if it has one, which would cross the number elsewhere."""
    if low is None or high is None:
        fig.update_traces(texttemplate="%{y:.2f}", textposition="outside", cliponaxis=False)
        return
    up, gap = values >= 0, 0.02 * float((high - low).max() + np.ptp(values))
    sides = ["top center" if each else "bottom center" for each in up]
    text = {"text": [f"{v:.2f}" for v in values], "textposition": sides, "hoverinfo": "skip"}
    fig.add_scatter(
        x=x, y=np.where(up, high + gap, low - gap), mode="text", cliponaxis=False, showlegend=False, **text
    )


def _with_marks(n: int) -> dict:
    """A line of its own mark: lines are told apart by shape too."""
    return {"mode": "lines+markers", "marker": {"symbol": SYMBOLS[n % len(SYMBOLS)], "size": 8}}


def _lines(result: Scores, layout: dict) -> go.Figure:
    rows, columns = result.dims
    fig = figure(result.name, in_words(columns), _unit(layout.get("title", ""), result.name), **layout)
    names = [result.label(columns, i) for i in range(result.size(columns))]
    x = [int(name) for name in names] if all(name.isdecimal() for name in names) else names
    for n, values in enumerate(result.values):
        fig.add_scatter(x=x, y=_floats(values), name=result.label(rows, n), **_with_marks(n))
    longest = max(len(result.label(rows, n)) for n in range(len(result.values)))
    beside = max(1, (fig.layout.width - 88) // (48 + 7 * longest))  # entries of the legend in a row
    below = 78 + 20 * math.ceil(len(result.values) / beside)
    inner = fig.layout.height - fig.layout.margin.t - below  # the legend's place is a share of this
    legend = {"orientation": "h", "y": -55 / max(inner, 55), "yanchor": "top"}
    fig.update_layout(legend=legend, margin_b=below)
    return fig


def _heatmap(result: Scores, layout: dict, words: Sequence[Sequence[str]] | None) -> go.Figure:
    rows, columns = result.dims
    names = [result.label(rows, i) for i in range(result.size(rows))]
    fig = figure(result.name, in_words(columns), in_words(rows) + _with_gaps(names), **layout)
    limit = float(result.values.abs().max()) or 1.0
    colours, written = DIVERGING if result.signed else RISING, {}
    ends = {"zmid": 0, "zmin": -limit} if result.signed else {"zmin": 0}
    if words is not None:
        written = {"text": words, "texttemplate": "%{text}", "textfont_size": 10}
    elif result.values.numel() <= 96 and result.size(columns) <= 12:  # small enough to print the numbers
        written = {"texttemplate": "%{z:.2f}"}
    if written:
        colours = [[at, PALE.get(str(colour), colour)] for at, colour in colours]
        written["textfont_color"] = "#000000"
    unit = _unit(layout.get("title", ""), result.name)
    where = {"x": result.labels.get(columns), "y": result.labels.get(rows), "xgap": 1, "ygap": 1}
    fig.add_heatmap(
        z=_floats(result.values),
        colorbar={"title": {"text": unit if LETTER * len(unit) < BAR + 24 else "", "side": "top"}},
        hovertemplate=f"{rows} %{{y}}, {columns} %{{x}}: %{{z:.3f}}<extra></extra>",
        colorscale=colours,
        zmax=limit,
        **(ends | written | where),
    )
    _name_axes(fig, result, grow="height" not in layout and len(names) <= MOST_ROWS)
    return fig


def _name_axes(fig: go.Figure, result: Scores, grow: bool) -> None:
    """Name columns and rows; every row where there is room, or where the map may grow, else every second."""
    rows, columns = result.dims
    names = [result.label(rows, i) for i in range(result.size(rows))]
    if rows in result.labels:  # named rows read from the top down, layers from the bottom up
        fig.update_yaxes(type="category", autorange=True if rows == "layer" else "reversed")
        fig.update_layout(margin_l=max(fig.layout.margin.l, 48 + 7 * max(map(len, names))))
    if columns in result.labels:
        fig.update_xaxes(type="category")
        _make_room(fig, result.labels[columns], BAR)
    elif result.size(columns) <= 16:
        fig.update_xaxes(dtick=1)
    inner = fig.layout.height - fig.layout.margin.t - fig.layout.margin.b
    short = grow * max(0, ROW * len(names) - inner)
    fig.update_layout(height=fig.layout.height + short)
    step = math.ceil((ROW - 1) * len(names) / max(inner + short, 1))
    labels = names[::step] if rows in result.labels else [*range(0, len(names), step)]
    fig.update_yaxes(tickvals=labels, ticktext=names[::step])
    if ROW * len(names) > inner / 2:
        fig.update_yaxes(tickfont_size=10)


def _with_gaps(names: list[str]) -> str:
    """What to say beside an axis whose numbers leave some out: they stand at equal steps all the same."""
    numbers = [int(name) for name in names if name.isdecimal()]
    apart = len(numbers) == len(names) and any(b - a != 1 for a, b in pairwise(numbers))
    return " (not every one)" if apart else ""


def _make_room(fig: go.Figure, labels: Sequence[str], taken: int = 0) -> None:
    """Break or turn long tick labels and widen the lower margin: they stay clear of the axis title.

    taken: pixels that a colour bar has of the width
    """
    longest, margin = max(len(label) for label in labels), fig.layout.margin
    wide = fig.layout.width - margin.l - margin.r - taken
    if len(labels) * longest * 7 <= 0.8 * wide:  # they fit side by side
        return
    room = max(1, wide // (7 * len(labels)))  # letters
    broken = [textwrap.wrap(label, room, break_long_words=False, break_on_hyphens=False) for label in labels]
    lines = max(map(len, broken))
    if lines <= 3 and max(len(line) for each in broken for line in each) <= room:
        fig.update_xaxes(tickvals=list(labels), ticktext=["<br>".join(each) for each in broken], tickangle=0)
        fig.update_layout(margin_b=56 + 16 * lines)
    else:
        fig.update_xaxes(tickangle=-90, tickfont_size=11)
        fig.update_layout(margin_b=56 + 7 * longest)
    margin = fig.layout.margin
    fig.update_layout(height=max(fig.layout.height, margin.t + margin.b + 160))


def _unit(*names: str) -> str:
    """The unit of a quantity, in brackets at the end of the first name that has one: "effect (logits)"."""
    return next((name.rpartition("(")[2].rstrip(")") for name in names if name.endswith(")")), "")


def _floats(values: Float[torch.Tensor, "..."]) -> np.ndarray:
    """float32: half the bytes of a saved figure."""
    values = values.detach().float().cpu() if isinstance(values, torch.Tensor) else values
    return np.asarray(values, dtype=np.float32)


def in_colab() -> bool:
    import sys

    return "google.colab" in sys.modules


def arrows(
    planes: Sequence[Float[torch.Tensor, "_ 2"]], titles: Sequence[str], name: str, **layout
) -> Picture:
    """Vectors of two dimensions as arrows from the middle, one panel for each tensor, on one scale."""
    from plotly.subplots import make_subplots

    limit = 1.3 * max(float(plane.abs().max()) for plane in planes) or 1.0
    fig = make_subplots(1, len(planes), subplot_titles=list(titles), horizontal_spacing=0.02)
    for column, plane in enumerate(planes, 1):
        fig.add_scatter(**_panel(_floats(plane)), row=1, col=column)
    plain = {"showticklabels": False, "zeroline": True, "zerolinecolor": "#DDDDDD", "showgrid": False}
    fig.update_xaxes(range=[-limit, limit], **plain)
    fig.update_yaxes(range=[-limit, limit], **plain)
    each = min(180, 900 // len(planes))  # a notebook's pane has room for 940 pixels beside the file browser
    size = {"title": {"text": name, "x": 0.01}, "width": each * len(planes) + 40, "height": each + 84}
    fig.update_layout(**(LAYOUT | size | layout), margin_b=16)
    told = [
        f"{title}: lengths {', '.join(f'{n:.2f}' for n in plane.norm(dim=1).tolist())}"
        for plane, title in zip(planes, titles, strict=True)
    ]
    return Picture(fig, f"{name}. " + "; ".join(told) + ".")


def _panel(ends: np.ndarray) -> dict:
    """Arrows from the middle to their ends [arrow, 2], as one line with a gap after each."""
    gaps = np.full(len(ends), np.nan)
    x, y = (np.stack([0 * end, end, gaps], 1).ravel() for end in ends.T)
    which = np.arange(len(x)) // 3
    hover = [f"feature {n}: length {np.hypot(*ends[n]):.2f}" for n in which]
    tips = [str(n) if place % 3 == 1 else "" for place, n in enumerate(which)]
    sides = ["top center" if ends[n, 1] >= 0 else "bottom center" for n in which]
    text = {"text": tips, "textposition": sides, "hovertext": hover, "hoverinfo": "text"}
    look = {"marker": {"symbol": "circle", "size": 5}, "line": {"color": BLUE}, "showlegend": False}
    return {"x": x, "y": y, "mode": "lines+markers+text", **text, **look}


def effect_and_cost(effect: Scores, cost: Scores, **layout) -> Picture:
    """Effect against cost in perplexity: a line for each label of the first dimension."""
    rows, columns = effect.dims
    fig = figure("Effect and cost", f"{cost.name} (log scale)", effect.name, **layout)
    points, best = [f"{columns} {effect.label(columns, i)}" for i in range(effect.size(columns))], []
    for n, (values, costs) in enumerate(zip(effect.values, cost.values, strict=True)):
        name = f"{rows} {effect.label(rows, n)}"
        told = {"text": points, "hovertemplate": "%{text}: effect %{y:.2f}, perplexity × %{x:.2f}"}
        fig.add_scatter(x=_floats(costs), y=_floats(values), name=name, **told, **_with_marks(n))
        price = costs[values.argmax()]
        best.append(f"{name} reaches {values.max():.2f} at {price:.2f} times the perplexity")
    fig.update_xaxes(type="log")
    fig.add_hline(y=0, line_color=GREY)
    return Picture(fig, f"{effect.name} against {cost.name}: {'; '.join(best)}.")
