"""Small drawings in plain HTML, for widgets that redraw at every move of a slider."""

import html

import torch


def bars(rows: list[tuple[str, float]], unit: str) -> str:
    """Rows of label, bar and number: readable as text, drawn with plain HTML."""
    largest = max(abs(value) for _, value in rows) or 1.0
    cells = "".join(
        f'<tr><td style="text-align:right;padding-right:8px">{html.escape(label)}</td><td style="width:320px">'
        f'<div style="height:14px;width:{abs(value) / largest * 100:.0f}%;background:{"#D55E00" if value >= 0 else "#0072B2"}">'
        f'</div></td><td style="padding-left:8px"><code>{value:+.2f}</code></td></tr>'
        for label, value in rows
    )
    return f'<table><caption style="text-align:left">{unit}</caption>{cells}</table>'


def grid(pattern: torch.Tensor, tokens: list[str], title: str) -> str:
    """An attention pattern as a table: a row for each token that looks, darker where it looks more."""
    rows = ""
    for n, (label, weights) in enumerate(zip(tokens, pattern.tolist(), strict=True)):
        best = max(range(n + 1), key=lambda i: weights[i])
        cells = "".join(
            f'<td title="{html.escape(tokens[i], quote=True)}: {v:.2f}" style="width:18px;height:16px;padding:0;'
            f'border:1px solid #E6E6E6;background:rgba(0,114,178,{v:.2f})"></td>'
            for i, v in enumerate(weights)
        )
        rows += (
            f'<tr><td style="text-align:right;padding-right:8px"><code>{html.escape(label)}</code></td>{cells}'
            f'<td style="padding-left:8px">{weights[best]:.2f} on <code>{html.escape(tokens[best])}</code></td></tr>'
        )
    caption = f"{title}: each row looks back along the columns (same tokens, same order)"
    return f'<table style="border-collapse:collapse"><caption style="text-align:left">{caption}</caption>{rows}</table>'


def arrows(vectors: torch.Tensor, limit: float) -> str:
    """Vectors of two dimensions as an SVG drawing, `limit` at the edge."""
    lines = "".join(
        f'<line x1="120" y1="120" x2="{120 + 120 * x / limit:.1f}" y2="{120 - 120 * y / limit:.1f}" stroke="#0072B2" '
        f'stroke-width="2"/><circle cx="{120 + 120 * x / limit:.1f}" cy="{120 - 120 * y / limit:.1f}" r="4" fill="#0072B2"/>'
        for x, y in vectors.tolist()
    )
    return f'<svg width="240" height="240" role="img" aria-label="feature directions">{lines}</svg>'
