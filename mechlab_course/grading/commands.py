"""The two commands of a teacher: `mechlab release` and `mechlab grade`."""

from pathlib import Path
from typing import Annotated

import typer

from mechlab_course.console import need_checkout, say

Numbers = Annotated[str, typer.Option("--only", help="Numbers of notebooks: 11,12. By default all that fit.")]


def grade(
    folder: Annotated[
        Path, typer.Argument(help="What came back: a sub-folder a learner, or files named after them.")
    ],
    out: Annotated[Path, typer.Option(help="The table; all else is read and written beside it.")] = Path(
        "grades.csv"
    ),
    only: Numbers = "",
    hidden: Annotated[
        Path | None, typer.Option(help="A folder of checks that learners never get: nb12.py ...")
    ] = None,
    lms: Annotated[str, typer.Option(help="moodle or canvas, with --roster.")] = "",
    roster: Annotated[
        Path | None, typer.Option(help="The sheet that it exported, to be filled in: a copy is written.")
    ] = None,
    column: Annotated[str, typer.Option(help="The title of what is graded, in that sheet.")] = "",
    earlier: Annotated[
        Path | None, typer.Option("--compare", help="An earlier table: who changed since, and why.")
    ] = None,
    points: Annotated[float | None, typer.Option(help="For a correct exercise; 1 unless said.")] = None,
    quiz_points: Annotated[
        float | None, typer.Option(help="For a question, whose answer the notebook tells; else none.")
    ] = None,
    partial: Annotated[
        float | None, typer.Option(help="The share when only the hidden checks object; else a half.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="How long one answer may take; 60.")] = None,
    memory: Annotated[float | None, typer.Option(help="How many GB one answer may use; 2.")] = None,
    jobs: Annotated[int, typer.Option(help="How many answers are checked at once.")] = 1,
    fresh: Annotated[
        bool, typer.Option(help="Check everything again, whatever is known from earlier runs.")
    ] = False,
) -> None:
    """Grade what learners handed in. Foreign code is run, held in as docs/teaching.md says."""
    from mechlab_course.grading import grader, sandbox, sheets
    from mechlab_course.grading.grades import GradingError

    given = {"points": points, "quiz_points": quiz_points, "partial": partial, "seconds": seconds}
    try:
        if bool(lms) != bool(roster):
            raise GradingError("--lms and --roster belong together: which system, and the sheet it exported.")
        sheet = sheets.read(roster, lms, column) if roster else None
        asked = grader.Asked(
            tuple(_numbers(only)), hidden, given | {"memory": memory}, fresh, jobs, sheet, earlier
        )
        graded = grader.grade(folder, out, asked, say=say)
    except (GradingError, sandbox.SandboxError) as error:
        say(str(error))
        raise SystemExit(1) from None
    unread = sum(len(learner.problems) for learner, _ in graded)
    say(
        f"Written: {out}, {out.parent / 'feedback'}, {out.parent / 'summary.html'}"
        + (f"; {unread} files with a problem." if unread else ".")
    )


def release(
    out: Annotated[Path, typer.Option(help="A folder that is not there yet, or a file that ends in .zip.")],
    only: Numbers = "",
    answers: Annotated[
        bool,
        typer.Option(help="With worked answers; without, the third hints are gone and the checks sealed."),
    ] = True,
    exam: Annotated[
        bool, typer.Option(help="With checks that only record, and an own order of choices for each name.")
    ] = False,
) -> None:
    """Pack what learners get: notebooks, package, docs, the data they open; no solutions."""
    need_checkout("mechlab release")
    from mechlab_course.grading import release as packing
    from mechlab_course.grading import withheld

    kept = withheld.EXAM if exam else withheld.FULL if answers else withheld.SEALED
    try:
        files = packing.release(out, _numbers(only), kept=kept)
    except packing.ReleaseError as error:
        say(str(error))
        raise SystemExit(1) from None
    say(f"{out}: {len(files)} files. Learners unpack it and run `make lab` inside (Windows: see its README).")
    say(withheld.LEFT[kept])


def _numbers(only: str) -> list[str]:
    return [number.strip() for number in only.split(",") if number.strip()]
