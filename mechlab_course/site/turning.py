"""The page on which groups of neurons are turned: the tracing explorer, with every step computed before."""

import html
import json
from pathlib import Path

from mechlab.pictures.tracing.drawn import Layout, flow_svg
from mechlab.pictures.tracing.flow import STRENGTHS, Example
from mechlab.pictures.tracing.told import in_words, likely, needle, steps_table, told
from mechlab_course.site.notebook import Page, folded

STORED = Path("data/tracing/explorer.json")
TITLE = "Turn a few neurons"
QUESTION = "Which few neurons make a language model say German after Frankfurt, and what if they are turned?"
HOW = """<p>Turn 25 neurons at the name of a city, and watch the answer. They were chosen on other cities.
Then turn as many that chance chose, from the same layers, which change about as much: only beside
them does the first slider say something. The model computed every step before; this page asks
nobody.</p>"""
READ = """<p>The drawing is a contrast of two kinds of prompts. Every change between them is followed back
through the model, and the area of a square or a circle says how much of it goes through there. What
goes through a part goes on through later parts, and counts there again. That the shares add up
proves nothing.</p>
<p>A slider adds steps to what its neurons have. A whole step is from their mean over the one
country's cities to that over the other's. All else computes on.</p>
<p>Late neurons, at the last token, are watched: how far do they go to where they are in the other
country's prompts? Ten by chance go about as far. That a group moves does not say that it is used.
So hold the one and then the other where it was: how much of the effect is left?</p>"""
CHOOSE = "Choose a square or a circle of the drawing, and it is told here."
STEP = "0: as they are. +1: a whole step from the one country to the other. −1: a step back."


def turning_pages(root: Path) -> list[Page]:
    """The page, if its steps are stored."""
    if not (root / STORED).exists():
        return []
    examples = [Example.from_dict(each) for each in json.loads((root / STORED).read_text(encoding="utf-8"))]
    page = Page("tracing.html", TITLE, question=QUESTION, source=STORED.as_posix())
    page.sections.append(("main", TITLE, QUESTION, ""))
    body = HOW + folded("how", "What the drawing shows, and what is turned", READ)
    for number, each in enumerate(examples, start=1):
        page.sections.append((f"example-{number}", each.name, each.prompt, in_words(each.flow)))
        body += _example(each, number)
    page.body = f'{body}<script src="assets/turning.js" defer></script>'
    return [page]


def _example(example: Example, number: int) -> str:
    names = [name for name, _ in example.knobs], [name for name, _ in example.late]
    parts = "".join(f'<div class="part scroll">{told(example.flow, *each)}</div>' for each in _parts(example))
    tables = "".join(_scroll(steps_table(*names, example.steps, n)) for n in range(len(example.knobs)))
    return (
        f'<h2 id="example-{number}">{html.escape(example.name)}</h2>'
        f"<p>Turned in: <code>{html.escape(example.prompt)}</code></p>"
        f'<div class="turning"><div class="paper">{_canvas(example)}</div>'
        f'<div class="panel">{_controls(example, number)}{_result(example)}'
        f'<div class="inside"><p>{CHOOSE}</p></div></div>{_stored(example)}</div>'
        f"{folded('words', 'The drawing in words', f'<p>{html.escape(in_words(example.flow))}</p>')}"
        f"{folded('parts', 'Inside each part', parts)}"
        f"{folded('steps', 'Each group turned alone, as a table', tables)}"
    )


def _parts(example: Example):
    """Each part with what is inside, in the order of its buttons."""
    for part, _ in Layout(example.flow).places():
        yield part, example.inside.get(example.flow.called(part))


def _canvas(example: Example) -> str:
    """Buttons over the drawing, as in a notebook; the page's script wakes them."""
    layout = Layout(example.flow)
    columns, rows = layout.grid
    buttons = ""
    for part, area in layout.places():
        said = html.escape(f"{example.flow.called(part)}: {part.share:+.2f} of the change", quote=True)
        place = " / ".join(map(str, area))
        buttons += f'<button type="button" disabled style="grid-area:{place}" aria-label="{said}"></button>'
    return (
        f'<div class="canvas" style="grid-template-columns:{columns};grid-template-rows:{rows}">'
        f"{flow_svg(example.flow)}{buttons}</div>"
    )


def _controls(example: Example, number: int) -> str:
    made = ""
    for n, (name, count) in enumerate(example.knobs):
        id, said = f"turn-{number}-{n}", html.escape(f"{name} ({count} neurons)")
        made += (
            f'<p class="turn-row"><label for="{id}">{said}</label><output for="{id}">0</output>'
            f'<input id="{id}" type="range" min="{STRENGTHS[0]}" max="{STRENGTHS[-1]}" '
            f'step="{STRENGTHS[1] - STRENGTHS[0]}" value="0" autocomplete="off"></p>'
        )
    options = "".join(
        f'<option value="{n}">{html.escape(name)}</option>'
        for n, name in enumerate(["nothing", *(name for name, _ in example.late)])
    )
    hold = f'<label for="hold-{number}">hold where it was:</label> '
    hold += f'<select id="hold-{number}" autocomplete="off">{options}</select>'
    back = '<button type="button" class="back">All back to 0</button>'
    return f'<div class="controls" hidden><p>{STEP}</p>{made}<p>{hold} {back}</p></div>'


def _result(example: Example) -> str:
    """What the model says with nothing turned; the script moves it."""
    step = example.steps[tuple(0.0 for _ in example.knobs), None]
    pairs = zip(example.late, step.gone, strict=True)
    needles = "".join(f'<div class="late">{needle(name, gone)}</div>' for (name, _), gone in pairs)
    return f'<div class="scroll likely">{likely(step)}</div>{needles}<p class="hidden" role="status"></p>'


def _stored(example: Example) -> str:
    """The steps for the script, in the order of the controls, tokens as they are shown."""
    kept = example.to_dict()
    stored = {"strengths": STRENGTHS, "words": [repr(word) for word in kept["words"]], "steps": kept["steps"]}
    text = json.dumps(stored, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    return f'<script type="application/json">{text}</script>'


def _scroll(table: str) -> str:
    return f'<div class="scroll">{table}</div>'
