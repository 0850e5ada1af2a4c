"""What a code cell answers, read from its code and never by running it.

One parser for all who ask: the build, the working copies, grading, and the tests. An exercise is answered by
the function marked `@exercise("12.1")`, a question by `quiz("12.a", "b")`, a prediction by `predict("12.p",
0.5)`.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

LONGEST = 200_000  # characters of one cell
UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)  # what `parsed` raises
QUESTIONS = ("quiz", "predict")
_ID = re.compile(r"[\w.]+")
_KEPT_MAGIC = re.compile(r"%%(time|timeit|capture|prun)\b")
_MAGIC = re.compile(r"^(\s*)(?:[%!].*|\?.*|[\w.]+\?{1,2}|[\w.,\s]+=\s*[%!].*)$")
_MENTION = re.compile(  # an id in quotes, or one of the course's form with what is left of its quotes
    r"\bexercise\(\s*(?:id\s*=\s*)?(?:[\"']([\w.]+)[\"']|[\"']?(\d\d\.\d+)[\"']?)\s*\)"
    r"|\b(quiz|predict)\(\s*[\"']([\w.]+)[\"']"
)


@dataclass(frozen=True)
class Answered:
    """One thing that a cell answers."""

    kind: str  # "exercise", "quiz" or "predict"
    id: str
    node: ast.stmt | None = None  # the statement that does; None where a text only names it
    given: tuple[ast.expr, ...] = ()  # what a question or a prediction is answered with


def answered(text: str) -> list[Answered]:
    """All that a cell answers, in order; of a cell that is not Python, what its text names."""
    try:
        _, tree = parsed(text)
    except UNREADABLE:
        return mentioned(text)
    return [found for node in statements(tree.body) for found in answered_by(node)]


def answered_by(node: ast.stmt) -> list[Answered]:
    """What one statement answers: a function by its decorators, a call alone or on the right of `=`."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        ids = [_exercise_id(each) for each in node.decorator_list]
        return [Answered("exercise", id, node) for id in ids if id]
    call = getattr(node, "value", None)
    if not isinstance(node, (ast.Expr, ast.Assign)) or not isinstance(call, ast.Call):
        return []
    named = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    if named and (id := _exercise_id(call.func)):  # name = exercise("12.1")(lambda ...)
        return [Answered("exercise", id, node)]
    given = _given(call)
    id = _constant(given[0]) if _called(call) in QUESTIONS and given else ""
    return [Answered(_called(call), id, node, given[1:])] if id else []


def mentioned(text: str) -> list[Answered]:
    """What a text names, each once, whether or not it is Python: a half-written answer is an answer."""
    found = [
        Answered(kind or "exercise", quoted or bare or id)
        for quoted, bare, kind, id in _MENTION.findall(text[:LONGEST])
    ]
    return list(dict.fromkeys(found))


def parsed(text: str) -> tuple[str, ast.Module]:
    """The cell without what only IPython understands, and its tree. Plain Python is not touched.

    Raises one of `UNREADABLE`.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")
    if len(text) > LONGEST:
        raise ValueError(f"the cell has more than {LONGEST:,} characters")
    try:
        return text, ast.parse(text)
    except SyntaxError as error:
        plain = error
    if text.lstrip().startswith("%%") and not _KEPT_MAGIC.match(text.lstrip()):
        return "", ast.parse("")
    text = "\n".join(_MAGIC.sub(r"\1pass", line) for line in text.split("\n"))
    try:
        return text, ast.parse(text)
    except SyntaxError:
        raise plain from None


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Top-level statements, those inside `if`, `try` and `with` too."""
    for node in body:
        if isinstance(node, (ast.If, ast.Try, ast.With)):
            yield from statements([*node.body, *getattr(node, "orelse", [])])
        else:
            yield node


def _exercise_id(node: ast.expr) -> str:
    """The id in `exercise("12.1")`, `ml.course.exercise('12.1')` or `exercise(12.1)`, else ""."""
    if not isinstance(node, ast.Call) or _called(node) != "exercise":
        return ""
    given = _given(node)
    return _constant(given[0]) if len(given) == 1 else ""


def _called(call: ast.Call) -> str:
    """The name of the function that is called, whatever it is an attribute of."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def _given(call: ast.Call) -> tuple[ast.expr, ...]:
    return (*call.args, *(keyword.value for keyword in call.keywords))


def _constant(node: ast.expr) -> str:
    """An id that is written out; "" if it is computed, or no id."""
    id = str(node.value).strip() if isinstance(node, ast.Constant) else ""
    return id if _ID.fullmatch(id) else ""
