"""Find the answers in a notebook by reading its code, never by running it.

An answer is the function marked `@exercise("12.1")`, wherever its cell has gone, with what it needs of the
rest of the notebook (slices.py): all that makes or changes what it uses. What runs a model or draws stays
behind.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mechlab_course import cells
from mechlab_course.grading.pieces import Piece, piece_of
from mechlab_course.grading.slices import Notebook, slice_for

# What the ids of the course look like. Answers to anything else are the learner's own.
EXERCISE, QUIZ = re.compile(r"\d\d\.\d+"), re.compile(r"\d\d\.[a-z]")
_WORDS = re.compile(r"[\s#>*_]*answer\s+(\d\d\.[\w-]*\w)[*_]*\s*:?[*_]*(.*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """One answer: `code` defines it with all it uses; `name` is the function, or the letter of a quiz."""

    id: str
    kind: str  # "exercise", "quiz" or "text"
    code: str  # of a text the words
    name: str
    where: str
    stub: bool = False
    problem: str = ""  # why it cannot be run at all
    missing: tuple[str, ...] = ()  # sentences about names that no cell it may use defines


def find(texts: list[str], file: str) -> list[Answer]:
    """Every answer in these code cells, in order; one that is checked in two states is there in both."""
    read: list[Piece] = []
    found: list[tuple[int, int, Answer]] = []  # with the number of its cell, and of its piece
    trees, future = [], False
    for number, text in enumerate(texts, 1):
        try:
            text, tree = cells.parsed(text)
            future |= any(getattr(node, "module", "") == "__future__" for node in tree.body)
            read += [piece_of(node, text, number, future) for node in tree.body]
            trees.append(tree)
        except cells.UNREADABLE as error:
            where = f"{file}, code cell {number}"
            found += [(number, 0, answer) for answer in _unreadable(text, where, error)]
    names, pieces, letters = cells.renamed(trees), [], {}
    for piece in Notebook(read).divided().pieces:
        pieces.append(piece)
        at = len(pieces) - 1
        for each in cells.answered_by(piece.node, names):
            where = f"{file}, code cell {piece.cell}"
            if each.kind == "quiz":
                given = _of_the_course(_quiz(each, where, letters), texts)
                found += [(piece.cell, at, answer) for answer in given]
            elif each.kind == "exercise" and EXERCISE.fullmatch(each.id):
                answer, own = _exercise(each, piece, where)
                pieces += [own] if own else []
                found.append((piece.cell, len(pieces) - 1 if own else at, answer))
        letters |= _letters(piece.node)
    book = Notebook(pieces)
    found.sort(key=lambda each: each[0])
    return [state for _, at, answer in found for state in _states(answer, at, book)]


def in_words(texts: list[str], file: str) -> list[Answer]:
    """Answers that a person reads: cells of text that begin with `Answer 43.essay`."""
    found = [match for text in texts if (match := _WORDS.match(text))]
    return [Answer(each[1], "text", each[2].strip(), "", file, not each[2].strip()) for each in found]


def _exercise(found: cells.Answered, piece: Piece, where: str) -> tuple[Answer, Piece | None]:
    """The answer, and a piece of its own where it has no name: `check(exercise("12.1")(lambda ...))`."""
    node, id, why = found.node, found.id, ""
    if found.inside:
        why = (
            "It stands inside another function or class, where nothing else sees it. Put it at the left edge."
        )
    elif isinstance(node, (ast.AsyncFunctionDef, ast.ClassDef)):
        why = "An answer is a plain function, `def name(...)`, under the line `@exercise(...)`."
    if why:
        return Answer(id, "exercise", piece.text, "", where, problem=why), None
    if isinstance(node, ast.FunctionDef):
        return Answer(id, "exercise", piece.text, node.name, where, _is_stub(node)), None
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        return Answer(id, "exercise", piece.text, target.id, where), None
    call = node.value if isinstance(node, ast.Expr) else node
    name = f"answer_{id.replace('.', '_')}"
    own = ast.fix_missing_locations(ast.Assign([ast.Name(name, ast.Store())], call, lineno=1))
    return Answer(id, "exercise", piece.text, name, where), piece_of(own, None, piece.cell)


def _letters(node: ast.stmt) -> dict[str, ast.Constant]:
    """Names that are given a plain value here."""
    if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)):
        return {}
    return {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}


def _states(answer: Answer, at: int, book: Notebook) -> Iterator[Answer]:
    """The answer with what it needs, as the notebook has it where it is checked, or else at its end.

    Without a check also as it was right below the answer, should that differ.
    """
    if answer.kind == "quiz" or answer.problem or answer.stub:
        yield answer
        return
    rest = range(at + 1, len(book.pieces))
    end = next(
        (n for n in rest if answer.name in book.pieces[n].names and book.pieces[n].sure), len(rest) + at + 1
    )
    checked = [n for n in rest if n < end and answer.name in book.pieces[n].checks]
    states = [slice_for(answer.name, at, book, n) for n in checked] or [slice_for(answer.name, at, book)]
    if all(missing for _, missing in states):
        states.append(slice_for(answer.name, at, book))
    if not checked:
        states.append(slice_for(answer.name, at, book, at + 1))
    whole = [states[0], *(state for state in states[1:] if not state[1])]
    if checked and states[0][1] and len(whole) > 1:
        del whole[0]  # what it needs stands below its check
    for code, missing in dict.fromkeys(whole):
        yield replace(answer, code=code, missing=missing)


def _quiz(found: cells.Answered, where: str, letters: dict[str, ast.Constant]) -> Iterator[Answer]:
    """`quiz("12.a", "b")`; an answer that is computed cannot be read, and is told."""
    if not QUIZ.fullmatch(found.id) or not found.given:
        return
    given = found.given[0]
    given = letters.get(given.id, given) if isinstance(given, ast.Name) else given
    if isinstance(given, ast.Constant):
        stub = given.value is ...
        yield Answer(found.id, "quiz", "", "" if stub else str(given.value)[:20], where, stub)
    else:
        why = f'The answer `{ast.unparse(given)[:60]}` is computed. Write the letter itself: `"b"`.'
        yield Answer(found.id, "quiz", "", "", where, problem=why)


def _of_the_course(answers: Iterator[Answer], texts: list[str]) -> Iterator[Answer]:
    """With the letter of the course: in an exam, whoever answers has letters of their own."""
    if not any("mechlab_course.exam" in text for text in texts):
        yield from answers
        return
    from mechlab_course.exam import name_in, order
    from mechlab_course.questions import Quiz, declared

    name = name_in(texts)
    for answer in answers:
        question = declared(answer.id[:2], Quiz).get(answer.id)
        if name is None or question is None or answer.stub or answer.problem:
            yield answer
        elif not name:
            yield replace(answer, problem="The cell with the name was left empty: whose letters are these?")
        else:
            own = order(name, answer.id, question.why)
            yield replace(answer, name=own.get(answer.name.strip().lower(), answer.name))


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
