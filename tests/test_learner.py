"""A mechanical learner: through every notebook three times, with nothing solved, everything wrong, everything right.

Each time all answers of all notebooks are given in the order of the course, in one session, as the cells that learners
get; the progress table must add up. That cells which are no answers cannot be hurt by any of them is told from the
names they use (and seen when `tests` runs every notebook unsolved, and solved, from the first cell to the last).
"""

import ast
import json

import pytest

from mechlab_course import overview
from mechlab_course.build import notebooks as build
from mechlab_course.build import sources
from mechlab_course.cells import answered
from mechlab_course.exercises import CORRECT, NOT_ATTEMPTED, NOT_YET
from mechlab_course.questions import find_quiz
from tests.cells import names, shown, unsolved_and_solved

SOURCES = build.sources()


def handed_in(id: str, name: str) -> str:
    """The first declared mistake of an exercise, as a cell."""
    return (
        "from mechlab_course.checking import mistakes_of\n\n"
        f"_wrong = next(iter(mistakes_of('{id}').values()))\n{name} = exercise('{id}')(lambda *args: _wrong(*args))"
    )


def answers(stem: str, how: str):
    """(cells to run, the status that the last one must have) for every exercise and quiz of a notebook."""
    for cell in (cells := sources.read(SOURCES[stem])):
        if cell.kind == "exercise":
            _, _, check, wrong = next(e for e in sources.exercises(cells) if e[1] is cell)
            mistake = (
                wrong[0].source if wrong else handed_in(cell.meta["id"], sources.function_name(cell.solved()))
            )
            code = {"unsolved": cell.stub(), "wrong": mistake, "solved": cell.solved()}[how]
            yield [code, check.source]
        if cell.kind in ("quiz", "predict"):
            code = cell.source if how == "solved" else cell.stub()
            (asked,) = answered(code)
            line = ast.unparse(asked.node.value)
            if how == "wrong" and cell.kind == "quiz":
                question = find_quiz(asked.id)
                letter = next(each for each in question.why if each != question.right)
                line = f'quiz("{asked.id}", "{letter}")'
            yield [line]


def exercises_in(cell: dict) -> list[str]:
    """The exercises that a code cell answers."""
    code = "".join(cell["source"]) if cell["cell_type"] == "code" else ""
    return [found.id for found in answered(code) if found.kind == "exercise"]


@pytest.mark.model
def test_three_times_through_the_whole_course(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MECHLAB_HOME", str(tmp_path))
    monkeypatch.delenv("MECHLAB_STRICT", raising=False)
    session: dict = {}
    exec(compile(build.setup_cell(), "<setup>", "exec"), session)
    expected = {"unsolved": NOT_ATTEMPTED, "wrong": NOT_YET, "solved": CORRECT}
    total = sum(len(list(sources.exercises(sources.read(path)))) for path in SOURCES.values())
    for how, done in (
        ("unsolved", 0),
        ("wrong", 0),
        ("solved", total),
        ("wrong", total),
    ):  # once solved counts for good
        for stem in SOURCES:
            for cells in answers(stem, how):
                for code in cells:
                    outcome = shown(code, session)
                if hasattr(outcome, "status"):
                    assert outcome.status == expected[how], f"{stem}, {how}: {outcome}"
                    assert outcome._repr_html_()
        table = overview.table()
        assert (sum(row.done[0] for row in table.rows), sum(row.all[0] for row in table.rows)) == (
            done,
            total,
        ), how
    assert "Everything solved." in repr(table)
    assert "Traceback" not in capsys.readouterr().out


@pytest.mark.parametrize("stem", SOURCES)
def test_no_cell_builds_upon_an_answer(stem):
    cells = build.learner_notebook(SOURCES[stem])["cells"]
    answered: set[str] = set()
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        code, kind = "".join(cell["source"]), cell["metadata"].get("mechlab", {}).get("kind", "")
        bound, used = names(code)
        if kind in ("exercise", "predict", "quiz"):
            answered |= bound
        elif kind != "check":
            assert not used & answered, f"{stem}, {kind}: {code[:100]} uses {sorted(used & answered)}"
            answered -= bound


@pytest.mark.parametrize("stem", SOURCES)
def test_one_session_has_every_cell_of_the_unsolved_and_of_the_solved_notebook(stem):
    """What `tests` runs: solved cells in their order, each unsolved one before its solution and with its check."""
    learner, solved = (
        json.loads((build.ROOT / folder / f"{stem}.ipynb").read_text())
        for folder in ("notebooks", "solutions")
    )
    cells = unsolved_and_solved(learner, solved)["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert [cell for cell in cells if cell in solved["cells"]] == solved["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    assert {"".join(cell["source"]) for cell in learner["cells"]} <= set(sources)
    exercises = [id for cell in learner["cells"] for id in exercises_in(cell)]
    stubs = [
        n for n, cell in enumerate(cells) if exercises_in(cell) and "raise NotImplementedError" in sources[n]
    ]
    assert len(stubs) == len(exercises) > 0
    for n in stubs:
        assert 'MECHLAB_STRICT"] = "0"' in sources[n - 1] and "check(" in sources[n + 1]
        assert 'MECHLAB_STRICT"] = "1"' in sources[n + 2] and exercises_in(cells[n + 3])
