"""The plan of a circuit as an SVG drawing, under buttons that carry the names of the heads."""

import html
import math
from collections.abc import Set

import numpy as np

from mechlab.circuits.circuits import Circuit, Edge, Head
from mechlab.pictures.colours import sign
from mechlab.pictures.graph.picture import looks, tint
from mechlab.pictures.graph.plan import Plan, Point
from mechlab.pictures.graph.words import in_words, reader
from mechlab.results import named

HIGH = 40  # pixels, of a head
LEFT, LINE = 34, 18  # of the layers' numbers, of a line below the drawing
A_LINE = 3  # roles in one line of the legend
# Outlines with many or few corners: how many, the turn of the first, how far out.
POLYGONS = {
    "square": (4, 45, 1.4),
    "diamond": (4, 0, 1.3),
    "hexagon": (6, 0, 1.1),
    "triangle-up": (3, -90, 1.4),
    "triangle-down": (3, 90, 1.4),
}
ACROSS = (-4, 4, 4, 11, 11, 4, 4, -4, -4, -11, -11, -4)  # the corners of a cross
DOWN = (-11, -11, -4, -4, 4, 4, 11, 11, 4, 4, -4, -4)
CROSS = np.stack([ACROSS, DOWN], 1) / 9


def circuit_svg(
    plan: Plan, circuit: Circuit, chosen: Head | None = None, removed: Set[Head] = frozenset()
) -> str:
    """The drawing. The chosen head is framed, its edges stand out; removed heads are dashed and crossed."""
    width, height = pixels(circuit, plan)
    parts = [_columns(plan)]
    for mine in (False, True):  # those of the chosen head on top
        parts += [_edge(plan, *it, chosen, removed) for it in plan.edges if (chosen in _ends(it[0])) == mine]
    x, y = _at(plan, plan.logits)
    parts.append(
        f'<rect x="{x - 28}" y="{y - 13}" width="56" height="26" rx="5" fill="#fff" stroke="#222" '
        f'stroke-width="2"/><text x="{x}" y="{y + 4.5}" text-anchor="middle" font-weight="bold">logits</text>'
    )
    kinds = looks(circuit)
    for head, place in plan.heads.items():
        kind = kinds[circuit.role(head)]
        parts.append(_head(_at(plan, place), wide(plan), *kind, head == chosen, head in removed))
    parts.append(_legend(plan, circuit))
    told = html.escape(in_words(circuit), quote=True)
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'style="display:block" aria-label="{told}" font-family="system-ui, sans-serif" font-size="12" '
        f'fill="#222">{"".join(parts)}</svg>'
    )


def wide(plan: Plan) -> int:
    """Pixels of a head, even: fewer where many stand side by side."""
    return 2 * round(min(46, max(38, 500 / plan.size[0])) / 2)


def pixels(circuit: Circuit, plan: Plan) -> tuple[int, int]:
    """Width and height of the drawing."""
    return LEFT + round(wide(plan) * plan.size[0]), round(HIGH * plan.size[1]) + foot(circuit)


def foot(circuit: Circuit) -> int:
    """Height of what stands below the layers: the names of the columns, and the legend."""
    return LINE * (2 + math.ceil(len(circuit.roles) / A_LINE) + bool(circuit.edges))


def _at(plan: Plan, place: Point | np.ndarray) -> Point:
    x, y = map(float, place)
    return round(LEFT + wide(plan) * x, 1), round(HIGH * (plan.size[1] - 0.5 - y), 1)


def _ends(edge: Edge) -> tuple[Head | None, ...]:
    return (edge.sender,) if edge.receiver is None else (edge.sender, edge.receiver)


def _columns(plan: Plan) -> str:
    """Bands with the names of the positions below, and the numbers of the layers."""
    drawn, bottom = "", _at(plan, (0, -0.5))[1]
    for name, left, right in plan.columns:
        x, top = _at(plan, (left, plan.size[1] - 1.5))
        across = wide(plan) * (right - left)
        drawn += f'<rect x="{x}" y="{top}" width="{across}" height="{bottom - top}" fill="#F4F4F4"/>'
        drawn += (
            f'<text x="{x + across / 2}" y="{bottom + 17}" text-anchor="middle">{html.escape(name)}</text>'
        )
    for layer, y in plan.layers:
        drawn += f'<text x="{LEFT - 10}" y="{_at(plan, (0, y))[1] + 4.5}" text-anchor="end">{layer}</text>'
    return drawn + '<text x="0" y="14">layer</text>'


