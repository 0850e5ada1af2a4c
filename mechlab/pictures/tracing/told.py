"""What is told beside the drawing of a contrast, in words, bars, needles and tables."""

import html
from collections.abc import Mapping, Sequence

from mechlab.pictures import drawing
from mechlab.pictures.colours import BLUE
from mechlab.pictures.tracing.flow import STRENGTHS, Flow, Inside, Part, Step, Turn

ZERO, WAY, LOW, HIGH = 90, 150, -0.5, 1.5  # of a needle: pixels where it has not gone, of the way; its ends


def change_told(flow: Flow) -> str:
    """What changes between which prompts, and by how much."""
    base, source = flow.names
    return f"{flow.title}: {flow.change:+.2f} from {source} to {base}"


def in_words(flow: Flow, most: int = 8) -> str:
    """The picture in sentences: what changes, and what most of it goes through."""
    parts = sorted(flow.parts, key=lambda part: -abs(part.share))
    listed = "; ".join(f"{flow.called(part)} {part.share:+.2f}" for part in parts[:most])
    more = f"The largest of {len(parts)}" if len(parts) > most else "All"
    return (
        f"{change_told(flow)}. {more}, as shares of the change that go through: {listed}. What goes through "
        "a part goes on through later parts, and counts there again."
    )


def told(flow: Flow, part: Part, inside: Inside | None = None) -> str:
    """A part in words, with the neurons of an MLP, or where a head looks."""
    role = "for" if part.share >= 0 else "against"
    said = f"<h3 style='margin:0 0 4px'>{html.escape(flow.called(part))}</h3>"
    said += f"<p>{abs(part.share):.2f} of the change goes through it, {role} it.</p>"
    if part.head is not None:
        looks = ", ".join(f"{flow.tokens[pos][0]} {share:.2f}" for pos, share in part.looks)
        return said + f"<p>It looks at: {html.escape(looks) or 'no other token much'}.</p>"
    if inside is None:
        return said
    rows = [
        [name, f"{share:+.3f}", f"{here:.2f}", f"{there:.2f}", words]
        for name, share, here, there, words in inside.rows
    ]
    heads = ["neuron", "share", *(f"on {name}" for name in flow.names), inside.words]
    return said + table("The neurons that carry most, and what each hands on (means)", heads, rows)


def likely(step: Step) -> str:
    """The likeliest next tokens as bars, always on the scale from 0 to 1."""
    rows = [(repr(token), p) for token, p in step.likely]
    return drawing.bars(rows, "probability of the likeliest next tokens", most=1.0)


def needle(name: str, gone: float | int) -> str:
    """How far a late group has gone, as a needle on a line from where it was to where it is on base."""
    at = lambda x: round(ZERO + WAY * x, 1)
    ticks = "".join(
        f'<path d="M{at(x)} 20v8" stroke="currentColor"/>'
        f'<text x="{at(x)}" y="40" text-anchor="middle">{said}</text>'
        for x, said in ((0, "0: as it was"), (1, "1: all the way"))
    )
    words = f"{name}: {gone:.2f} of the way gone"
    said, stands = html.escape(words, quote=True), at(min(max(gone, LOW), HIGH))
    return (
        f'<p style="margin:6px 0 0">{html.escape(name)}: <code>{gone:.2f}</code> of the way gone</p>'
        f'<svg class="mechlab-way" width="330" height="44" viewBox="0 0 330 44" role="img" '
        f'aria-label="{said}" font-size="11" font-family="system-ui, sans-serif" fill="currentColor">'
        f'<path d="M{at(LOW)} 24H{at(HIGH)}" stroke="currentColor"/>{ticks}'
        f'<path class="mechlab-needle" d="M-6 5h12l-6 17z" fill="{BLUE}" transform="translate({stands} 0)"/>'
        "</svg>"
    )


def sentence(knobs: Sequence[str], late: Sequence[str], turn: Turn, step: Step) -> str:
    """A step in one sentence: how the groups stand, what is likely next, how far late groups have gone."""
    strengths, held = turn
    stand = ", ".join(f"{name} at {x:+.2f}" for name, x in zip(knobs, strengths, strict=True))
    stand += "" if held is None else f", {late[held]} held"
    listed = ", ".join(f"{token!r} {p:.2f}" for token, p in step.likely)
    gone = "".join(f" {name}: {g:.2f} of the way." for name, g in zip(late, step.gone, strict=True))
    return f"{stand}: {listed}.{gone}"


def steps_table(knobs: Sequence[str], late: Sequence[str], steps: Mapping[Turn, Step], knob: int) -> str:
    """The steps of one group, all others left as they are, as a table: a row for each strength."""
    rows = []
    for strength in STRENGTHS:
        step = steps[tuple(strength if n == knob else 0.0 for n in range(len(knobs))), None]
        words = ", ".join(f"{token!r} {p:.2f}" for token, p in step.likely)
        rows.append([f"{strength:+.2f}", *(f"{g:.2f}" for g in step.gone), words])
    heads = ["strength", *(f"{name}, of the way" for name in late), "likeliest next"]
    return table(f"{knobs[knob]}, all else left as it is", heads, rows)


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose rows begin with their name, and end with words; numbers stand between."""
    style = lambda n: f"text-align:{'right' if 0 < n < len(heads) - 1 else 'left'};padding:1px 6px"
    wrap = "vertical-align:top;font-weight:normal;white-space:{}"
    top = "".join(f'<th scope="col" style="{style(n)}">{html.escape(x)}</th>' for n, x in enumerate(heads))
    body = ""
    for first, *rest in rows:
        body += f'<tr><th scope="row" style="{style(0)};{wrap.format("nowrap")}">{html.escape(first)}</th>'
        for n, cell in enumerate(rest, start=1):
            how = wrap.format("normal" if n == len(heads) - 1 else "nowrap")
            body += f'<td style="{style(n)};{how}">{html.escape(cell)}</td>'
        body += "</tr>"
    return (
        '<table style="font-size:12px;line-height:1.3;border-collapse:collapse">'
        f'<caption style="text-align:left">{html.escape(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    )
