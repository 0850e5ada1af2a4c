"""Find the answers in a notebook by reading its code, never by running it.

An answer is the function marked `@exercise("12.1")`, wherever its cell has gone, with what it needs of the rest of the
notebook: imports, functions, classes and simple values defined at the top level. What runs a model or draws stays behind.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mechlab_course.grading.slices import Piece, exercise_ids, piece_of, slice_for

LONGEST = 200_000  # characters of one cell
MENTION = re.compile(r"\bexercise\(\s*(?:id\s*=\s*)?[\"']?(\d\d\.\d+)[\"']?\s*\)")
_KEPT_MAGIC = re.compile(r"%%(time|timeit|capture|prun)\b")
_MAGIC = re.compile(r"^(\s*)(?:[%!].*|\?.*|[\w.]+\?{1,2}|[\w.,\s]+=\s*[%!].*)$")


@dataclass(frozen=True)
class Answer:
    """One answer: `code` defines it with all it uses; `name` is the function, or the letter of a quiz."""

    id: str
    kind: str  # "exercise" or "quiz"
    code: str
    name: str
    where: str
    stub: bool = False
    problem: str = ""  # why it cannot be run at all
    missing: tuple[
        str, ...
    ] = ()  # sentences about names that only other cells, which are not run, would define


def find(cells: list[str], file: str) -> list[Answer]:
    """Every answer in these code cells, in order."""
    pieces: list[Piece] = []
    found: list[tuple[int, Answer]] = []
    for number, text in enumerate(cells, 1):
        where = f"{file}, code cell {number}"
        try:
            text, tree = parsed(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            found += [(len(pieces), answer) for answer in _unreadable(text, where, error)]
            continue
        for node in _statements(tree.body):
            found += [(len(pieces), answer) for answer in _quizzes(node, where)]
            piece = piece_of(node, text, number)
            for id in exercise_ids(node):
                if isinstance(node, (ast.AsyncFunctionDef, ast.ClassDef)):
                    why = "An answer is a plain function, `def name(...)`, under the line `@exercise(...)`."
                    found.append((len(pieces), Answer(id, "exercise", piece.text, "", where, problem=why)))
                else:
                    name, stub = piece.names[0], _is_stub(node)
                    found.append((len(pieces), Answer(id, "exercise", piece.text, name, where, stub)))
            if piece:
                pieces.append(piece)
    return [_complete(answer, at, pieces) for at, answer in found]


def _complete(answer: Answer, at: int, pieces: list[Piece]) -> Answer:
    if answer.kind == "quiz" or answer.problem or answer.stub:
        return answer
    code, missing = slice_for(answer.name, at, pieces)
    return replace(answer, code=code, missing=missing)


def parsed(text: str) -> tuple[str, ast.Module]:
    """The cell without what only IPython understands, and its tree. Code that is plain Python is not touched."""
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


def _unreadable(text: str, where: str, error: Exception) -> Iterator[Answer]:
    place = f" in line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
    reason = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
    why = f"This cell is not Python{place}: {reason}. Run the cell in a notebook to see where."
    for id in dict.fromkeys(MENTION.findall(text[:LONGEST])):
        yield Answer(id, "exercise", text[:2000], "", where, problem=why)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Top-level statements, those inside `if`, `try` and `with` too."""
    for node in body:
        if isinstance(node, (ast.If, ast.Try, ast.With)):
            yield from _statements([*node.body, *getattr(node, "orelse", [])])
        else:
            yield node


def _is_stub(node: ast.stmt) -> bool:
    """Only a docstring and `raise NotImplementedError`: as it was handed out."""
    body = [
        n
        for n in getattr(node, "body", [])
        if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))
    ]
    if len(body) != 1 or not isinstance(body[0], ast.Raise):
        return False
    raised = body[0].exc.func if isinstance(body[0].exc, ast.Call) else body[0].exc
    return getattr(raised, "id", "") == "NotImplementedError"


def _quizzes(node: ast.stmt, where: str) -> Iterator[Answer]:
    """`quiz("12.a", "b")`, alone or on the right of `=`."""
    call = getattr(node, "value", None)
    if not isinstance(node, (ast.Expr, ast.Assign)) or not isinstance(call, ast.Call):
        return
    named = getattr(call.func, "attr", getattr(call.func, "id", ""))
    given = [*call.args, *(k.value for k in call.keywords)]
    if named == "quiz" and len(given) == 2 and all(isinstance(a, ast.Constant) for a in given):
        id, letter = (a.value for a in given)
        if re.fullmatch(r"\d\d\.[a-z]", str(id)):
            stub = letter is ...
            yield Answer(str(id), "quiz", "", "" if stub else str(letter)[:20], where, stub)
