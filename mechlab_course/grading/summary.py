"""The class in one page and in a few lines: what the teacher reads first."""

import html
import re
import statistics
from collections.abc import Callable
from pathlib import Path

from mechlab_course.grading import items, similar
from mechlab_course.grading.grades import (
    CORRECT,
    DECIDED,
    NOT_YET,
    PARTLY,
    REVIEW,
    STOPPED,
    TO_READ,
    UNTRIED,
    Gradebook,
)
from mechlab_course.grading.items import Item
from mechlab_course.grading.report import clean, file_names, page_of, prose, safe

COLUMNS = (CORRECT, PARTLY, DECIDED, REVIEW, TO_READ, NOT_YET, STOPPED, UNTRIED)
Link = Callable[[str], str]
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?")
_FIGURES = """<p>Share: points earned, of those there are. Rest: how the points of an exercise go with those
of all others, from -1 to 1, with at least eight learners. Near 0 or below, look at the exercise first.</p>
"""
_HINT = """<p>Rare statements or comments that two share, and that the course does not give. A reason to ask
and no proof; no points depend on it.</p>
"""


def write(book: Gradebook, out: Path) -> list[Item]:
    """Write `summary.html` beside the table; returns the figures of each exercise."""
    figures = items.items(book, lambda message: _NUMBER.sub("#", message))
    (out.parent / "summary.html").write_text(page(book, figures), encoding="utf-8", newline="\n")
    return figures


def lines(figures: list[Item]) -> list[str]:
    """The summary for a terminal."""
    columns = "".join(f"{name:>8}" for name in ("correct", "partly", "decide", "not yet", "untried"))
    said = [f"{'exercise':<10}{columns}  commonest message"]
    for item in figures:
        count = item.status
        numbers = (
            count[CORRECT] + count[DECIDED],
            count[PARTLY],
            count[REVIEW] + count[TO_READ],
            count[NOT_YET] + count[STOPPED],
            count[UNTRIED],
        )
        first = f"{item.common[0][0]}x {clean(item.common[0][1])[:70]}" if item.common else ""
        cells = "".join(f"{number:>8}" for number in numbers)
        said.append(f"{item.id:<10}{cells}  {first}".rstrip().replace("\n", " "))
    return said


def page(book: Gradebook, figures: list[Item]) -> str:
    """The class by exercise, what to look at by hand, whose answers are alike, files not read, everyone."""
    names = zip(book.graded, file_names(book.graded), strict=True)
    files = {learner.name: name for (learner, _), name in names}

    def link(name: str) -> str:
        file = html.escape(files.get(name, ""))  # a team has none
        return f'<a href="feedback/{file}.html">{safe(name)}</a>' if file else safe(name)

    hand = [
        f"{link(learner.name)}, {grade.id}, {grade.status}: {prose(grade.message[:600])}"
        for learner, grades in book.graded
        for grade in grades.values()
        if grade.status in (REVIEW, TO_READ, STOPPED)
    ]
    unread = [f"{link(one.name)}: {prose(problem)}" for one, _ in book.graded for problem in one.problems]
    body = _spread(book) + _class_table(book, figures)
    body += _section("Commonest messages", _messages(figures))
    body += _section("To look at by hand", hand)
    body += _alike(similar.pairs(book.graded, book.ids), link)
    body += _section("Files that were not read", unread)
    body += _section("Everyone", _everyone(book, link))
    return page_of("Summary of the class", body)


def _spread(book: Gradebook) -> str:
    """How many learners, and how many of them in each tenth of all points."""
    count = len(book.graded)
    if not book.out_of:
        return f"<p>{count} learners.</p>\n"
    shares = [book.total(learner, grades) / book.out_of for learner, grades in book.graded]
    rows = ""
    for tenth, here in enumerate(items.histogram(shares)):
        bar = f'<div class="bar" style="width:{12 * here / count:.2f}rem"></div>'
        head = f'<th scope="row">{10 * tenth} to {10 * tenth + 10} %</th>'
        rows += f"<tr>{head}<td>{here}</td><td>{bar}</td></tr>\n"
    median = f"{100 * statistics.median(shares):.0f} per cent of {book.out_of:g} points"
    caption = "<caption>Learners, by their share of all points</caption>"
    table = f"<table>{caption}<tbody>\n{rows}</tbody></table>\n"
    return f"<p>{count} learners; half of them have {median} or more.</p>\n{table}"


def _class_table(book: Gradebook, figures: list[Item]) -> str:
    """How many have which status, for each exercise; a status that nobody has is left out."""
    columns = [name for name in COLUMNS if any(item.status[name] for item in figures)]
    head = "".join(f'<th scope="col">{name}</th>' for name in ("exercise", *columns, "share", "rest"))
    rows = ""
    for item in figures:
        share = "" if item.share is None else f"{100 * item.share:.0f} %"
        rest = "" if item.rest is None else f"{item.rest:.2f}"
        cells = [*(str(item.status[name]) for name in columns), share, rest]
        cells = "".join(f"<td>{cell}</td>" for cell in cells)
        rows += f'<tr><th scope="row">{safe(book.named(item.id))}</th>{cells}</tr>\n'
    caption = "<caption>The class, by exercise</caption>"
    table = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table>\n"
    return table + _FIGURES


def _messages(figures: list[Item]) -> list[str]:
    """The commonest messages of each exercise, the first sentences of each."""
    found = []
    for item in figures:
        said = [f"{count} × {prose(message.partition(chr(10))[0][:300])}" for count, message in item.common]
        found += [f"{item.id}: {'<br>'.join(said)}"] if said else []
    return found


def _alike(pairs: list[similar.Pair], link: Link) -> str:
    """Hints, and nothing more: the page says so."""
    found = []
    for pair in pairs[:30]:
        where = ", ".join(sorted({id for id, _ in pair.shared}))
        some = "".join(f"<pre>{safe(text)}</pre>" for _, text in pair.shared[:3])
        found.append(f"{link(pair.one)} and {link(pair.other)}: {len(pair.shared)} things in {where}.{some}")
    return _section("Alike", found, _HINT)


def _everyone(book: Gradebook, link: Link) -> list[str]:
    found = []
    for learner, grades in book.graded:
        earned = book.total(learner, grades)
        share = f" of {book.out_of:g}, {100 * earned / book.out_of:.0f} %" if book.out_of else ""
        late = f" (days late: {learner.days_late})" if learner.days_late else ""
        found.append(f"{link(learner.name)}: {earned:g}{share}{late}")
    return found


def _section(heading: str, items: list[str], note: str = "") -> str:
    """A heading and a list of HTML; nothing where the list is empty."""
    listed = "".join(f"<li>{item}</li>\n" for item in items)
    return f"<h2>{heading}</h2>{note}<ul>{listed}</ul>\n" if items else ""
