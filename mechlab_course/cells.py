"""What a code cell answers, read from its code and never by running it.

One parser for all who ask: the build, the working copies, grading, and the tests. An exercise is answered by
the function marked `@exercise("12.1")`, a question by `quiz("12.a", "b")`, a prediction by `predict("12.p",
0.5)`.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

LONGEST = 200_000  # characters of one cell
UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)  # what `parsed` raises
QUESTIONS = ("quiz", "predict")
MARKS = ("exercise", *QUESTIONS)
_ID = re.compile(r"[\w.]+")
_KEPT_MAGIC = re.compile(r"%%(time|timeit|capture|prun)\b")
_MAGIC = re.compile(r"^(\s*)(?:[%!].*|\?.*|[\w.]+\?{1,2}|[\w.,\s]+=\s*[%!].*)$")
_MENTION = re.compile(  # an id in quotes, or one of the course's form with what is left of its quotes
    r"\bexercise\(\s*(?:id\s*=\s*)?(?:[rfu]?[\"']{1,3}\s*([\w.]+)\s*[\"']|[\"']?(\d\d\.\d+)[\"']?)\s*\)"
    r"|\b(quiz|predict)\(\s*(?:id\s*=\s*)?[rfu]?[\"']{1,3}\s*([\w.]+)\s*[\"']"
)
_INNER = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Answered:
    """One thing that a cell answers."""

    kind: str  # "exercise", "quiz" or "predict"
    id: str
    node: ast.AST | None = None  # what does: a statement, or a call inside one; None where a text names it
    given: tuple[ast.expr, ...] = ()  # what a question or a prediction is answered with
    inside: bool = False  # within a function or a class, so that no other cell sees it


def answered(text: str, names: dict[str, str] | None = None) -> list[Answered]:
    """All that a cell answers, in order; of a cell that is not Python, what its text names.

    names: other names of `exercise`, `quiz` and `predict`, as `renamed` finds them.
    """
    try:
        _, tree = parsed(text)
        names = (names or {}) | renamed([tree])
        return [found for node in tree.body for found in answered_by(node, names)]
    except UNREADABLE:
        return mentioned(text)


def renamed(trees: Iterable[ast.AST]) -> dict[str, str]:
    """Other names of `exercise`, `quiz`, `predict`: by `import exercise as ex`, or `ask = course.quiz`."""
    names: dict[str, str] = {}
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                names |= {a.asname: a.name for a in node.names if a.asname and a.name in MARKS}
            elif isinstance(node, ast.Assign) and isinstance(node.value, (ast.Name, ast.Attribute)):
                meant = _last_name(node.value)
                meant = names.get(meant, meant)
                if meant in MARKS:
                    names |= {each.id: meant for each in node.targets if isinstance(each, ast.Name)}
    return names


def answered_by(
    node: ast.AST, names: dict[str, str] | None = None, inside: bool = False
) -> Iterator[Answered]:
    """What a statement answers, with all that stands in it.

    A function answers by its decorators; a question wherever `quiz(...)` is called; and so does a call
    `exercise("12.1")(function)`.
    """
    names = names or {}
    if isinstance(node, _INNER):
        for each in node.decorator_list:
            if id := _exercise_id(each, names):
                yield Answered("exercise", id, node, inside=inside)
        for child in ast.iter_child_nodes(node):
            yield from answered_by(child, names, inside=True)
        return
    call = node if isinstance(node, ast.Call) else getattr(node, "value", None)
    if isinstance(call, ast.Call) and isinstance(node, (ast.Call, ast.Expr, ast.Assign, ast.AnnAssign)):
        if id := _exercise_id(call.func, names):
            yield Answered("exercise", id, node, inside=inside)
            return
        kind, (asked, *given) = _called(call, names), _arguments(call)
        if kind in QUESTIONS and asked is not None and (id := _constant(asked)):
            yield Answered(kind, id, node, tuple(given), inside)
            return
    for child in ast.iter_child_nodes(node):
        yield from answered_by(child, names, inside)


def mentioned(text: str) -> list[Answered]:
    """What a text names, each once, whether or not it is Python: a half-written answer is an answer."""
    found = [
        Answered(kind or "exercise", quoted or bare or id)
        for quoted, bare, kind, id in _MENTION.findall(text[:LONGEST])
    ]
    return list(dict.fromkeys(found))


def foreign(notebook: dict) -> str:
    """The language of a notebook that is not for Python, such as "R"; "" for one that is, or does not say."""
    about = notebook.get("metadata") if isinstance(notebook, dict) else None
    parts = [about.get(part) for part in ("kernelspec", "language_info")] if isinstance(about, dict) else []
    spec, info = [part if isinstance(part, dict) else {} for part in parts] or ({}, {})
    kernel = str(spec.get("name") or "")
    known = {"ir": "R", "julia": "Julia", "bash": "bash", "javascript": "JavaScript"}.get(
        re.split(r"\W", kernel)[0]
    )
    said = next((s for s in (spec.get("language"), info.get("name"), known) if s and isinstance(s, str)), "")
    return "" if re.match(r"i?python|sage", said.lower()) else said


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
    """Top-level statements, and in place of `if`, `for`, `with` and the like those inside them."""
    for node in body:
        parts = [
            getattr(node, part, None) or [] for part in ("body", "orelse", "handlers", "finalbody", "cases")
        ]
        if isinstance(node, _INNER) or not any(parts):
            yield node
            continue
        for part in parts:
            for each in part:
                inner = [each] if isinstance(each, ast.stmt) else each.body
                yield from statements(inner)


def _exercise_id(node: ast.expr, names: dict[str, str]) -> str:
    """The id in `exercise("12.1")`, `ml.course.exercise('12.1')` or `exercise(12.1)`, else ""."""
    if not isinstance(node, ast.Call) or _called(node, names) != "exercise":
        return ""
    asked, *given = _arguments(node)
    return _constant(asked) if asked is not None and not given else ""


def _called(call: ast.Call, names: dict[str, str]) -> str:
    """The name of the function that is called, whatever it is an attribute of."""
    name = _last_name(call.func)
    return names.get(name, name)


def _last_name(node: ast.expr) -> str:
    return getattr(node, "attr", getattr(node, "id", ""))


def _arguments(call: ast.Call) -> list[ast.expr | None]:
    """The id, by place or by its name, and then the others; None for an id that is not given."""
    by_name = {keyword.arg: keyword.value for keyword in call.keywords}
    first = call.args[0] if call.args else by_name.pop("id", None)
    return [first, *call.args[1:], *by_name.values()]


def _constant(node: ast.expr) -> str:
    """An id that is written out; "" if it is computed, or no id."""
    if isinstance(node, ast.JoinedStr) and len(node.values) == 1:
        (node,) = node.values  # f"12.1", with nothing to fill in
    id = str(node.value).strip() if isinstance(node, ast.Constant) else ""
    return id if _ID.fullmatch(id) else ""
