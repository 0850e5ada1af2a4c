"""The two commands of a teacher: `mechlab release` and `mechlab grade`."""

from pathlib import Path
from typing import Annotated

import typer

from mechlab_course.console import say

Numbers = Annotated[str, typer.Option("--only", help="Numbers of notebooks: 11,12. By default all that fit.")]


def grade(
    folder: Annotated[
        Path, typer.Argument(help="What came back: a sub-folder a learner, or files named after them.")
    ],
    out: Annotated[Path, typer.Option(help="The table; pages and summary are written beside it.")] = Path(
        "grades.csv"
    ),
    only: Numbers = "",
    hidden: Annotated[
        Path | None, typer.Option(help="A folder of checks that learners never get: nb12.py ...")
    ] = None,
    points: Annotated[float, typer.Option(help="For a correct exercise.")] = 1.0,
    quiz_points: Annotated[
        float, typer.Option(help="For a question, whose answer the notebook tells.")
    ] = 0.0,
    partial: Annotated[float, typer.Option(help="The share when only the hidden checks object.")] = 0.5,
    seconds: Annotated[float, typer.Option(help="How long one answer may take.")] = 60.0,
    memory: Annotated[float, typer.Option(help="How many GB one answer may use.")] = 2.0,
    fresh: Annotated[
        bool, typer.Option(help="Check everything again, whatever is known from earlier runs.")
    ] = False,
) -> None:
    """Grade what learners handed in. Foreign code is run, held in as docs/teaching.md says."""
    from mechlab_course.grading import grader, grades, report, sandbox

    rules = grades.Rules(points, quiz_points, partial, seconds, int(memory * 1e9))
    numbers = _numbers(only)
    try:
        graded = grader.grade(folder, out, only=numbers, hidden=hidden, rules=rules, fresh=fresh, say=say)
    except (grader.GradingError, sandbox.SandboxError) as error:
        say(str(error))
        raise SystemExit(1) from None
    ids = list(graded[0][1])
    for line in report.summary_lines(graded, ids):
        say(line)
    unread = sum(len(learner.problems) for learner, _ in graded)
    say(
        f"Written: {out}, {out.parent / 'feedback'}, {out.parent / 'summary.html'}"
        + (f"; {unread} files with a problem." if unread else ".")
    )


def release(
    out: Annotated[Path, typer.Option(help="A folder that is not there yet, or a file that ends in .zip.")],
    only: Numbers = "",
    answers: Annotated[
        bool, typer.Option(help="Keep the third hint of each exercise, the worked answer.")
    ] = True,
) -> None:
    """Pack what learners get: notebooks, package, data, docs; no solutions and no hidden checks."""
    from mechlab_course.grading import release as packing

    try:
        files = packing.release(out, _numbers(only), answers=answers)
    except packing.ReleaseError as error:
        say(str(error))
        raise SystemExit(1) from None
    say(f"{out}: {len(files)} files. Learners unpack it and run `make lab` inside (Windows: see its README).")


def _numbers(only: str) -> list[str]:
    return [number.strip() for number in only.split(",") if number.strip()]
