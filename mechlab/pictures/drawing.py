"""Small drawings in plain HTML, for widgets that redraw at every move of a slider."""

import html

import torch
from jaxtyping import Float


def bars(rows: list[tuple[str, float]], unit: str) -> str:
    """Rows of label, bar and number: readable as text, drawn with plain HTML."""
    largest = max(abs(value) for _, value in rows) or 1.0
    cells = ""
    for label, value in rows:
        width, colour = abs(value) / largest * 100, "#D55E00" if value >= 0 else "#0072B2"
        cells += (
            f'<tr><td style="text-align:right;padding-right:8px">{html.escape(label)}</td>'
            f'<td style="width:320px"><div style="height:14px;width:{width:.0f}%;background:{colour}">'
            f'</div></td><td style="padding-left:8px"><code>{value:+.2f}</code></td></tr>'
        )
    return f'<table><caption style="text-align:left">{unit}</caption>{cells}</table>'


def grid(pattern: Float[torch.Tensor, "query_pos key_pos"], tokens: list[str], title: str) -> str:
    """An attention pattern as a table: a row for each token that looks, darker where it looks more."""
    rows, cell = "", "width:18px;height:16px;padding:0;border:1px solid #E6E6E6;background:rgba(0,114,178,"
    for n, (label, weights) in enumerate(zip(tokens, pattern.tolist(), strict=True)):
        best = max(range(n + 1), key=lambda i: weights[i])
        cells = "".join(
            f'<td title="{html.escape(tokens[i], quote=True)}: {v:.2f}" style="{cell}{v:.2f})"></td>'
            for i, v in enumerate(weights)
        )
        rows += (
            f'<tr><td style="text-align:right;padding-right:8px"><code>{html.escape(label)}</code></td>'
            f'{cells}<td style="padding-left:8px">{weights[best]:.2f} on '
            f"<code>{html.escape(tokens[best])}</code></td></tr>"
        )
    caption = f"{title}: each row looks back along the columns (same tokens, same order)"
    return (
        '<table style="border-collapse:collapse"><caption style="text-align:left">'
        f"{caption}</caption>{rows}</table>"
    )


def arrows(vectors: Float[torch.Tensor, "arrow 2"], limit: float) -> str:
    """Vectors of two dimensions as an SVG drawing, `limit` at the edge."""
    lines = ""
    for x, y in (120 * vectors / limit).tolist():
        x, y = f"{120 + x:.1f}", f"{120 - y:.1f}"
        lines += f'<line x1="120" y1="120" x2="{x}" y2="{y}" stroke="#0072B2" stroke-width="2"/>'
        lines += f'<circle cx="{x}" cy="{y}" r="4" fill="#0072B2"/>'
    return f'<svg width="240" height="240" role="img" aria-label="feature directions">{lines}</svg>'