def _edge(
    plan: Plan,
    edge: Edge,
    curve: np.ndarray,
    label: Point | np.ndarray,
    chosen: Head | None,
    removed: Set[Head],
) -> str:
    mine = chosen in _ends(edge)
    gone = bool(removed & set(_ends(edge)))
    faint = 0.08 if gone and not mine else 0.2 if chosen is not None and not mine else 0.8
    first, *rest = (" ".join(map(str, _at(plan, point))) for point in curve)
    kind = sign(edge.effect)
    dash = f'stroke-dasharray="{kind["dash"].replace("px", "")}"' if "dash" in kind else ""
    told = html.escape(f"{named([edge.sender])} into {reader(edge)}: {edge.effect:+.3f}")
    text, across = "" if edge.receiver is None else edge.into, 12
    if mine:
        text, across = f"{edge.effect:.2f}".replace("0.", "."), 26
    if mine and curve[3, 1] - curve[0, 1] < 1:  # short: there is more room nearer to the other end
        t = 0.6 if edge.sender == chosen else 0.4
        label = np.array([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3]) @ curve
    return (
        f'<g opacity="{faint}"><title>{told}</title>'
        f'<path d="M{first}C{", ".join(rest)}" fill="none" stroke="{kind["color"]}" {dash} '
        f'stroke-width="{plan.thickness(edge)}"/>'
        f"{_label(_at(plan, label), across, kind['color'], text) if text else ''}</g>"
    )


def _label(at: Point, across: int, colour: str, text: str) -> str:
    """What stands on an edge: a letter, or its effect."""
    x, y = at
    return (
        f'<rect x="{x - across / 2}" y="{y - 6.5}" width="{across}" height="13" rx="6" fill="#fff" '
        f'stroke="{colour}"/><text x="{x}" y="{y + 3.5}" text-anchor="middle" font-size="10">{text}</text>'
    )


def _head(at: Point, across: int, shape: str, colour: str, chosen: bool, removed: bool) -> str:
    """The outline of a head; its name is on the button above.

    In a frame when chosen; dashed, with a cross, when removed.
    """
    x, y = at
    size = min(across, HIGH) / 3
    frame = (
        f'<rect x="{x - across / 2 + 1}" y="{y - HIGH / 2}" width="{across - 2}" height="{HIGH}" rx="8" '
        'fill="#fff" stroke="#222" stroke-width="2.5"/>'
    )
    drawn = frame if chosen else ""
    if not removed:
        style = f'fill="{tint(colour)}" stroke="{colour}" stroke-width="2.5"'
        return drawn + _outline(shape, at, size, style)
    drawn += _outline(shape, at, size, 'fill="#fff" stroke="#555" stroke-width="2" stroke-dasharray="3 3"')
    return drawn + f'<path d="M{x + 11} {y - 18}l9 9m0 -9l-9 9" stroke="#A00000" stroke-width="3"/>'


def _outline(shape: str, at: Point, size: float | int, style: str) -> str:
    x, y = at
    if shape == "circle":
        return f'<circle cx="{x}" cy="{y}" r="{1.1 * size}" {style}/>'
    if shape in POLYGONS:
        corners, turn, far = POLYGONS[shape]
        angles = np.radians(turn + 360 / corners * np.arange(corners))
        points = far * np.stack([np.cos(angles), np.sin(angles)], 1)
        points[:, 1] += {"triangle-up": 0.2, "triangle-down": -0.2}.get(shape, 0)
    else:
        points = CROSS if shape == "cross" else CROSS @ np.array([[1, 1], [-1, 1]]) / math.sqrt(2)
    listed = " ".join(f"{x + size * a:.1f},{y + size * b:.1f}" for a, b in points)
    return f'<polygon points="{listed}" {style}/>'


def _legend(plan: Plan, circuit: Circuit) -> str:
    top = HIGH * plan.size[1] + 1.5 * LINE
    across = pixels(circuit, plan)[0] / A_LINE
    drawn = ""
    for n, (role, (shape, colour)) in enumerate(looks(circuit).items()):
        x, y = 10 + n % A_LINE * across, top + n // A_LINE * LINE
        drawn += _outline(shape, (x, y), 7, f'fill="{tint(colour)}" stroke="{colour}" stroke-width="2"')
        drawn += f'<text x="{x + 16}" y="{y + 4.5}">{html.escape(role)}</text>'
    if circuit.edges:
        y = top + math.ceil(len(circuit.roles) / A_LINE) * LINE
        for n, (effect, name) in enumerate(((1, "effect above 0"), (-1, "effect below 0"))):
            kind, x = sign(effect), 2 + n * across
            dash = 'stroke-dasharray="6 3"' if "dash" in kind else ""
            drawn += f'<path d="M{x} {y}h18" stroke="{kind["color"]}" stroke-width="3" {dash}/>'
            drawn += f'<text x="{x + 24}" y="{y + 4.5}">{name}</text>'
    return drawn
