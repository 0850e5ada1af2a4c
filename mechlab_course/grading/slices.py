"""What an answer needs of the rest of its notebook.

Imports, functions, classes and simple values of the top level; what runs a model or draws stays behind.
"""

import ast
import builtins
import symtable
from dataclasses import dataclass

from mechlab_course.cells import answered_by

PROVIDED = {"torch", "Float", "Int", "Tensor", "ml", "model", "sys", "__name__"}
PROVIDED |= {"check", "claim", "exercise", "predict", "quiz", "reveal"}  # what the setup cell defines
QUICK = {
    "torch",
    "math",
    "np",
    "numpy",
    "re",
    "functools",
    "itertools",
    "collections",
    "dataclasses",
    "einops",
}
QUICK |= {
    "range",
    "dict",
    "list",
    "set",
    "frozenset",
    "tuple",
    "float",
    "int",
    "str",
    "len",
    "sorted",
    "cache",
}
_RUN = (
    "Your answer uses `{}`, which code cell {} makes by running something. Other cells are not run here: "
    "an answer gets all it needs as arguments, or defines it as a plain value."
)


@dataclass(frozen=True)
class Piece:
    """A statement at the top level that another may need."""

    cell: int
    names: tuple[str, ...]
    text: str
    uses: frozenset[str]
    left_out: bool = False  # an assignment that runs something: known, and not taken


def piece_of(node: ast.stmt, text: str, cell: int) -> Piece | None:
    """What this statement defines, if it is of a kind that may be taken along."""
    left_out = False
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        names = [node.name]
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        names = [(a.asname or a.name.partition(".")[0]) for a in node.names]
    elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        flat = [t for target in targets for t in getattr(target, "elts", [target])]
        if not all(isinstance(t, ast.Name) for t in flat):
            return None
        names, left_out = [t.id for t in flat], not (_is_quick(node.value) or _is_exercise(node))
    else:
        return None
    code = _text(node, text)
    return Piece(cell, tuple(names), code, frozenset(free_names(code)), left_out)


def _is_exercise(node: ast.stmt) -> bool:
    return any(found.kind == "exercise" for found in answered_by(node))


def _is_quick(node: ast.expr) -> bool:
    """A value that costs nothing to make: literals, names, arithmetic, `torch.tensor`; no run of a model."""
    if isinstance(node, ast.Lambda):
        return True
    if isinstance(node, ast.Call):
        root = node.func
        while isinstance(root, (ast.Attribute, ast.Call)):
            root = root.func if isinstance(root, ast.Call) else root.value
        if not isinstance(root, ast.Name) or root.id not in QUICK:
            return False
    elif isinstance(node, (ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)):
        return False
    return all(
        _is_quick(child)
        for child in ast.iter_child_nodes(node)
        if isinstance(child, (ast.expr, ast.keyword, ast.comprehension))
    )


def _text(node: ast.stmt, text: str) -> str:
    """The statement as the learner wrote it, decorators included; rewritten only when it shares a line."""
    lines = text.split("\n")
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    alone = node.col_offset == 0 and lines[node.end_lineno - 1].encode()[node.end_col_offset :].lstrip()[
        :1
    ] in (b"", b"#")
    return "\n".join(lines[first - 1 : node.end_lineno]) if alone else ast.unparse(node)


def free_names(code: str) -> set[str]:
    """The names this code reads, from around it or from itself; none if it is not Python."""
    try:
        table = symtable.symtable(code, "answer", "exec")
    except (SyntaxError, ValueError, RecursionError):
        return set()
    wanted = {s.get_name() for s in table.get_symbols() if s.is_referenced()}
    inner = list(table.get_children())
    while inner:
        table = inner.pop()
        wanted |= {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
        inner += table.get_children()
    return wanted


def slice_for(name: str, at: int, pieces: list[Piece]) -> tuple[str, tuple[str, ...]]:
    """The code of piece `at`, which defines `name`, with the pieces it needs, in the notebook's order; and
    what is missing.

    Of several definitions of a name the nearest before the answer counts, as when the notebook runs from the
    top.
    """
    chosen = {n for n, p in enumerate(pieces) if "*" in p.names}
    seen, missing = {name}, {}
    todo = [at]
    chosen.add(at)
    while todo:
        for wanted in pieces[todo.pop()].uses - seen:
            seen.add(wanted)
            places = [n for n, p in enumerate(pieces) if wanted in p.names]
            if not places:
                if (
                    wanted not in PROVIDED
                    and not hasattr(builtins, wanted)
                    and not chosen - {at} & _stars(pieces)
                ):
                    missing[wanted] = f"Your answer uses `{wanted}`, which the notebook does not define."
                continue
            nearest = max([n for n in places if n <= at], default=min(places))
            if pieces[nearest].left_out:
                if wanted not in PROVIDED:
                    missing[wanted] = _RUN.format(wanted, pieces[nearest].cell)
            elif nearest not in chosen:
                chosen.add(nearest)
                todo.append(nearest)
    code = "\n\n".join(pieces[n].text for n in sorted(chosen)) + "\n"
    return code, tuple(missing[name] for name in sorted(missing))


def _stars(pieces: list[Piece]) -> set[int]:
    return {n for n, p in enumerate(pieces) if "*" in p.names}
