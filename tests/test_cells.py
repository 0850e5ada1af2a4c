"""What a code cell answers, by the one parser that build, working copies, grading and tests share."""

import ast

import pytest

from mechlab_course.build import notebooks as build
from mechlab_course.build import workspace
from mechlab_course.build.sources import read
from mechlab_course.cells import answered, mentioned
from mechlab_course.grading.answers import find

FORMS = {  # a cell: what it answers
    '@exercise("12.1")\ndef f(x):\n    return x': ["exercise 12.1"],
    "@ml.course.exercise('12.1')\ndef f(x):\n    return x": ["exercise 12.1"],
    "@exercise(12.1)\ndef f(x):\n    return x": ["exercise 12.1"],
    '@exercise(id="12.1")\n@torch.no_grad()\ndef f(x):\n    return x': ["exercise 12.1"],
    'if True:\n    @exercise("12.1")\n    def f(x):\n        return x': ["exercise 12.1"],
    'f = exercise("12.1")(lambda x: x)': ["exercise 12.1"],
    '%%time\n@exercise("12.1")\ndef f(x):\n    return x': ["exercise 12.1"],
    '@exercise(f"12.1")\ndef f(x):\n    return x': ["exercise 12.1"],
    "@exercise(r'12.1 ')\ndef f(x):\n    return x": ["exercise 12.1"],
    '@ exercise ( """12.1""" )\ndef f(x):\n    return x': ["exercise 12.1"],
    '@exercise(\n    id="12.1",  # the first\n)\ndef f(x):\n    return x': ["exercise 12.1"],
    'from mechlab_course import exercise as ex\n@ex("12.1")\ndef f(x):\n    return x': ["exercise 12.1"],
    'mark = ml.course.exercise\nagain = mark\n@again("12.1")\ndef f(x):\n    return x': ["exercise 12.1"],
    'ask = quiz\nask("12.a", "b")': ["quiz 12.a"],
    'f: Callable = exercise("12.1")(lambda x: x)': ["exercise 12.1"],
    'exercise("12.1")(f)\ncheck(exercise("12.2")(lambda x: x))': ["exercise 12.1", "exercise 12.2"],
    'for _ in range(1):\n    @exercise("12.1")\n    def f(x):\n        return x': ["exercise 12.1"],
    'try:\n    1 / 0\nexcept Exception:\n    @exercise("12.1")\n    def f(x):\n        return x': [
        "exercise 12.1"
    ],
    'match 1:\n    case _:\n        @exercise("12.1")\n        def f(x):\n            return x': [
        "exercise 12.1"
    ],
    'def make():\n    @exercise("12.1")\n    def f(x):\n        return x\n    return f': ["exercise 12.1"],
    '@exercise("12.1")\ndef f(x): ...\n@exercise("12.2")\ndef g(x): ...': ["exercise 12.1", "exercise 12.2"],
    'quiz("12.a", "b")': ["quiz 12.a"],
    'outcome = course.quiz("12.a", answer="b")': ["quiz 12.a"],
    'quiz(answer="b", id="12.a")': ["quiz 12.a"],
    'print(quiz("12.a", "b")); shown = [quiz("12.b", "c")]': ["quiz 12.a", "quiz 12.b"],
    'def mine():\n    return quiz("12.a", "b")': ["quiz 12.a"],
    'if quiz("12.a", "b").status == "correct":\n    quiz("12.b", "a")': ["quiz 12.a", "quiz 12.b"],
    'predict("12.p", [0.5, -x])': ["predict 12.p"],
    'quiz("12.a", "b")\npredict("12.p", ...)': ["quiz 12.a", "predict 12.p"],
    '@exercise(name)\ndef f(x): ...\nquiz(f"12.{letter}", "b")\nexercise = 3': [],
    "print('@exercise(\"12.1\")')": [],
    # not Python: by its text
    '@exercise("12.1")\ndef f(x):\n    return (x': ["exercise 12.1"],
    '@exercise("12.1)\ndef f(x):\n    return x': ["exercise 12.1"],
    'quiz("12.a", "b"\npredict("12.p", 0.5)\nquiz("12.a", "c"': ["quiz 12.a", "predict 12.p"],
    "def (:\n    exercise(f)": [],
    'quiz(id="12.a", answer="b"\n': ["quiz 12.a"],
}


@pytest.mark.parametrize("code", FORMS)
def test_what_a_cell_answers(code):
    assert [f"{found.kind} {found.id}" for found in answered(code)] == FORMS[code]


def test_what_a_question_is_answered_with_comes_along():
    (found,) = answered('x = quiz("12.a", "b")')
    assert isinstance(found.node, ast.Assign) and [ast.unparse(each) for each in found.given] == ["'b'"]
    for code in ('quiz(answer="b", id="12.a")', 'quiz("12.a", answer="b")', 'quiz(id="12.a", answer="b")'):
        (found,) = answered(code)
        assert [ast.unparse(each) for each in found.given] == ["'b'"]


def test_a_mention_counts_where_nothing_else_does():
    text = "# exercise('12.1'), as I tried it, and quiz('12.a', 'b')"
    assert answered(text) == []
    assert [found.id for found in mentioned(text)] == ["12.1", "12.a"]
    cell = {"cell_type": "code", "source": [text]}
    assert workspace._answer_key(cell) == "exercise 12.1"  # kept with the exercise it names


def test_grading_takes_ids_of_the_course_only():
    assert (
        find(['@exercise("mine")\ndef f(x):\n    return x', 'predict("12.1", 3)', 'quiz("12.1", "b")'], "")
        == []
    )


@pytest.mark.parametrize("stem", build.sources())
def test_every_cell_of_the_course_answers_what_its_header_says(stem):
    for cell in read(build.sources()[stem]):
        if cell.kind in ("exercise", "wrong"):
            assert [(a.kind, a.id) for a in answered(cell.source)] == [("exercise", cell.meta["id"])]
        elif cell.kind in ("quiz", "predict"):
            assert [a.kind for a in answered(cell.stub())] == [cell.kind]
        elif cell.type == "code":
            assert answered(cell.source) == []
