"""Dot plots: named numbers with their intervals, one a row."""

import re
from collections.abc import Mapping, Sequence

from mechlab.pictures.plots import GREY, SYMBOLS, Picture, figure


def dots(
    rows: Mapping[str, Sequence[float]],
    name: str,
    *,
    groups: Mapping[str, str] | None = None,
    limits: Sequence[float] = (),
    **layout,
) -> Picture:
    """Draw one row for each name: a dot, and a bar from the low to the high end of its interval.

    rows:   name -> (value, low, high); (value,) where there is no interval
    groups: name -> what it belongs to; groups are told apart by colour and shape
    limits: values at which a dashed line stands, such as a threshold that was set before
    Raises a `ValueError` for an empty plot.
    """
    if not rows:
        raise ValueError("There is no row to draw.")
    size = {"height": 130 + 19 * len(rows), "margin_l": 48 + 7 * max(map(len, rows))}
    unit = re.search(r"\(([^()]+)\)", name)  # the title says the rest
    fig = figure(name, unit[1] if unit else name.partition(",")[0], "", **(size | layout))
    groups = groups or {}
    for n, group in enumerate(dict.fromkeys(groups.get(row, "") for row in rows)):
        mine = {row: [*values] for row, values in rows.items() if groups.get(row, "") == group}
        x, low, high = zip(*([v[0], *(v[1:3] or v * 2)] for v in mine.values()), strict=True)
        more = [b - a for a, b in zip(x, high, strict=True)]
        less = [a - b for a, b in zip(x, low, strict=True)]
        error = {"type": "data", "array": more, "arrayminus": less, "thickness": 1.5, "width": 4}
        mark = {"symbol": SYMBOLS[n % len(SYMBOLS)], "size": 8}
        fig.add_scatter(x=x, y=[*mine], mode="markers", error_x=error, marker=mark, name=group)
    fig.add_vline(x=0, line_color=GREY, line_width=1)
    for limit in limits:
        fig.add_vline(x=limit, line_dash="dash", line_color=GREY)
    fig.update_yaxes(type="category", categoryorder="array", categoryarray=[*rows][::-1], dtick=1)
    fig.update_layout(showlegend=bool(groups), legend={"orientation": "h", "y": 1, "yanchor": "bottom"})
    first = sorted(rows, key=lambda row: -abs(rows[row][0]))[:3]
    lines = f" Lines at {', '.join(f'{limit:g}' for limit in limits)}." if limits else ""
    told = "; ".join(f"{row} {_told(rows[row])}" for row in first)
    return Picture(fig, f"{name}, {len(rows)} rows.{lines} Furthest from zero: {told}.")


def _told(values: Sequence[float]) -> str:
    ends = f" [{values[1]:.2f}, {values[2]:.2f}]" if len(values) > 1 else ""
    return f"{values[0]:+.2f}{ends}"
