"""Small drawings in plain HTML, for widgets that redraw at every move of a slider."""

import html
from typing import TYPE_CHECKING

from mechlab.pictures.colours import BLUE, RED

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float


def bars(rows: list[tuple[str, float]], unit: str, *, most: float = 0.0) -> str:
    """Rows of label, bar and number: from a line at zero, to the right above it and to the left below.

    most: the scale reaches at least so far: bars of several drawings can be compared
    """
    values = [value for _, value in rows]
    low, high = min(0.0, *values), max(most, *values)
    share = lambda length: 100 * length / ((high - low) or 1.0)
    zero = f"background:linear-gradient(#888,#888) {share(-low):.1f}% 0/1px 100% no-repeat"
    cells, sign = "", "+" if low < 0 else ""  # a probability has none
    for label, value in rows:
        place = f"margin-left:{share(min(value, 0.0) - low):.1f}%;width:{share(abs(value)):.1f}%"
        colour = RED if value >= 0 else BLUE
        cells += (
            f'<tr><td style="text-align:right;padding:1px 8px">{html.escape(label)}</td>'
            f'<td style="width:320px;padding:1px 0;{zero}">'
            f'<div style="height:14px;{place};background:{colour}"></div></td>'
            f'<td style="text-align:right;padding:1px 8px"><code>{value:{sign}.2f}</code></td></tr>'
        )
    return f'<table style="line-height:1.4"><caption style="text-align:left">{unit}</caption>{cells}</table>'


def grid(pattern: "Float[torch.Tensor, 'query_pos key_pos']", tokens: list[str], title: str) -> str:
    """An attention pattern as a table: a row for each token that looks, the deeper the more it looks."""
    rows, cell = (
        "",
        "width:18px;height:16px;padding:0;border:1px solid rgba(128,128,128,.25);background:rgba(0,114,178,",
    )
    for n, (label, weights) in enumerate(zip(tokens, pattern.tolist(), strict=True)):
        best = max(range(n + 1), key=lambda i: weights[i])
        cells = "".join(
            f'<td title="{html.escape(tokens[i], quote=True)}: {v:.2f}" style="{cell}{v:.2f})"></td>'
            for i, v in enumerate(weights)
        )
        rows += (
            f'<tr><td style="text-align:right;padding:0 8px"><code>{html.escape(label)}</code></td>'
            f'{cells}<td style="padding:0 8px">{weights[best]:.2f} on '
            f"<code>{html.escape(tokens[best])}</code></td></tr>"
        )
    caption = f"{title}: each row looks back along the columns (same tokens, same order)"
    return (
        '<table style="border-collapse:collapse;line-height:1.3"><caption style="text-align:left">'
        f"{caption}</caption>{rows}</table>"
    )


def arrows(vectors: "Float[torch.Tensor, 'arrow 2']", limit: float) -> str:
    """Vectors of two dimensions as an SVG drawing, `limit` at the edge."""
    lines = ""
    for x, y in (120 * vectors / limit).tolist():
        x, y = f"{120 + x:.1f}", f"{120 - y:.1f}"
        lines += f'<line x1="120" y1="120" x2="{x}" y2="{y}" stroke="#0072B2" stroke-width="2"/>'
        lines += f'<circle cx="{x}" cy="{y}" r="4" fill="#0072B2"/>'
    return f'<svg width="240" height="240" role="img" aria-label="feature directions">{lines}</svg>'
