"""Who imports whom, read from the code without importing anything: for the rules of the house, and for `make check`."""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("mechlab", "mechlab_course", "tests")


@dataclass(frozen=True)
class Import:
    """One import of a module of the house, and where it stands."""

    module: str
    line: int
    inside: bool = False  # of a function: it happens when the function is called
    for_types: bool = False  # under `if TYPE_CHECKING`: it never happens


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Each module of the house by its dotted name; a package is its `__init__.py`."""
    found = {}
    for path in (path for package in PACKAGES for path in (root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return dict(sorted(found.items()))


def imports(path: Path, known: Iterable[str]) -> list[Import]:
    """What a file imports of the house, at the top and inside functions; `known` are the house's modules."""
    return sorted(
        set(_imports(ast.parse(path.read_text(encoding="utf-8")), set(known))), key=lambda i: i.line
    )


def _imports(
    node: ast.AST, known: set[str], inside: bool = False, for_types: bool = False
) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            for name in _named(child):
                if module := _nearest(name, known):
                    yield Import(module, child.lineno, inside, for_types)
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            yield from _imports(child, known, inside, True)
        else:
            function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _imports(child, known, inside or function, for_types)


def _named(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [each.name for each in node.names]
    return [f"{node.module}.{each.name}" for each in node.names]


def _nearest(name: str, known: set[str]) -> str:
    """The module that a dotted name lies in: `mechlab.metrics` for `mechlab.metrics.recovered`; "" if not ours."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name


def circles(arrows: dict[str, set[str]]) -> list[set[str]]:
    """Sets of two or more that reach one another along the arrows."""
    reach = {start: _reached(start, arrows) for start in arrows}
    found: list[set[str]] = []
    for start in arrows:
        circle = {each for each in reach[start] if start in reach.get(each, ())}
        if len(circle) > 1 and circle not in found:
            found.append(circle)
    return found


def _reached(start: str, arrows: dict[str, set[str]]) -> set[str]:
    found, todo = set(), [start]
    while todo:
        for each in arrows.get(todo.pop(), set()) - found:
            found.add(each)
            todo.append(each)
    return found
