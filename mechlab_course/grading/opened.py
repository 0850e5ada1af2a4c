"""Which files below data/ a notebook opens: read from its code, its checks, and the functions they name.

`data_dir()` is the one door to the data. What is joined to it is followed as far as it is written out:
`data_dir() / "probing" / name` may open anything below `probing`. A function of the library is known by its
name alone, so that this is rather too much than too little.
"""

import ast
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from mechlab_course.cells import UNREADABLE, parsed
from mechlab_course.folders import ROOT

ALWAYS = (
    "README.md",
    "reference/paper.csv",
    "reference/smollm2.csv",
)  # licences, and how `data_dir` knows it
_NAMED = re.compile(r"\bdata/([\w./-]*\w)")  # in text, a docstring, or a message


def needed(texts: Iterable[str], files: Iterable[str]) -> list[str]:
    """Which of these files, named from data/, the cells of notebooks and the modules `texts` may open."""
    asked = set(ALWAYS).union(*map(_opened, texts))
    return [file for file in files if any(file == place or file.startswith(place) for place in asked)]


def _opened(text: str) -> set[str]:
    """Files, and folders with a slash at the end, that a cell or a module opens or speaks of."""
    found = set(_NAMED.findall(text))
    try:
        _, tree = parsed(text)
    except UNREADABLE:  # a cell of text
        return found
    functions = _library()
    return found.union(_places(tree), *(functions.get(name, ()) for name in _names(tree)))


@cache
def _library() -> dict[str, frozenset[str]]:
    """What each function of the library opens, itself or by others that it names."""
    opens: dict[str, set[str]] = {}
    names: dict[str, set[str]] = {}
    for path in (ROOT / "mechlab").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name != "data_dir":
                opens.setdefault(node.name, set()).update(_places(node))
                names.setdefault(node.name, set()).update(_names(node))
    opening = {name for name, places in opens.items() if places}
    while opening:  # those that name one that opens, until there is no new one
        before = {name: len(places) for name, places in opens.items()}
        for name, named in names.items():
            opens[name].update(*(opens[each] for each in named & opening))
        opening = {name for name, places in opens.items() if len(places) > before[name]}
    return {name: frozenset(places) for name, places in opens.items() if places}


def _names(tree: ast.AST) -> set[str]:
    """Names that are read in this code, and attributes of anything."""
    nodes = list(ast.walk(tree))
    return {node.id for node in nodes if isinstance(node, ast.Name)} | {
        node.attr for node in nodes if isinstance(node, ast.Attribute)
    }


def _places(tree: ast.AST) -> set[str]:
    """What is joined to `data_dir()` here; a place that is kept in a variable is open as a whole."""
    inner = {id(node.left) for node in ast.walk(tree) if isinstance(node, ast.BinOp)}
    joined = [_joined(node) for node in ast.walk(tree) if id(node) not in inner]
    return {place for place in joined if place is not None}


def _joined(node: ast.AST) -> str | None:
    """The place below data/ of `data_dir() / "a" / "b.csv"`; None of anything else."""
    parts: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        parts.insert(0, node.right)
        node = node.left
    called = node.func if isinstance(node, ast.Call) else None
    if getattr(called, "attr", getattr(called, "id", "")) != "data_dir":
        return None
    place = ""
    for part in parts:
        if not (isinstance(part, ast.Constant) and isinstance(part.value, str)):
            break
        place += f"{part.value}/"
    return place if Path(place).suffix == "" else place.rstrip("/")
