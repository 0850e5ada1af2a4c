"""Cells of a notebook: run one as a notebook would, tell without running anything what it builds upon, put two together."""

import ast
import symtable

from mechlab_course.grading.slices import free_names


def shown(code: str, session: dict):
    """Run a cell; returns what its last line gives, as a notebook would show it."""
    tree = ast.parse(code)
    last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), session)
    return eval(compile(last, "<cell>", "eval"), session) if last else None


def names(code: str) -> tuple[set[str], set[str]]:
    """(names that a cell binds, names that it reads, from other cells or from itself)."""
    symbols = symtable.symtable(code, "cell", "exec").get_symbols()
    return {each.get_name() for each in symbols if each.is_assigned() or each.is_imported()}, free_names(code)


def needed(cells: list[str | None], target: int) -> list[int]:
    """Numbers of the cells that one cell builds upon, itself last; `None` stands for a cell that is not code."""
    chosen, wanted = {target}, set()
    for number in range(target, -1, -1):
        bound, used = names(cells[number] or "")
        if number == target or bound & wanted:
            chosen.add(number)
            wanted |= used
    return sorted(chosen)


def unsolved_and_solved(learner: dict, solved: dict) -> dict:
    """A learner's notebook and its solution in one session: every cell of both, in order, what is the same once.

    Each unsolved exercise is checked before the solution takes its place. Only solutions must be correct: that is what
    `MECHLAB_STRICT` says. Raises a `ValueError` when the two are not of one source.
    """
    merged = []
    for number, (mine, theirs) in enumerate(zip(learner["cells"], solved["cells"], strict=True)):
        if mine["source"] != theirs["source"]:
            if _kind(mine) not in ("exercise", "quiz", "predict"):
                raise ValueError(f"cell {number} is no answer, and differs")
            merged += [_strict(0, number), mine | {"id": f"unsolved-{number}"}]
            if _kind(mine) == "exercise":
                check = next(c for c in learner["cells"][number:] if _kind(c) == "check")
                merged.append(check | {"id": f"check-{number}"})
            merged.append(_strict(1, number))
        merged.append(theirs)
    return solved | {"cells": merged}


def _kind(cell: dict) -> str:
    return cell["metadata"].get("mechlab", {}).get("kind", "")


def _strict(on: int, number: int) -> dict:
    source = f'import os\n\nos.environ["MECHLAB_STRICT"] = "{on}"'
    return {"cell_type": "code", "execution_count": None, "id": f"strict-{number}-{on}", "metadata": {}, "outputs": [], "source": source}  # fmt: skip
