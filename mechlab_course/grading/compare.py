"""What changed since an earlier table of grades: who, in which exercise, and why."""

from pathlib import Path

from mechlab_course.grading.grades import Gradebook
from mechlab_course.grading.tables import number, rows_of, written

COLUMNS = ["learner", "exercise", "before", "now", "status before", "status now", "why"]


def earlier(path: Path) -> dict[str, dict[str, str]]:
    """The rows of an earlier table, by learner. Read it before the new one is written: it may be the same."""
    return {row["learner"]: row for row in rows_of(path, ("learner", "total"))}


def changes(book: Gradebook, before: dict[str, dict[str, str]]) -> list[list[str]]:
    """A row for each exercise whose points or status changed, each total, each learner come or gone."""
    rows = []
    for learner, grades in book.graded:
        old = before.get(learner.name)
        now = f"{book.total(learner, grades):g}"
        if old is None:
            rows.append([learner.name, "total", "", now, "", "", "not in the earlier table"])
            continue
        for id, grade in grades.items():
            was = (old.get(f"{id} points", ""), old.get(f"{id} status", ""))
            if (number(was[0]), was[1]) != (number(f"{grade.points:g}"), grade.status):
                why = grade.message.split("\n")[0][:200]
                rows.append([learner.name, id, was[0], f"{grade.points:g}", was[1], grade.status, why])
        if number(old["total"]) != number(now):
            late = f"{learner.days_late} days late" if learner.days_late else ""
            rows.append([learner.name, "total", old["total"], now, "", "", late])
    for name in sorted(before.keys() - {learner.name for learner, _ in book.graded}):
        rows.append([name, "total", before[name]["total"], "", "", "", "no longer there"])
    return rows


def lines(rows: list[list[str]]) -> list[str]:
    """The same for a terminal."""
    said = []
    for name, what, before, now, *status, why in rows:
        turned = f" ({status[0] or 'nothing'} -> {status[1]})" if any(status) else ""
        said.append(f"{name}, {what}: {before or '-'} -> {now or '-'}{turned}{': ' if why else ''}{why}")
    return said or ["Nothing has changed."]


def write(rows: list[list[str]], path: Path) -> None:
    """The table of changes."""
    path.write_bytes(written(COLUMNS, rows))
