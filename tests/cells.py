"""Cells of a notebook: run one as a notebook would, and tell without running anything what it builds upon."""

import ast
import symtable

from mechlab.grading.slices import free_names


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
