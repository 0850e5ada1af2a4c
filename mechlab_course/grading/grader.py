"""Grade what learners handed in: from files to a grade for each exercise, by the best answer."""

import re
import sysconfig
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from mechlab.reference import data_dir
from mechlab_course import folders
from mechlab_course.folders import PACKAGES, ROOT, sources
from mechlab_course.grading import compare, confine, decisions, report, sheets, summary
from mechlab_course.grading.answers import Answer, find
from mechlab_course.grading.grades import Gradebook, Graded, GradingError, Rules, best_grades
from mechlab_course.grading.results import Setting, results_of
from mechlab_course.grading.sandbox import FORKS
from mechlab_course.grading.sheets import Sheet
from mechlab_course.grading.submissions import Learner, cells, collect

Say = Callable[[str], None]
COPIES = 5  # versions of one exercise that are tried for one learner, the last ones


@cache
def course_ids() -> dict[str, list[str]]:
    """The exercises and questions of each notebook of the course, in order, by the notebook's name."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        found[path.stem] = list(dict.fromkeys(a.id for a in find(cells(path.read_bytes()), path.name)))
    return found


def course_titles() -> dict[str, str]:
    """What each exercise is called, by its number."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        for text in cells(path.read_bytes(), type="markdown"):
            found |= dict(re.findall(r"(?m)^### Exercise (\d\d\.\d+) (.+)$", text))
    return found


@dataclass(frozen=True)
class Asked:
    """What a teacher asks for, beside folder and table.

    only: numbers of notebooks; by default those of which an answer was handed in. hidden: a folder of checks.
    given: rules that come before those of `grading.toml`. sheet: what a learning system exported. earlier: a
    table of grades to compare with. jobs: how many answers are checked at once.
    """

    only: tuple[str, ...] = ()
    hidden: Path | None = None
    given: dict[str, Any] = field(default_factory=dict)
    fresh: bool = False
    jobs: int = 1
    sheet: Sheet | None = None
    earlier: Path | None = None


def grade(
    folder: Path,
    out: Path,
    asked: Asked | None = None,
    *,
    rules: Rules | None = None,
    say: Say = print,
    forks: bool = FORKS,
) -> Graded:
    """Grade every submission in `folder`; write `out` and what else there is to say of them beside it.

    rules: instead of those of `grading.toml`. Results are kept beside `out` and used again, unless asked for
    fresh ones, so that an interrupted run goes on where it stopped.
    """
    asked = asked or Asked()
    private = _private(folder, out, asked.hidden)
    course, place = course_ids(), out.parent
    rules = rules or decisions.rules_of(place / "grading.toml", course, asked.given)
    learners = decisions.with_teams(collect(folder, list(course)), place / "teams.csv", say)
    if rules.late:
        decisions.set_days_late(learners, rules.late, _times(asked.sheet, say))
    made = decisions.decisions_of(place / "decisions.csv", learners, course, rules)
    before = compare.earlier(asked.earlier) if asked.earlier else None
    ids = _counted(folder, learners, course, rules, asked.only, say)
    _say_what_holds(say)
    further = {number: hidden_sources(number, asked.hidden) for number in {id[:2] for id in ids}}
    tried = {learner.name: _tried(learner, ids) for learner in learners}
    jobs = [a for each in tried.values() for a in each if not (a.problem or a.stub or a.kind == "text")]
    place.mkdir(parents=True, exist_ok=True)
    setting = Setting(rules, further, private, asked.jobs, forks)
    results = results_of(jobs, place / ".mechlab-grading.jsonl", setting, asked.fresh, say)
    graded = [(learner, best_grades(tried[learner.name], ids, results, rules)) for learner in learners]
    titles = course_titles() | {id: text.title for id, text in rules.texts.items()}
    _write(Gradebook(decisions.decided(graded, made), ids, rules, titles), out, asked.sheet, before, say)
    return graded


def _times(sheet: Sheet | None, say: Say) -> dict[str, datetime]:
    """When they handed in, as far as the sheet tells."""
    told = {id: row.handed_in for id, row in sheet.rows.items() if len(row.handed_in) > 1} if sheet else {}
    times = sheet.times() if sheet else {}
    if unread := [text for id, text in told.items() if id not in times]:
        say(f"A time such as {unread[0]!r} cannot be read; grading.toml, [late.handed_in], may tell it.")
    return times


def _counted(
    folder: Path,
    learners: list[Learner],
    course: dict[str, list[str]],
    rules: Rules,
    only: tuple[str, ...],
    say: Say,
) -> list[str]:
    """The numbers of what counts: a notebook that came back as it was handed out does not."""
    handed_in: dict[str, set[str]] = defaultdict(set)
    for learner in learners:
        for answer in learner.answers:
            if not answer.stub and (answer.kind != "text" or answer.id in rules.texts):
                handed_in[answer.id[:2]].add(learner.name)
    numbers = [stem[:2] for stem in course if stem[:2] in (only or handed_in)]
    ids = [id for ids in course.values() for id in ids if id[:2] in numbers]
    ids += [id for id in rules.texts if id[:2] in numbers]
    if not ids:
        asked_for = " asked for" if only else ""
        raise GradingError(f"{folder} holds no answer to an exercise of the course{asked_for}.")
    say(f"{len(learners)} learners; notebooks {', '.join(numbers)}, {len(ids)} exercises and questions.")
    few = [number for number in numbers if 5 * len(handed_in[number]) < len(learners)]
    rest = ",".join(number for number in numbers if number not in few)
    if few and rest and not only:
        say(f"Of notebook {', '.join(few)} few handed in anything. If it was not asked for: --only {rest}")
    return ids


