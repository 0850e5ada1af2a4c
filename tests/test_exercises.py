"""Generated from the sources: each solution passes its check, each stub counts as not attempted, and each wrong
variant is rejected with the message it must earn. An exercise may use only what the setup cell defines."""

import ast
from functools import cache

import pytest
import torch

from mechlab.course import build, check, exercise
from mechlab.course.exercises import CORRECT, NOT_ATTEMPTED, NOT_YET, all_ids
from mechlab.course.questions import find_quiz
from mechlab.course.sources import exercises, read

pytestmark = pytest.mark.model
SOURCES = {path.stem: path for path in build.sources()}


def variants():
    for stem, path in SOURCES.items():
        for id, cell, asks, wrong in exercises(read(path)):
            yield pytest.param(stem, cell.solved(), asks.source, CORRECT, "", id=f"{id}-solution")
            yield pytest.param(
                stem, cell.stub(), asks.source, NOT_ATTEMPTED, "NotImplementedError", id=f"{id}-stub"
            )
            for n, variant in enumerate(wrong, 1):
                expects = variant.meta["expects"]
                yield pytest.param(stem, variant.source, asks.source, NOT_YET, expects, id=f"{id}-wrong{n}")


@cache
def setup_names() -> dict:
    names: dict = {}
    exec(compile(build.setup_cell(), "<setup>", "exec"), names)
    return names


def run_check(code: str, check: str):
    """Define the answer, run the check cell, and return what its last line evaluates to."""
    names = dict(setup_names())
    exec(compile(code, "<answer>", "exec"), names)
    tree = ast.parse(check)
    last = tree.body.pop()
    exec(compile(tree, "<check>", "exec"), names)
    return eval(compile(ast.Expression(last.value), "<check>", "eval"), names)


@pytest.mark.parametrize(("stem", "code", "check", "status", "expects"), variants())
def test_variant(stem, code, check, status, expects, monkeypatch, tmp_path):
    monkeypatch.setenv("MECHLAB_HOME", str(tmp_path))
    monkeypatch.delenv("MECHLAB_STRICT", raising=False)
    outcome = run_check(code, check)
    assert outcome.status == status, outcome
    assert expects.lower() in outcome.message.lower(), outcome
    assert len(outcome.message) > 20  # every outcome tells the learner something


def test_every_checker_has_an_exercise_and_the_other_way_round():
    written = [id for path in SOURCES.values() for id, *_ in exercises(read(path))]
    assert sorted(written) == all_ids()


@pytest.mark.parametrize("stem", SOURCES)
def test_quizzes_explain_every_choice_that_the_text_offers(stem):
    cells = read(SOURCES[stem])
    quizzes = [n for n, cell in enumerate(cells) if cell.kind == "quiz"]
    for n in quizzes:
        id = cells[n].source.split('"')[1]
        answer = cells[n].source.split('"')[3]
        question = find_quiz(id)
        offered = [line[4] for line in cells[n - 1].source.splitlines() if line.startswith("- **")]
        assert offered == list(question.why), f"{id}: text offers {offered}"
        assert answer == question.right
        assert all(len(why) > 40 for why in question.why.values())


class Unprintable(Exception):
    def __str__(self):
        raise ValueError("no text")


def leave(*_, **__):
    raise SystemExit


def unprintable(*_, **__):
    raise Unprintable


JUNK = {
    "string": lambda *_, **__: "junk",
    "number": lambda *_, **__: float("nan"),
    "list": lambda *_, **__: [1, [2]],
    "dict": lambda *_, **__: {"who looks where": ["x"], "gathered": 1, "neurons": {}, "stream in": None},
    "bool tensor": lambda *_, **__: torch.ones(3, dtype=torch.bool),
    "empty tensor": lambda *_, **__: torch.zeros(0),
    "array": lambda *_, **__: torch.zeros(2, 3).numpy(),
    "first argument": lambda *args, **__: args[0] if args else ...,
    "generator": lambda *_, **__: (n for n in range(3)),
    "exit": leave,
    "unprintable": unprintable,
    "signature": lambda: 0,
}


@pytest.mark.parametrize("kind", JUNK)
@pytest.mark.parametrize("id", all_ids())
def test_junk_is_not_correct_and_never_a_traceback(id, kind, smollm2, monkeypatch, tmp_path):
    monkeypatch.setenv("MECHLAB_HOME", str(tmp_path))
    function = lambda *args, **given: JUNK[kind](*args, **given)
    outcome = check(exercise(id)(function), smollm2)
    assert outcome.status == NOT_YET, outcome
    assert 20 < len(outcome.message) < 1000


def test_an_operation_torch_does_not_have_is_not_an_unattempted_exercise(monkeypatch, tmp_path):
    monkeypatch.setenv("MECHLAB_HOME", str(tmp_path))

    def half_written(logits, answer, rival):
        return torch.bincount(logits[-1])

    outcome = check(exercise("00.1")(half_written))
    assert outcome.status == NOT_YET and "torch.bincount" in outcome.message


def test_the_model_may_be_given_by_position_and_must_be_a_model(smollm2, monkeypatch, tmp_path):
    monkeypatch.setenv("MECHLAB_HOME", str(tmp_path))
    count = exercise("01.1")(lambda model, number: model.to_tokens(str(number), prepend_bos=False).shape[1])
    assert check(count, smollm2).status == CORRECT
    assert "model=model" in check(count, "smollm2").message
    assert "model=model" in check(count, model=None).message
