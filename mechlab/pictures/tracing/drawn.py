"""The drawing of a contrast: the same in a notebook and on a page without a model."""

import html
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from mechlab.pictures.colours import sign
from mechlab.pictures.touch import Area
from mechlab.pictures.tracing.flow import Flow, Part
from mechlab.pictures.tracing.told import change_told, in_words

HALF, HIGH, LEFT, TOP, LINE = 22, 34, 30, 22, 15  # pixels: half a part, a row, layers' numbers, title, a line
LARGEST, SMALLEST = 23, 4  # pixels, the side of the part that most goes through, and of the least
SHORTEST, LONG, LETTER = 2, 20, 6.3  # cells of a column; letters of its name, and pixels of one
LEGEND = ("square: all neurons of an MLP, circle: a head", "area: the share of the change that goes through")

Point = tuple[float | int, float | int]


@dataclass(frozen=True)
class Column:
    """A position in the picture, or several that carry nothing and are folded; in half cells."""

    left: int
    wide: int
    positions: tuple[int, ...]
    folded: bool

    @property
    def middle(self) -> float:
        return LEFT + HALF * (self.left + self.wide / 2)


@dataclass(frozen=True)
class Layout:
    """Where each part of a flow stands: a column for each position, a row for each layer, the last on top."""

    flow: Flow

    @cached_property
    def layers(self) -> list[int]:
        return sorted({part.layer for part in self.flow.parts}, reverse=True)

    @cached_property
    def columns(self) -> list[Column]:
        """From left to right; neighbours that carry nothing are folded into one."""
        carries = {part.pos for part in self.flow.parts}
        groups: list[list[int]] = []
        for pos in range(len(self.flow.tokens)):
            if groups and pos not in carries and groups[-1][-1] not in carries:
                groups[-1].append(pos)
            else:
                groups.append([pos])
        columns, left = [], 0
        for group in groups:
            most = max(len(self.cell(layer, group[0])) for layer in self.layers)
            said = max(map(len, self.flow.tokens[group[0]])) if most else 0
            wide = 2 * max(most, SHORTEST, math.ceil(min(said, LONG) * LETTER / HALF / 2)) if most else 1
            columns.append(Column(left, wide, tuple(group), not most))
            left += wide
        return columns

    def cell(self, layer: int, pos: int) -> list[Part]:
        """The parts at one place, the MLP first."""
        found = [part for part in self.flow.parts if (part.layer, part.pos) == (layer, pos)]
        return sorted(found, key=lambda part: -1 if part.head is None else part.head)

    @cached_property
    def size(self) -> tuple[int, int]:
        """Pixels."""
        wide = LEFT + HALF * (self.columns[-1].left + self.columns[-1].wide)
        return max(wide, 300), TOP + HIGH * len(self.layers) + self.foot

    @property
    def foot(self) -> int:
        """Pixels below the layers: two lines of tokens, the legend in three."""
        return LINE * 6

    @property
    def grid(self) -> tuple[str, str]:
        """Columns and rows of a CSS grid over the drawing."""
        halves = (self.size[0] - LEFT) // HALF
        return f"{LEFT}px repeat({halves}, {HALF}px) auto", (
            f"{TOP}px repeat({len(self.layers)}, {HIGH}px) {self.foot}px"
        )

    def places(self) -> Iterator[tuple[Part, Area]]:
        """Each part with its place on the grid, from the first layers to the last."""
        for column in self.columns:
            for row in reversed(range(len(self.layers))):
                parts = self.cell(self.layers[row], column.positions[0])
                start = 2 + column.left + (column.wide - 2 * len(parts)) // 2
                for n, part in enumerate(parts):
                    yield part, (row + 2, start + 2 * n, row + 3, start + 2 * n + 2)

    def middle(self, area: Area) -> Point:
        """Where the mark of a part is, in pixels; its name stands below it."""
        return LEFT + HALF * (area[1] - 1), TOP + HIGH * (area[0] - 2) + HIGH / 2 - 5


