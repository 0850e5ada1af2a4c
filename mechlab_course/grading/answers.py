"""Find the answers in a notebook by reading its code, never by running it.

An answer is the function marked `@exercise("12.1")`, wherever its cell has gone, with what it needs of the
rest of the notebook: imports, functions, classes and simple values defined at the top level. What runs a
model or draws stays behind.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mechlab_course import cells
from mechlab_course.grading.slices import Piece, piece_of, slice_for

# What the ids of the course look like. Answers to anything else are the learner's own.
EXERCISE, QUIZ = re.compile(r"\d\d\.\d+"), re.compile(r"\d\d\.[a-z]")


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
    missing: tuple[str, ...] = ()  # sentences about names that no cell it may use defines


def find(texts: list[str], file: str) -> list[Answer]:
    """Every answer in these code cells, in order."""
    pieces: list[Piece] = []
    found: list[tuple[int, Answer]] = []
    for number, text in enumerate(texts, 1):
        where = f"{file}, code cell {number}"
        try:
            text, tree = cells.parsed(text)
        except cells.UNREADABLE as error:
            found += [(len(pieces), answer) for answer in _unreadable(text, where, error)]
            continue
        for node in cells.statements(tree.body):
            piece = piece_of(node, text, number)
            found += [(len(pieces), answer) for answer in _answers(node, piece, where)]
            if piece:
                pieces.append(piece)
    return [_complete(answer, at, pieces) for at, answer in found]


def _answers(node: ast.stmt, piece: Piece | None, where: str) -> Iterator[Answer]:
    """The answers of one statement."""
    for found in cells.answered_by(node):
        if found.kind == "quiz":
            yield from _quiz(found, where)
        elif piece and found.kind == "exercise" and EXERCISE.fullmatch(found.id):
            if isinstance(node, (ast.AsyncFunctionDef, ast.ClassDef)):
                why = "An answer is a plain function, `def name(...)`, under the line `@exercise(...)`."
                yield Answer(found.id, "exercise", piece.text, "", where, problem=why)
            else:
                yield Answer(found.id, "exercise", piece.text, piece.names[0], where, _is_stub(node))


def _quiz(found: cells.Answered, where: str) -> Iterator[Answer]:
    """`quiz("12.a", "b")`; an answer that is computed is none."""
    if QUIZ.fullmatch(found.id) and len(found.given) == 1 and isinstance(found.given[0], ast.Constant):
        letter = found.given[0].value
        stub = letter is ...
        yield Answer(found.id, "quiz", "", "" if stub else str(letter)[:20], where, stub)


def _complete(answer: Answer, at: int, pieces: list[Piece]) -> Answer:
    if answer.kind == "quiz" or answer.problem or answer.stub:
        return answer
    code, missing = slice_for(answer.name, at, pieces)
    return replace(answer, code=code, missing=missing)


def _unreadable(text: str, where: str, error: Exception) -> Iterator[Answer]:
    place = f" in line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
    reason = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
    why = f"This cell is not Python{place}: {reason}. Run the cell in a notebook to see where."
    for found in cells.mentioned(text):
        if found.kind == "exercise" and EXERCISE.fullmatch(found.id):
            yield Answer(found.id, "exercise", text[:2000], "", where, problem=why)


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