def _say_what_holds(say: Say) -> None:
    """How foreign code is held in on this machine."""
    held = confine.protections()
    say("On this machine: " + ("; ".join(held.values()) or "only time is limited") + ".")
    if len(held) < 3:
        say(
            "That does not hold a hostile answer in: "
            "grade in a container, or as a user who owns nothing else."
        )


def _write(
    book: Gradebook, out: Path, sheet: Sheet | None, before: dict[str, dict[str, str]] | None, say: Say
) -> None:
    """The table, the pages, the summary; the sheet that was exported, filled in; what changed."""
    report.write(book, out)
    for line in summary.lines(summary.write(book, out)):
        say(line)
    if sheet:
        _fill(book, sheet, out.parent, say)
    if before is not None:
        rows = compare.changes(book, before)
        compare.write(rows, out.parent / "changes.csv")
        for line in compare.lines(rows):
            say(line)


def _fill(book: Gradebook, sheet: Sheet, place: Path, say: Say) -> None:
    """Write the sheet with grades, and the pages in the zip file that belongs to it."""
    learners, points = [learner for learner, _ in book.graded], [book.total(*each) for each in book.graded]
    filled = sheets.fill(sheet, learners, points, book.out_of)
    made, packed = place / f"filled-{sheet.name}", place / f"feedback-{sheet.system}.zip"
    made.write_bytes(filled.data)
    pages = list(zip(learners, report.pages(book).values(), strict=True))
    left = sheets.pack(packed, sheet, filled.numbers, pages)
    for line in filled.remarks:
        say(line)
    say(f"Written: {made}, {packed}.")
    if left:
        say(f"No place in the zip file for the pages of {'; '.join(left)}.")


def hidden_sources(number: str, folder: Path | None) -> list[str]:
    """The hidden checks of a notebook: `nbNN.py` in the teacher's folder, and hidden cells of its source."""
    found = []
    if folder and (path := folder / f"nb{number}.py").is_file():
        found.append(path.read_text(encoding="utf-8"))
    for name, path in sources().items():
        if name[:2] == number and 'kind="hidden"' in path.read_text(encoding="utf-8"):
            from mechlab_course.build.sources import read

            found += ["\n".join(cell.source for cell in read(path) if cell.kind == "hidden")]
    return found


def _private(folder: Path, out: Path, hidden: Path | None) -> list[Path]:
    """What no answer may read; refuses a place where that could not be kept."""
    if folder.is_file():
        raise GradingError(f"{folder} is a file. Unpack it into a folder first.")
    if not folder.is_dir():
        raise GradingError(f"There is no folder {folder}.")
    if hidden and not hidden.is_dir():
        raise GradingError(f"There is no folder {hidden} of hidden checks.")
    if out.resolve().is_relative_to(folder.resolve()):
        raise GradingError(
            f"Write the grades outside {folder}: the next run would take them for a submission."
        )
    open_to_all = [
        PACKAGES / "mechlab",
        PACKAGES / "mechlab_course",
        data_dir(),
        Path(sysconfig.get_path("purelib")),
    ]
    for path in (folder, *([hidden] if hidden else [])):
        if any(path.resolve().is_relative_to(place.resolve()) for place in open_to_all):
            raise GradingError(
                f"Move {path} elsewhere: answers may read the course's own folders, and so this one."
            )
    beside = ("feedback", ".mechlab-grading.jsonl", "decisions.csv", "to_decide.csv", "changes.csv")
    kept = [
        folder,
        out,
        *(out.parent / name for name in beside),
        *sources().values(),
        *folders.tried().values(),
        ROOT / "solutions",
        ROOT / "tests",
    ]
    return [path.resolve() for path in (*kept, *([hidden] if hidden else []))]


def _tried(learner: Learner, ids: list[str]) -> list[Answer]:
    """The answers that count: of an exercise the last few different ones, of others the last one."""
    chosen = []
    for id in ids:
        all_given = [a for a in learner.answers if a.id == id and not a.stub]
        if all_given and all_given[0].kind != "exercise":
            chosen += all_given[-1:]
            continue
        last = {(a.code, a.name, a.problem): a for a in reversed(all_given)}  # each once, where it came last
        given = [*last.values()][::-1]
        whole = [a for a in given if not a.problem]
        if len(whole) > COPIES:
            learner.problems.append(f"{id}: {len(whole)} different answers; the last {COPIES} were tried.")
        kept = [a for a in given if a.problem][-COPIES:] + whole[-COPIES:]
        chosen += [a for a in given if any(a is each for each in kept)]
    return chosen
