"""Where the parts of a circuit stand in its picture: heads by layer and position, edges around them.

Information flows upwards: early layers are at the bottom, the logits on top. Layers without heads take no
space, and in a tall picture layers whose heads stand at different places move together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mechlab.circuits.circuits import Circuit, CircuitError, Edge, Head

Point = tuple[float | int, float | int]
Column = tuple[str, float | int, float | int]  # name, left, right
Cell = tuple[tuple[str, ...], int]  # positions, layer
SIDE_BY_SIDE = 11  # heads in one line, over all columns; more of one layer go into further lines
TALL = 10  # lines of heads; with more of them they move together
BENDS = (0, 0.4, -0.4, 0.8, -0.8, 1.4, -1.4, 2, -2, 3, -3)  # how far a curve may swing out at either end


@dataclass(frozen=True)
class Plan:
    """One head is one wide and one high; x grows to the right and y upwards. Each place is a middle.

    heads:   {(23, 3): (x, y), ...}; x and y are multiples of a half
    logits:  (x, y)
    columns: (name, left, right) of each set of positions
    layers:  (layer, y) of each layer that has heads
    edges:   each edge, its curve (four points [4, 2] of a cubic Bézier curve) and the place of its label
    size:    width and height
    """

    heads: dict[Head, Point]
    logits: Point
    columns: list[Column]
    layers: list[tuple[int, float | int]]
    edges: list[tuple[Edge, np.ndarray, Point]]
    size: Point

    def thickness(self, edge: Edge) -> float:
        """Pixels: 1 for an edge that does nothing, 6 for the strongest."""
        largest = max(abs(other.effect) for other, _, _ in self.edges) or 1.0
        return round(1 + 5 * abs(edge.effect) / largest, 1)


def lay_out(circuit: Circuit, order: Sequence[str] | None = None) -> Plan:
    """The plan of a circuit.

    order: names of positions from left to right (default: as `circuit.at` names them)

    A role that acts at several positions gets a column between them; one that acts everywhere, a column on
    the left. Raises `CircuitError` for a circuit that cannot be drawn: no heads, an unknown position, an edge
    that goes back.
    """
    _check(circuit, order)
    cells: dict[Cell, list[Head]] = {}
    for head in circuit.heads:
        cells.setdefault((circuit.positions(head) or (), head[0]), []).append(head)
    line, columns = _columns(cells, order or [name for names in circuit.at.values() for name in names])
    placed, layers, top = {}, [], 0.0
    for layer in sorted({layer for _, layer in cells}):
        lines = max(math.ceil(len(heads) / line) for (_, at), heads in cells.items() if at == layer)
        layers.append((layer, top + (lines - 1) / 2))
        for names, column in columns.items():
            heads = cells.get((names, layer), [])
            each = _abreast(len(heads), line)
            for first in range(0, len(heads), each):
                row = heads[first : first + each]
                place = _in_row(len(row), column, top + first // each, placed)
                placed |= zip(row, place, strict=True)
        top += lines
    if top > TALL:
        placed, layers, top = _squeezed(placed, layers)
    *_, (_, start, end) = columns.values()
    logits = ((start + end) / 2, top)
    edges = _routes(circuit.edges, placed | {None: logits}, end)
    return Plan(placed, logits, list(columns.values()), layers, edges, (end, top + 1))


def _check(circuit: Circuit, order: Sequence[str] | None) -> None:
    if not circuit.heads:
        raise CircuitError("The circuit has no heads, so there is nothing to draw.")
    negative = [head for head in circuit.heads if min(head) < 0]
    if negative:
        raise CircuitError(f"There is no head {negative[0]}: layers and heads are counted from 0.")
    for role, names in circuit.at.items():
        unknown = [name for name in names if order is not None and name not in order]
        if unknown:
            given = ", ".join(order or ()) or "none"
            raise CircuitError(f"{role!r} acts at {unknown[0]!r}, and the positions given are {given}.")
    for edge in circuit.edges:
        if edge.receiver is not None and edge.receiver[0] <= edge.sender[0]:
            raise CircuitError(
                f"An edge goes from {edge.sender} to {edge.receiver}, which is in no later layer."
            )


def _columns(
    cells: dict[Cell, list[Head]], order: Sequence[str]
) -> tuple[int, dict[tuple[str, ...], Column]]:
    """How many heads go into one line, and (name, left, right) of each column, from left to right."""
    order = list(dict.fromkeys(order))
    middle = lambda names: sum(map(order.index, names)) / len(names) if names else -1
    keys = sorted({names for names, _ in cells}, key=lambda names: (middle(names), len(names)))
    counts = {key: [len(heads) for (names, _), heads in cells.items() if names == key] for key in keys}
    widths = lambda line: {key: max(_abreast(n, line) for n in counts[key]) for key in keys}
    line = max(map(max, counts.values()))
    while line > 1 and sum(widths(line).values()) > SIDE_BY_SIDE:
        line -= 1
    columns, left = {}, 0.0
    for key, width in widths(line).items():
        name = " and ".join(key) or "everywhere"
        right = left + max(width, math.ceil(0.2 * len(name)))
        columns[key], left = (name, left, right), right + 0.5
    return line, columns


def _abreast(count: int, line: int) -> int:
    """How many of `count` heads go into a line when lines are filled evenly."""
    return math.ceil(count / math.ceil(count / line)) if count else 1


def _in_row(count: int, column: Column, y: float | int, placed: dict[Head, Point]) -> list[Point]:
    """Heads side by side, as near to the middle of a column as they cover none of the line below."""
    _, left, right = column
    middle, aside = (left + right - count) / 2 + 0.5, round(right - left - count)
    below = [x for x, at in placed.values() if at == y - 1 and left <= x <= right]
    covered = lambda start: sum(abs(x - start - n) < 1 for x in below for n in range(count))
    starts = [middle + n / 2 for n in range(-aside, aside + 1)]
    start = min(starts, key=lambda start: (covered(start), abs(start - middle)))
    return [(start + n, float(y)) for n in range(count)]


def _squeezed(
    placed: dict[Head, Point], layers: list[tuple[int, float | int]]
) -> tuple[dict[Head, Point], list[tuple[int, float | int]], float]:
    """Heads and layers moved down as far as no head comes too near to another, and where the logits are then.

    Each line stands at least half a place above the one before it.
    """
    moved, lines = {}, [-0.5]
    for line in sorted({y for _, y in placed.values()}):
        mine = {head: x for head, (x, y) in placed.items() if y == line}
        under = [y + 1 for a in mine.values() for b, y in moved.values() if abs(a - b) < 1]
        lines.append(max([lines[-1] + 0.5, *under]))
        moved |= {head: (x, lines[-1]) for head, x in mine.items()}
    heights = lambda layer: [y for head, (_, y) in moved.items() if head[0] == layer]
    places = [(layer, (min(heights(layer)) + max(heights(layer))) / 2) for layer, _ in layers]
    return moved, places, lines[-1] + 1


def _routes(
    edges: Sequence[Edge], places: dict[Head | None, Point], width: float
) -> list[tuple[Edge, np.ndarray, Point]]:
    """For each edge the best of many curves, short and clear of heads, and a free place for its label."""
    t = np.linspace(0, 1, 25)[:, None]
    weights = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], 1)
    everyone, labels, found = np.array(list(places.values())), np.full((1, 2), -9.0), []
    apart = lambda points, others: np.linalg.norm(points[..., None, :] - others, axis=-1)
    for edge in edges:
        (x0, y0), (x1, y1) = places[edge.sender], places[edge.receiver]
        low, high = y0 + 0.45 * (y1 - y0), y1 - 0.45 * (y1 - y0)
        bent = [[(x0, y0 + 0.2), (x0 + a, low), (x1 + b, high), (x1, y1 - 0.2)] for a in BENDS for b in BENDS]
        points = weights @ np.array(bent)  # [bend, place along the curve, 2]
        passed = everyone[[name not in (edge.sender, edge.receiver) for name in places]]
        cost = np.linalg.norm(np.diff(points, axis=1), axis=-1).sum(1)
        cost = cost + 9 * ((points[..., 0] < 0.1) | (points[..., 0] > width - 0.1)).sum(1)
        cost = cost + 4 * np.clip(0.5 - apart(points, passed), 0, None).sum((1, 2))
        best = int(cost.argmin())
        free = np.minimum(apart(points[best], everyone).min(1) - 0.2, apart(points[best], labels).min(1))
        near = np.minimum(free, 0.4) - 0.3 * np.abs(t[:, 0] - 0.5)  # to the middle
        label = points[best, near.argmax()]
        labels = np.vstack([labels, label])
        found.append((edge, np.array(bent[best]), (float(label[0]), float(label[1]))))
    return found
