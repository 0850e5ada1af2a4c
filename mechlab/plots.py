"""Figures from results: each carries a title, units, a text twin, and, where there is a sign, colours centred at zero.

Functions take a result and return a `Picture`; nothing is shown until a cell ends with it. The twin is one
sentence that says what the figure shows: for screen readers, for pages that cannot draw, and for diffs.
"""

import html
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float

from mechlab.results import Scores

BLUE, RED, GREY = "#0072B2", "#D55E00", "#555555"  # Okabe and Ito: told apart by every kind of colour vision
DIVERGING = [[0, BLUE], [0.5, "#FFFFFF"], [1, RED]]
RISING = [[0, "#FFFFFF"], [1, BLUE]]
LAYOUT = {
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#222222"},
    "plot_bgcolor": "#FFFFFF",
    "paper_bgcolor": "#FFFFFF",
    "colorway": [BLUE, RED, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"],
    "margin": {"l": 64, "r": 24, "t": 56, "b": 56},
    "hoverlabel": {"font": {"family": "ui-monospace, monospace"}},
    "width": 720,
    "height": 420,
    "template": "none",
}
AXIS = {
    "showline": True,
    "linecolor": "#888888",
    "gridcolor": "#E6E6E6",
    "zeroline": False,
    "ticks": "outside",
}


@dataclass
class Picture:
    """A plotly figure and the sentence that says what it shows. `.figure` is the plotly object."""

    figure: go.Figure
    text: str

    def _ipython_display_(self) -> None:
        from IPython.display import display

        # The plain MIME bundle: JupyterLab, VS Code, Colab and nbviewer draw it, and it stays a few KB.
        bundle = {
            "application/vnd.plotly.v1+json": json.loads(self.figure.to_json()),
            "text/plain": self.text,
        }
        if _in_colab():
            bundle["text/html"] = self.figure.to_html(include_plotlyjs="cdn", full_html=False)
        display(bundle, raw=True)
        print("In words:", self.text)

    def __repr__(self) -> str:
        return f"Picture: {self.text}"


def figure(title: str, x: str, y: str, /, **layout) -> go.Figure:
    """An empty figure in the course's style, with titled axes (name the unit in the title)."""
    title = layout.pop("title", title)
    fig = go.Figure(layout=go.Layout(**(LAYOUT | {"title": {"text": title, "x": 0.01}} | layout)))
    fig.update_xaxes(title={"text": x, "standoff": 16}, **AXIS)  # room for long tick labels
    fig.update_yaxes(title={"text": y, "standoff": 12}, **AXIS)
    return fig


def scores(result: Scores, *, words: Sequence[Sequence[str]] | None = None, **layout) -> Picture:
    """Draw a result by its dimensions: one becomes a bar chart (or a line, when unlabelled), two a heat map.

    words: a text for each cell of a heat map, written into it.
    """
    if len(result.dims) == 1:
        drawn = _line(result, layout)
    elif len(result.dims) == 2:
        drawn = _heatmap(result, layout, words)
    else:
        raise ValueError(
            f"A picture needs one or two dimensions, and this result has {result.dims}. Average over one of them first."
        )
    return Picture(drawn, result.summary())


def _line(result: Scores, layout: dict) -> go.Figure:
    (dim,) = result.dims
    fig = figure(result.name, dim, _unit(result.name), **layout)
    x = [result.label(dim, i) for i in range(result.size(dim))] if dim in result.labels else None
    error = None
    if result.per_prompt is not None and len(result.per_prompt) > 1:
        low, high = result.interval()
        error = {
            "type": "data",
            "array": _floats(high - result.values),
            "arrayminus": _floats(result.values - low),
        }
    values = _floats(result.values)
    if x is None:
        fig.add_scatter(y=values, mode="lines+markers", error_y=error)
    else:
        colours = [RED if v >= 0 else BLUE for v in values] if result.signed else BLUE
        numbers = {"texttemplate": "%{y:.2f}", "textposition": "outside", "cliponaxis": False}
        fig.add_bar(x=x, y=values, error_y=error, marker_color=colours, **(numbers if len(x) <= 12 else {}))
        fig.update_xaxes(type="category")  # "23.10" is a head, not a number
        _make_room(fig, x)
    for name, value in result.baselines.items():
        fig.add_hline(y=value, line_dash="dot", line_color=GREY, annotation_text=name)
    return fig


def _heatmap(result: Scores, layout: dict, words: Sequence[Sequence[str]] | None) -> go.Figure:
    rows, columns = result.dims
    fig = figure(result.name, columns, rows, **layout)
    limit = float(result.values.abs().max()) or 1.0
    scale = {"colorscale": DIVERGING, "zmid": 0, "zmin": -limit, "zmax": limit}
    if not result.signed:
        scale = {"colorscale": RISING, "zmin": 0, "zmax": limit}
    fig.add_heatmap(
        z=_floats(result.values),
        x=list(result.labels[columns]) if columns in result.labels else None,
        y=list(result.labels[rows]) if rows in result.labels else None,
        colorbar={"title": {"text": result.name, "side": "right"}},
        hovertemplate=f"{rows} %{{y}}, {columns} %{{x}}: %{{z:.3f}}<extra></extra>",
        xgap=1,
        ygap=1,
        **scale,
    )
    if words is not None:
        fig.data[0].update(text=words, texttemplate="%{text}", textfont_size=10)
    elif result.values.numel() <= 64:  # small enough to print the numbers
        fig.data[0].update(texttemplate="%{z:.2f}")
    if columns in result.labels:
        fig.update_xaxes(type="category")
        _make_room(fig, result.labels[columns])
    if rows in result.labels:  # named rows read from the top down, layers from the bottom up
        fig.update_yaxes(type="category", autorange="reversed")
        longest = max(len(label) for label in result.labels[rows])
        fig.update_layout(margin_l=max(fig.layout.margin.l, 48 + 7 * longest))
    return fig


def _make_room(fig: go.Figure, labels: Sequence[str]) -> None:
    """Turn long tick labels and widen the lower margin, so that they stay clear of the axis title."""
    longest = max(len(label) for label in labels)
    if len(labels) * longest * 7 > 500:  # they would not fit side by side
        fig.update_xaxes(tickangle=-90, tickfont_size=11)
        fig.update_layout(margin_b=56 + 7 * longest)


def _unit(name: str) -> str:
    """The unit of a quantity, written in brackets at the end of its name: "logit difference (logits)"."""
    return name.rpartition("(")[2].rstrip(")") if name.endswith(")") else ""


def _floats(values: torch.Tensor) -> np.ndarray:
    """float32: half the bytes of a saved figure."""
    return np.asarray(values, dtype=np.float32)


def _in_colab() -> bool:
    import sys

    return "google.colab" in sys.modules


# --- attention patterns, with CircuitsVis ---------------------------------------------------------------


@dataclass
class AttentionView:
    """CircuitsVis' picture of attention patterns, drawn without the network, and its text twin."""

    props: dict
    text: str

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display({"text/html": self.to_html(_script_needed()), "text/plain": self.text}, raw=True)
        print("In words:", self.text)

    def __repr__(self) -> str:
        return f"AttentionView: {self.text}"

    def to_html(self, with_script: bool = True) -> str:
        """The view as HTML. Only the first one of a page needs the script (1.3 MB), the others a few KB.

        CircuitsVis' own display asks the internet each time and carries the script each time.
        """
        name = f"attention-{uuid.uuid4().hex[:12]}"
        props = json.dumps(self.props).replace("</", "<\\/")  # a token may be "</script>"
        draw = f"CircuitsVis.render('{name}', CircuitsVis.AttentionHeads, {props})"
        excuse = "Run the first attention view of this notebook again, then this cell."
        return (
            (f"<script>{_circuitsvis()};window.CircuitsVis=CircuitsVis;</script>" if with_script else "")
            + f'<div id="{name}" role="img" aria-label="{html.escape(self.text, quote=True)}"></div>'
            + f"<script>(function wait(n) {{ if (window.CircuitsVis) {draw}; else if (n) setTimeout(wait, 100, n - 1);"
            + f' else document.getElementById("{name}").textContent = "{excuse}"; }})(50)</script>'
        )


def attention(
    pattern: Float[torch.Tensor, "head query_pos key_pos"], tokens: Sequence[str], heads: Sequence[str]
) -> AttentionView:
    """Attention patterns of some heads over one prompt: who looks where. Click a head to keep it.

    pattern: `cache["pattern", layer][prompt]`, or some of its heads. heads: their names, such as "20.0".
    """
    if tuple(pattern.shape) != (len(heads), len(tokens), len(tokens)):
        raise ValueError(
            f"pattern is {tuple(pattern.shape)}; with {len(heads)} heads and {len(tokens)} tokens it must be "
            f"({len(heads)}, {len(tokens)}, {len(tokens)})."
        )
    tokens = list(tokens)
    last = pattern[:, -1].argmax(-1)
    looks = ", ".join(
        f"{head} looks at {tokens[int(i)]!r} {int(i)} ({pattern[n, -1, i]:.2f})"
        for n, (head, i) in enumerate(zip(heads, last, strict=True))
    )
    values = pattern.detach().float().cpu().numpy().round(3).tolist()
    props = {"tokens": tokens, "attention": values, "attentionHeadNames": list(heads), "maskUpperTri": True}
    return AttentionView(props, f"Attention patterns of {len(heads)} heads. From the last token, {looks}.")


def _circuitsvis() -> str:
    """CircuitsVis' bundled JavaScript, from the installed package."""
    from importlib.util import find_spec

    folder = Path(find_spec("circuitsvis").origin).parent
    return (folder / "dist" / "cdn" / "iife.js").read_text(encoding="utf-8").replace("</script>", "")


def _script_needed() -> bool:
    """True in the first cell of a kernel that shows a view, when that cell runs again, and always in Colab."""
    from IPython import get_ipython

    shell = get_ipython()
    if _in_colab() or shell is None:  # each Colab output is a page of its own
        return True
    parent = shell.get_parent() if hasattr(shell, "get_parent") else {}
    this_cell = parent.get("metadata", {}).get("cellId") or parent.get("header", {}).get("msg_id")
    return shell.user_ns.setdefault("_attention_script_cell", this_cell) == this_cell
