"""What comes out of grading: a table, a page for each learner, what a person has to decide.

Nothing in it depends on the day or the machine: the same submissions give the same bytes. Everything a
learner wrote, their name included, is foreign text: escaped in the pages, and kept from becoming a formula in
the table.
"""

import html
import re
from collections import Counter
from pathlib import Path

from mechlab_course.grading.grades import (
    CORRECT,
    DECIDED,
    NOT_YET,
    PARTLY,
    REVIEW,
    STOPPED,
    TO_READ,
    UNTRIED,
    Grade,
    Gradebook,
    Graded,
)
from mechlab_course.grading.submissions import Learner
from mechlab_course.grading.tables import written

COLOURS = {
    CORRECT: "#00664b",
    PARTLY: "#6b5200",
    REVIEW: "#7b3294",
    TO_READ: "#7b3294",
    DECIDED: "#00664b",
    NOT_YET: "#a34700",
    STOPPED: "#a34700",
    UNTRIED: "#595959",
}
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:#111;background:#fff}
section{border-left:6px solid;padding:0 1rem;margin:1.5rem 0}
h2{font-size:1.1rem;margin:1rem 0 0}
pre{background:#f3f3f3;padding:.5rem;overflow:auto}
table{border-collapse:collapse}
caption{text-align:left;font-weight:bold;padding:.5rem 0;white-space:nowrap}
th,td{border:1px solid #999;padding:.2rem .6rem;text-align:left;vertical-align:top}
.bar{height:1rem;background:#005a9c}
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write(book: Gradebook, out: Path) -> None:
    """Write them; pages of learners who are no longer there are removed."""
    out.write_bytes(table(book))
    (out.parent / "to_decide.csv").write_bytes(to_decide(book))
    folder = out.parent / "feedback"
    folder.mkdir(exist_ok=True)
    texts = pages(book)
    for old in folder.glob("*.html"):
        if old.name not in texts:
            old.unlink()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def pages(book: Gradebook) -> dict[str, str]:
    """The page of each learner, by the name of its file, in their order."""
    each = zip(book.graded, file_names(book.graded), strict=True)
    return {f"{name}.html": page(book, learner, grades) for (learner, grades), name in each}


def table(book: Gradebook) -> bytes:
    """The CSV: a row a learner."""
    columns = ["learner", "id", "team", "days late", "total", "out of", "per cent"]
    columns += [f"{id} {what}" for id in book.ids for what in ("points", "status")]
    rows = []
    for learner, grades in book.graded:
        earned, id = book.total(learner, grades), learner.key.id if learner.key else ""
        late = str(learner.days_late) if book.rules.late else "LATE" * learner.is_flagged
        share = f"{100 * earned / book.out_of:.0f}" if book.out_of else ""
        row = [clean(learner.name), id, learner.team, late, f"{earned:g}", f"{book.out_of:g}", share]
        own = [grades[id] for id in book.ids]
        rows.append([*row, *(cell for each in own for cell in (f"{each.points:g}", each.status))])
    return written(columns, rows)


def to_decide(book: Gradebook) -> bytes:
    """What waits for a person, in the form of `decisions.csv`: points and a reason are to be filled in."""
    rows: dict[tuple[str, str], list[str]] = {}
    for learner, grades in book.graded:
        for grade in grades.values():
            if grade.status in (REVIEW, TO_READ):
                whose = clean(learner.team or learner.name)
                said = grade.code if grade.status == TO_READ else grade.message
                cells = [f"{book.rules.worth(grade.id):g}", grade.status, clean(said[:2000])]
                rows.setdefault((whose, grade.id), [whose, book.named(grade.id), "", "", *cells])
    columns = ["learner", "exercise", "points", "why", "out of", "status", "what it says"]
    return written(columns, rows.values())


def clean(text: str) -> str:
    """Text that can be written and shown anywhere: no control characters, no halves of characters."""
    text = text.encode("utf-8", "replace").decode()
    return "".join(
        c if c == "\n" or c.isprintable() else "\ufffd"
        for c in text.replace("\t", "    ").replace("\r\n", "\n")
    )


def file_names(graded: Graded) -> list[str]:
    """A file name for each learner, none of them twice, on any file system."""
    seen: Counter[str] = Counter()
    names = []
    for learner, _ in graded:
        name = re.sub(r"[^\w.-]+", "_", clean(learner.name)).strip("._")[:100] or "learner"
        seen[name.casefold()] += 1
        count = seen[name.casefold()]
        names.append(name if count == 1 else f"{name}~{count}")
    return names


def page_of(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{safe(title)}</title><style>{STYLE}</style></head>\n<body><main><h1>{safe(title)}</h1>\n{body}</main></body></html>\n"
    )


def safe(text: str) -> str:
    return html.escape(clean(text))


def prose(text: str) -> str:
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", safe(text[:3000])).replace("\n", "<br>")


def page(book: Gradebook, learner: Learner, grades: dict[str, Grade]) -> str:
    """What one learner reads."""
    body = "".join(f"<p>{prose(line)}</p>\n" for line in standing(book, learner, grades))
    if learner.problems:
        lines = "".join(f"<li>{prose(problem)}</li>" for problem in learner.problems)
        body += f"<h2>About your files</h2><ul>{lines}</ul>\n"
    shown = [grade for grade in grades.values() if book.rules.worth(grade.id) or grade.status != UNTRIED]
    return page_of(learner.name, body + "".join(_section_of(book, grade) for grade in shown))


def standing(book: Gradebook, learner: Learner, grades: dict[str, Grade]) -> list[str]:
    """Where a learner stands, in sentences; what earns nothing is not counted."""
    counted = [grade for grade in grades.values() if book.rules.worth(grade.id)] or list(grades.values())
    earned, out_of = sum(grade.points for grade in counted), book.out_of
    solved = f"{sum(grade.status == CORRECT for grade in counted)} of {len(counted)} correct."
    if not out_of:
        return [solved]
    said = [f"{earned:g} of {out_of:g} points ({100 * earned / out_of:.0f} %). {solved}"]
    if learner.team:
        said.append(f"The grade is that of {learner.team}.")
    if cost := book.cost(learner):
        days = "1 day" if learner.days_late == 1 else f"{learner.days_late} days"
        left = f"{book.total(learner, grades):g} of {out_of:g} points"
        said.append(f"Handed in {days} late: {100 * cost:g} % less, so {left}.")
    return said


def _section_of(book: Gradebook, grade: Grade) -> str:
    worth = book.rules.worth(grade.id)
    points = f"{grade.points:g} of {worth:g} points." if worth else "It earns no points."
    body = f'<section style="border-color:{COLOURS[grade.status]}">'
    body += f"<h2>{safe(book.named(grade.id))}: {grade.status}</h2><p>{prose(grade.message)}</p>"
    found = f"Found in {safe(grade.where)}. " if grade.where else ""
    body += f"<p><small>{found}{points}</small></p>"
    if grade.printed.strip():
        lines = [line[:200] for line in clean(grade.printed).splitlines()]
        more = [f"... and {len(lines) - 20} more lines"] if len(lines) > 20 else []
        body += f"<p>It printed:</p><pre>{html.escape(chr(10).join(lines[:20] + more))}</pre>"
    if grade.code:
        shown = html.escape(clean(grade.code[:5000]))
        body += f"<details><summary>What was handed in</summary><pre>{shown}</pre></details>"
    return body + "</section>\n"
