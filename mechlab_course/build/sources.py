"""Read a notebook's one source, `course/NN_name/notebook.py`: jupytext percent format, with kinds of cells.

Kinds, written in the percent line (`# %% kind="exercise" id="12.1"`): none (plain), setup, exercise, check,
wrong, hidden, predict, reveal, quiz, assert, compare, gpu. `folded="a title"` folds a cell that would answer
what has just been asked. The build makes notebooks from this, the tests run it.
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from mechlab_course.cells import answered_by

KINDS = {"", "setup", "exercise", "check", "wrong", "hidden", "predict", "reveal", "quiz", "assert"}
KINDS |= {"compare", "gpu"}
STUB = "raise NotImplementedError  # your code here"
_REGION = re.compile(r"^([ \t]*)# >>> solution\n(.*?)^[ \t]*# <<< solution\n?", re.DOTALL | re.MULTILINE)
_ANSWER = re.compile(r"^((?:\w+ = )?(?:quiz|predict)\(\"[^\"]+\", )(.+)\)$", re.MULTILINE)


class SourceError(ValueError):
    """A notebook source breaks a rule of the course. The message names file, cell and rule."""


@dataclass(frozen=True)
class Cell:
    """One cell of a source. `meta` is what stands in its percent line."""

    type: str  # "code" or "markdown"
    source: str
    meta: dict = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.meta.get("kind", "")

    def solved(self) -> str:
        """The cell with the solution in it, the markers taken out."""
        return _REGION.sub(lambda m: m[2], self.source + "\n").rstrip("\n")

    def stub(self) -> str:
        """The cell as learners get it: solution regions and answers taken out."""
        if self.kind in ("quiz", "predict"):
            return _ANSWER.sub(r"\1...)", self.source)
        return _REGION.sub(lambda m: f"{m[1]}{STUB}\n", self.source + "\n").rstrip("\n")


def read(path: Path) -> list[Cell]:
    """Cells of a source file, checked; hint 3 of an exercise is made. Raises `SourceError`."""
    import jupytext

    notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
    cells = [Cell(c.cell_type, c.source, dict(c.metadata)) for c in notebook.cells]
    for number, cell in enumerate(cells):
        try:
            _check(cell)
        except (SourceError, SyntaxError) as error:
            raise SourceError(f"{path.parent.name}, cell {number}: {error}") from None
    ids = [c.meta["id"] for c in cells if c.kind == "exercise"]
    repeated = {id for id in ids if ids.count(id) > 1}
    if repeated:
        raise SourceError(f"{path.parent.name}: exercise ids used twice: {sorted(repeated)}")
    for _, cell, check, _ in exercises(cells):
        below = cells.index(check) + 1
        hints = cells[below].source if below < len(cells) else ""
        if "<summary>Hint 1" in hints and "<summary>Hint 3" not in hints:
            last, end, rest = hints[hints.rindex("<summary>Hint") :].partition("</details>")
            before = hints.removesuffix(last + end + rest)  # what follows the hints is about the answer
            worked = f"{before}{last}{end}\n{worked_answer(cell)}{rest}"
            cells[below] = replace(cells[below], source=worked)
    return cells


def worked_answer(cell: Cell) -> str:
    """Hint 3: the solution of an exercise cell, folded."""
    solution = textwrap.dedent(_REGION.search(cell.source + "\n")[2]).rstrip("\n")
    return f"<details><summary>Hint 3: the answer</summary>\n\n```python\n{solution}\n```\n\n</details>"


def exercises(cells: list[Cell]) -> Iterator[tuple[str, Cell, Cell, list[Cell]]]:
    """(id, exercise cell, its check cell, its wrong variants) for each exercise."""
    for cell in cells:
        if cell.kind == "exercise":
            id = cell.meta["id"]
            name = function_name(cell.solved())
            check = next((c for c in cells if c.kind == "check" and f"check({name}" in c.source), None)
            if check is None:
                raise SourceError(f"exercise {id}: no check cell calls check({name}).")
            yield id, cell, check, [c for c in cells if c.kind == "wrong" and c.meta.get("id") == id]


def function_name(code: str) -> str:
    """The name of the one function marked with @exercise."""
    ((_, function),) = _marked(code)
    return function.name


def _marked(code: str) -> list[tuple[str, ast.FunctionDef]]:
    """(id, function) of each function marked with @exercise, at the top level."""
    found = [each for node in ast.parse(code).body for each in answered_by(node)]
    return [(each.id, each.node) for each in found if isinstance(each.node, ast.FunctionDef)]


def _check(cell: Cell) -> None:
    if cell.kind not in KINDS:
        raise SourceError(f'unknown kind "{cell.kind}"')
    if cell.kind in ("exercise", "wrong") and "id" not in cell.meta:
        raise SourceError(f'a cell of kind "{cell.kind}" needs an id')
    if cell.kind == "wrong" and not cell.meta.get("expects"):
        raise SourceError("a wrong variant needs expects=, a piece of the message it must earn")
    if cell.kind in ("quiz", "predict") and cell.stub() == cell.source:
        raise SourceError(f'a {cell.kind} cell needs a line like {cell.kind}("01.a", answer)')
    if cell.kind == "exercise":
        _check_exercise(cell)
    elif "# >>> solution" in cell.source:
        raise SourceError("a solution region outside an exercise cell")


def _check_exercise(cell: Cell) -> None:
    """The two versions may differ inside the body of the one marked function and nowhere else."""
    if len(_REGION.findall(cell.source + "\n")) != 1:
        raise SourceError("an exercise needs exactly one region # >>> solution ... # <<< solution")
    bare = []
    for code in (cell.solved(), cell.stub()):
        tree = ast.parse(code)
        marked = _marked(code)
        if len(marked) != 1:
            raise SourceError("an exercise cell needs exactly one function marked with @exercise")
        ((id, function),) = marked
        if id != cell.meta["id"]:
            raise SourceError(f'the header says id="{cell.meta["id"]}", the decorator "{id}"')
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name == function.name:
                documented = ast.get_docstring(node) is not None
                if not documented:
                    raise SourceError(f"{node.name} needs a docstring: it is the task")
                node.body = node.body[:1]
        bare.append(ast.dump(tree))
    if bare[0] != bare[1]:
        raise SourceError("solution and stub differ outside the function's body")
