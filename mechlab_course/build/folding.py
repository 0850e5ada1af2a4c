"""What would give a prediction away is folded: claims and asserts, in cells of their own.

A cell of a source may measure, `reveal` and `claim`; the notebooks have up to three cells for it.
"""

import ast
from itertools import combinations, pairwise

from mechlab_course.build.sources import Cell, SourceError

FOLDED = {  # VS Code has no flag: its reader of notebooks folds nothing (docs/contributing.md)
    "jupyter": {"source_hidden": True},  # JupyterLab, Notebook 7
    "cellView": "form",  # Colab
    "_kg_hide-input": True,  # Kaggle
    "tags": ["hide-input"],  # Jupyter Book
}
TITLE = "# @title Numbers of the text, checked"  # the line that is left to see; Colab wants the @title


def parts(cell: Cell) -> list[Cell]:
    """What a cell measures, what it reveals, what it checks: a cell each.

    The asserts of a cell that claims and reveals nothing stay with what they check. Raises `SourceError` if a
    statement would find other values in its new place.
    """
    if cell.type != "code" or cell.kind not in ("", "compare", "assert"):
        return [cell]
    body = ast.parse(cell.source).body
    roles, order = [_role(node) for node in body], ("", "reveal", "assert")
    if cell.kind == "assert":  # its helpers are folded with it
        roles, order = [role if role == "reveal" else "assert" for role in roles], ("reveal", "assert")
    elif not {"claim", "reveal"} & set(roles):
        return [cell]
    roles = ["assert" if role == "claim" else role for role in roles]
    if len(set(roles)) == 1:
        return [cell]
    groups = {role: [n for n, each in enumerate(roles) if each == role] for role in order}
    _check_order(body, [n for group in groups.values() for n in group])
    meta = lambda role: {"kind": role} if role else cell.meta
    return [Cell("code", _lines(cell, body, group), meta(role)) for role, group in groups.items() if group]


def _role(node: ast.stmt) -> str:
    """ "claim", "assert" or "reveal" for a statement that does nothing else, else ""."""
    if isinstance(node, ast.Assert):
        return "assert"
    if isinstance(node, ast.For) and not node.orelse:
        inner = {_role(each) for each in node.body}
        return "claim" if "claim" in inner and inner <= {"claim", "assert"} else ""
    name = getattr(getattr(getattr(node, "value", None), "func", None), "id", "")
    return name if isinstance(node, ast.Expr) and name in ("claim", "reveal") else ""


def _check_order(body: list[ast.stmt], order: list[int]) -> None:
    """No two statements that exchange places may set or use the same name."""
    bound = [_names(node, ast.Store) for node in body]
    used = [bound[n] | _names(node, ast.Load) for n, node in enumerate(body)]
    for after, before in combinations(order, 2):
        if after > before and (clash := bound[after] & used[before] | bound[before] & used[after]):
            said = ast.unparse(body[before]).partition("\n")[0][:60]
            raise SourceError(f"`{said}` cannot move: {sorted(clash)} is set on its way. Write it last.")


def _names(node: ast.stmt, context: type) -> set[str]:
    """Names that a statement sets or reads; those inside a comprehension are its own."""
    inner = {
        name.id
        for each in ast.walk(node)
        if isinstance(each, ast.comprehension)
        for name in ast.walk(each.target)
        if isinstance(name, ast.Name)
    }
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, context)} - inner
    if context is ast.Store:
        names |= {n.name for n in ast.walk(node) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        names |= {(n.asname or n.name).partition(".")[0] for n in ast.walk(node) if isinstance(n, ast.alias)}
    return names


def _lines(cell: Cell, body: list[ast.stmt], chosen: list[int]) -> str:
    """These statements as they are written, each with the comments above it."""
    lines = cell.source.splitlines()
    ends = [0, *(node.end_lineno or 0 for node in body[:-1]), len(lines)]
    written = ["\n".join(lines[a:b]) for a, b in pairwise(ends)]
    return "\n".join(written[n] for n in chosen).strip("\n")