def flow_svg(flow: Flow) -> str:
    """The drawing; whatever can be chosen on it has a button over it."""
    layout = Layout(flow)
    width, height = layout.size
    largest = max(abs(part.share) for part in flow.parts)
    places = [*layout.places()]
    drawn = _columns(layout) + "".join(_looks(layout, part, area) for part, area in places)
    drawn += "".join(_mark(part, layout.middle(area), largest) for part, area in places)
    told = html.escape(in_words(flow), quote=True)
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'style="display:block;max-width:none" aria-label="{told}" font-family="system-ui, sans-serif" '
        f'font-size="11" fill="#222">{drawn}{_legend(layout)}</svg>'
    )


def _text(x: float | int, y: float | int, said: str, style: str = "", anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" {style}>{html.escape(said)}</text>'


def _columns(layout: Layout) -> str:
    """Bands with their tokens below, the numbers of the layers, and what changes on top."""
    high, flow = HIGH * len(layout.layers), layout.flow
    drawn = _text(0, 14, "layer", anchor="start") + _text(LEFT + 8, 14, change_told(flow), anchor="start")
    for column in layout.columns:
        x, across, bottom = column.middle - HALF * column.wide / 2, HALF * column.wide, TOP + high + 13
        shade = "#FAFAFA" if column.folded else "#F2F2F2"
        drawn += f'<rect x="{x + 1}" y="{TOP}" width="{across - 2}" height="{high}" fill="{shade}"/>'
        if column.folded:
            drawn += _text(column.middle, bottom, "⋯")
            continue
        base, source = map(_short, flow.tokens[column.positions[0]])
        drawn += _text(column.middle, bottom, base, 'font-weight="bold"')
        if base != source:
            drawn += _text(column.middle, bottom + LINE - 1, source, 'fill="#555"')
    for row, layer in enumerate(layout.layers):
        drawn += _text(LEFT - 8, TOP + HIGH * row + 16, str(layer), anchor="end")
    return drawn


def _looks(layout: Layout, part: Part, area: Area) -> str:
    """Lines from other positions to the head that looks there, the wider the more it looks."""
    (x, y), drawn = layout.middle(area), ""
    middles = {column.positions[0]: column.middle for column in layout.columns if not column.folded}
    for pos, share in part.looks:
        if pos in middles:
            start = middles[pos]
            drawn += (
                f'<path d="M{start} {y}Q{(start + x) / 2} {y - 22} {x} {y}" fill="none" stroke="#888" '
                f'stroke-width="{1 + 3 * share:.1f}" opacity=".6"/>'
                f'<circle cx="{start}" cy="{y}" r="3" fill="#888"/>'
            )
    return drawn


def _mark(part: Part, at: Point, largest: float) -> str:
    """A square or a circle, its area the share; filled for, dashed against; its name below."""
    x, y = at
    side, kind = max(LARGEST * math.sqrt(abs(part.share) / largest), SMALLEST), sign(part.share)
    filled = f'fill="{kind["color"]}"'
    if "dash" in kind:
        filled = 'fill="#fff" stroke-width="2" stroke-dasharray="3 2"'
    style, left, top = f'stroke="{kind["color"]}" {filled}', x - side / 2, y - side / 2
    if part.head is None:
        shape = f'<rect x="{left:.1f}" y="{top:.1f}" width="{side:.1f}" height="{side:.1f}" {style}/>'
    else:
        shape = f'<circle cx="{x}" cy="{y}" r="{side / math.sqrt(math.pi):.1f}" {style}/>'
    return shape + _text(x, y + HIGH / 2 + 3, part.name, 'font-size="10"')


def _legend(layout: Layout) -> str:
    top = layout.size[1] - 3 * LINE
    lines = enumerate(LEGEND, start=1)
    drawn = "".join(_text(0, top + LINE * n, line, 'fill="#555"', "start") for n, line in lines)
    for x, effect, name in ((0, 1, "for the change"), (110, -1, "against it"), (192, None, "a head looks")):
        kind = {"color": "#888"} if effect is None else sign(effect)
        dash = 'stroke-dasharray="6 3"' if "dash" in kind else ""
        drawn += f'<path d="M{x} {top - 4}h16" stroke="{kind["color"]}" stroke-width="4" {dash}/>'
        drawn += _text(x + 21, top, name, anchor="start")
    return drawn


def _short(text: str) -> str:
    return text if len(text) <= LONG else text[: LONG - 1] + "…"
