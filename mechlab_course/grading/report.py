"""What comes out of grading: a table for a gradebook, a page for each learner, a summary of the class.

Nothing in it depends on the day or the machine: the same submissions give the same bytes. Everything a
learner wrote, their name included, is foreign text: escaped in the pages, and kept from becoming a formula in
the table.
"""

import csv
import html
import io
import re
from collections import Counter
from pathlib import Path

from mechlab_course.grading.grades import (
    CORRECT,
    NOT_YET,
    PARTLY,
    REVIEW,
    STOPPED,
    UNTRIED,
    Grade,
    Graded,
    Rules,
)
from mechlab_course.grading.submissions import Learner

COLOURS = {
    CORRECT: "#00664b",
    PARTLY: "#6b5200",
    REVIEW: "#7b3294",
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
th,td{border:1px solid #999;padding:.2rem .6rem;text-align:left;vertical-align:top}
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write(graded: Graded, ids: list[str], out: Path, rules: Rules) -> None:
    """Write all three; pages of learners who are no longer there are removed."""
    out.write_bytes(table(graded, ids, rules))
    folder = out.parent / "feedback"
    folder.mkdir(exist_ok=True)
    pages = {
        f"{name}.html": page(learner, grades)
        for (learner, grades), name in zip(graded, file_names(graded), strict=True)
    }
    for old in folder.glob("*.html"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    (out.parent / "summary.html").write_text(summary_page(graded, ids), encoding="utf-8", newline="\n")


def table(graded: Graded, ids: list[str], rules: Rules) -> bytes:
    """The CSV: UTF-8 with the mark that Excel needs, and that Moodle and Canvas accept."""
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(
        ["learner", "total", "out of", *(f"{id} {what}" for id in ids for what in ("points", "status"))]
    )
    out_of = sum(rules.quiz_points if _is_quiz(id) else rules.points for id in ids)
    for learner, grades in graded:
        total = sum(grade.points for grade in grades.values())
        cells = [cell for id in ids for cell in (f"{grades[id].points:g}", grades[id].status)]
        rows.writerow([no_formula(clean(learner.name)), f"{total:g}", f"{out_of:g}", *cells])
    return b"\xef\xbb\xbf" + text.getvalue().encode()


def _is_quiz(id: str) -> bool:
    return not id.rpartition(".")[2].isdigit()


def no_formula(text: str) -> str:
    """A spreadsheet takes what begins so for a formula, and would run it."""
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") else text


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


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{_safe(title)}</title><style>{STYLE}</style></head>\n<body><main><h1>{_safe(title)}</h1>\n{body}</main></body></html>\n"
    )


def _safe(text: str) -> str:
    return html.escape(clean(text))


def _prose(text: str) -> str:
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", _safe(text[:3000])).replace("\n", "<br>")


def page(learner: Learner, grades: dict[str, Grade]) -> str:
    """What one learner reads."""
    solved = sum(g.status == CORRECT for g in grades.values())
    body = f"<p>{solved} of {len(grades)} correct; {sum(g.points for g in grades.values()):g} points.</p>\n"
    if learner.problems:
        lines = "".join(f"<li>{_prose(problem)}</li>" for problem in learner.problems)
        body += f"<h2>About your files</h2><ul>{lines}</ul>\n"
    for grade in grades.values():
        body += f'<section style="border-color:{COLOURS[grade.status]}">'
        body += f"<h2>{_safe(grade.id)}: {grade.status}</h2>"
        body += f"<p>{_prose(grade.message)}</p>"
        if grade.where:
            body += f"<p><small>Found in {_safe(grade.where)}. Points: {grade.points:g}.</small></p>"
        if grade.printed.strip():
            lines = [line[:200] for line in clean(grade.printed).splitlines()]
            shown = "\n".join(
                lines[:20] + ([f"... and {len(lines) - 20} more lines"] if len(lines) > 20 else [])
            )
            body += f"<p>It printed:</p><pre>{html.escape(shown)}</pre>"
        if grade.code:
            shown = html.escape(clean(grade.code[:5000]))
            body += f"<details><summary>What was run</summary><pre>{shown}</pre></details>"
        body += "</section>\n"
    return _page(learner.name, body)


def counts(graded: Graded, ids: list[str]) -> list[tuple[str, Counter, list[tuple[int, str]]]]:
    """For each exercise how many have which status, and the commonest messages of those who are not there
    yet.

    Messages that differ in their numbers only count as one, shown as the first learner got it.
    """
    rows = []
    for id in ids:
        grades = [by_id[id] for _, by_id in graded]
        wrong = [g.message for g in grades if g.status in (NOT_YET, STOPPED, PARTLY)]
        first: dict[str, str] = {}
        for message in wrong:
            first.setdefault(_alike(message), message)
        common = Counter(map(_alike, wrong)).most_common()
        common.sort(key=lambda item: (-item[1], item[0]))
        rows.append((id, Counter(g.status for g in grades), [(n, first[key]) for key, n in common[:3]]))
    return rows


def _alike(message: str) -> str:
    return re.sub(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", "#", message)


def summary_lines(graded: Graded, ids: list[str]) -> list[str]:
    """The summary for a terminal."""
    columns = "".join(f"{name:>8}" for name in ("correct", "partly", "review", "not yet", "untried"))
    lines = [f"{'exercise':<10}{columns}  commonest message"]
    for id, status, common in counts(graded, ids):
        numbers = (
            status[CORRECT],
            status[PARTLY],
            status[REVIEW],
            status[NOT_YET] + status[STOPPED],
            status[UNTRIED],
        )
        said = f"{common[0][0]}x {clean(common[0][1])[:70]}".replace("\n", " ") if common else ""
        lines.append(f"{id:<10}" + "".join(f"{n:>8}" for n in numbers) + f"  {said}".rstrip())
    return lines


def summary_page(graded: Graded, ids: list[str]) -> str:
    """What the teacher reads first: the class by exercise, what to look at by hand, files not read."""
    names = dict(zip((id(learner) for learner, _ in graded), file_names(graded), strict=True))
    link = lambda learner: (
        f'<a href="feedback/{html.escape(names[id(learner)])}.html">{_safe(learner.name)}</a>'
    )
    body = f"<p>{len(graded)} learners.</p>{_class_table(graded, ids)}"
    review = [
        f"{link(learner)}, {g.id}, {g.status}: {_prose(g.message[:600])}"
        for learner, grades in graded
        for g in grades.values()
        if g.status in (REVIEW, STOPPED)
    ]
    unread = [f"{link(learner)}: {_prose(problem)}" for learner, _ in graded for problem in learner.problems]
    everyone = [f"{link(learner)}: {sum(g.points for g in grades.values()):g}" for learner, grades in graded]
    body += _section("To look at by hand", review) if review else ""
    body += _section("Files that were not read", unread) if unread else ""
    return _page("Summary of the class", body + _section("Everyone", everyone))


def _class_table(graded: Graded, ids: list[str]) -> str:
    columns = (CORRECT, PARTLY, REVIEW, NOT_YET, STOPPED, UNTRIED)
    head = "".join(f'<th scope="col">{name}</th>' for name in ("exercise", *columns, "commonest messages"))
    rows = ""
    for exercise, status, common in counts(graded, ids):
        said = "".join(f"<li>{n} × {_prose(message[:400])}</li>" for n, message in common)
        cells = [*(str(status[name]) for name in columns), f"<ul>{said}</ul>" if said else ""]
        cells = "".join(f"<td>{cell}</td>" for cell in cells)
        rows += f'<tr><th scope="row">{exercise}</th>{cells}</tr>\n'
    caption = "<caption>The class, by exercise</caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table>\n"


def _section(heading: str, items: list[str]) -> str:
    """A heading and a list of HTML."""
    lines = "".join(f"<li>{item}</li>\n" for item in items)
    return f"<h2>{heading}</h2><ul>{lines}</ul>\n"
