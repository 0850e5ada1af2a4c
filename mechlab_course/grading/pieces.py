"""What one statement of a notebook does to names: binds, changes and reads them, at once or when called."""

import ast
import importlib
import symtable
from collections.abc import Iterable
from dataclasses import dataclass

# Methods, and functions of modules, that change what they are called on, or given first.
_CHANGE = "append extend insert update add setdefault pop popitem popleft remove discard clear sort reverse "
_CHANGE += "appendleft extendleft rotate subtract intersection_update difference_update send setflags resize "
_CHANGE += "symmetric_difference_update setitem delitem iadd shuffle heappush heappop heapify heappushpop "
_CHANGE += "heapreplace insort insort_left insort_right copyto put fill fill_diagonal seed manual_seed write "
_CHANGE += "set_default_dtype register move_to_end __setattr__ __setitem__ __delitem__ __iadd__ __next__"
CHANGE = set(_CHANGE.split())
# Methods that change nothing.
_READ = "keys values items get copy count index join split format lower upper strip startswith endswith view "
_READ += (
    "replace mean sum item shape size numel float int long double bool abs max min argmax argmin softmax "
)
_READ += "log_softmax exp log sqrt clone detach cpu numpy tolist reshape flatten unsqueeze squeeze transpose "
_READ += "permute norm any all topk head tail describe plot show display render to round dim"
READ = set(_READ.split())
GIVEN = {"setattr", "delattr", "next"}  # functions that change what they are given first
BY_FUNCTION = {"list", "dict", "set", "object", "operator", "random", "heapq", "bisect", "np", "numpy"}
BY_FUNCTION |= {"init", "nn", "torch", "deque", "bytearray"}
# Modules whose star imports are spelt out; others may define anything.
STANDARD = {
    "math",
    "cmath",
    "itertools",
    "functools",
    "collections",
    "operator",
    "random",
    "statistics",
    "string",
}
STANDARD |= {
    "re",
    "typing",
    "dataclasses",
    "fractions",
    "decimal",
    "heapq",
    "bisect",
    "copy",
    "enum",
    "types",
}
ITERATORS = {"iter", "map", "filter", "zip", "enumerate", "reversed", "count", "cycle", "chain", "islice"}
_COMPREHENSIONS = {"listcomp", "setcomp", "dictcomp", "genexpr"}
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_SIMPLE = (*_DEFINITIONS, ast.Assign, ast.AnnAssign, ast.Import, ast.ImportFrom, ast.Delete)
Names = frozenset[str]


@dataclass(frozen=True)
class Piece:
    """A statement at the top level that another may need."""

    cell: int
    node: ast.stmt
    text: str
    names: Names = frozenset()  # what it binds, or deletes
    changes: Names = frozenset()  # what it changes, without binding it anew
    uses: Names = frozenset()  # what it reads when it runs
    late: Names = frozenset()  # what is read when a function of it is called
    late_changes: Names = frozenset()  # what such a call binds or changes
    calls: Names = frozenset()  # what it calls, by the first part of the name
    late_calls: Names = frozenset()
    touches: Names = frozenset()  # whose methods it calls, such as may change them
    passes: frozenset[tuple[str, str]] = frozenset()  # (function, name that it is given)
    alike: frozenset[Names] = frozenset()  # names that may stand for parts of one thing
    checks: Names = frozenset()  # what it gives to `check`
    opaque: bool = False  # waits for something, or asks for all loaded modules

    @property
    def sure(self) -> bool:
        """Whether it surely binds its names, whatever they were before."""
        return isinstance(self.node, _SIMPLE)

    @property
    def defines(self) -> bool:
        """Functions, classes and imports, which are taken along whatever they do."""
        return isinstance(self.node, (*_DEFINITIONS, ast.Import, ast.ImportFrom))


def piece_of(node: ast.stmt, text: str | None, cell: int, future: bool = False) -> Piece:
    """Read one statement; `text` is that of its cell, or None where the statement was made anew.

    future: annotations are not run, since the notebook says `from __future__ import annotations`.
    """
    code = ast.unparse(node) if text is None else text_of(node, text)
    read = _Reader()
    read.visit(node)
    uses, late = reads(f"from __future__ import annotations\n{code}" if future else code)
    return Piece(
        cell,
        node,
        code,
        frozenset(read.binds),
        frozenset(read.changes),
        uses | read.binds_again,
        late | read.late_globals,
        frozenset(read.late_changes),
        frozenset(read.calls),
        frozenset(read.late_calls & late),
        frozenset(read.touches),
        frozenset(read.passes),
        frozenset(read.alike),
        frozenset(read.checks),
        read.opaque,
    )


def reads(code: str) -> tuple[Names, Names]:
    """(names that this code reads when it runs, names that functions in it read when they are called)."""
    try:
        table = symtable.symtable(code, "answer", "exec")
    except (SyntaxError, ValueError, RecursionError):
        return frozenset(), frozenset()
    now = {s.get_name() for s in table.get_symbols() if s.is_referenced()}
    now.discard("annotations")
    late: set[str] = set()
    inner = [(child, False) for child in table.get_children()]
    while inner:
        table, called = inner.pop()
        if table.get_type() == "annotation":
            continue  # kept as text
        called |= table.get_type() == "function" and table.get_name() not in _COMPREHENSIONS
        found = {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
        (late if called else now).update(found)
        inner += [(child, called) for child in table.get_children()]
    return frozenset(now), frozenset(late)


def text_of(node: ast.stmt, text: str) -> str:
    """The statement as the learner wrote it, decorators included; rewritten only when it shares a line."""
    lines = text.split("\n")
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    rest = lines[node.end_lineno - 1].encode()[node.end_col_offset :].lstrip()[:1]
    alone = node.col_offset == 0 and rest in (b"", b"#")
    return "\n".join(lines[first - 1 : node.end_lineno]) if alone else ast.unparse(node)


def roots(node: ast.AST | None) -> set[str]:
    """The names of things that this expression may be, or be a part of."""
    if isinstance(node, ast.Name):
        return {node.id}
    if isinstance(node, (ast.BinOp, ast.UnaryOp, ast.Compare, ast.JoinedStr, ast.Constant, ast.Lambda)):
        return set()
    if isinstance(node, ast.Subscript):
        return roots(node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):  # what it gives, not the function
        return {name for part in (*node.args, *node.keywords) for name in roots(part)}
    parts = ast.iter_child_nodes(node) if node else []
    return {name for part in parts for name in roots(part)}


def callee(node: ast.expr) -> str:
    """The first part of the name of what is called; "" if it has no name."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return getattr(node, "id", "")


def _names_of(module: str | None, name: str) -> Iterable[str]:
    """What `from module import name` defines."""
    if name != "*":
        return (name,)
    if module == "mechlab_course":
        return ("check", "claim", "exercise", "predict", "progress_table", "quiz", "reveal")
    if module not in STANDARD:
        return ("*",)
    loaded = importlib.import_module(module)
    return getattr(loaded, "__all__", None) or [each for each in vars(loaded) if not each.startswith("_")]


class _Reader(ast.NodeVisitor):
    """Collects what a statement does, apart for what happens only when a function in it is called."""

    def __init__(self):
        self.binds, self.changes, self.calls, self.touches = set(), set(), set(), set()
        self.late_changes, self.late_calls, self.late_globals, self.binds_again = set(), set(), set(), set()
        self.passes, self.alike, self.checks = set(), set(), set()
        self.opaque, self._called, self._own = False, 0, 0  # in how many functions; in how many other scopes

    def _bind(self, *names: str | None) -> None:
        if not self._called and not self._own:
            self.binds |= {name for name in names if name}

    def _change(self, names: set[str]) -> None:
        (self.late_changes if self._called else self.changes).update(names)

    def _same(self, one: set[str], other: set[str]) -> None:
        if len(one | other) > 1 and not self._called:
            self.alike.add(frozenset(one | other))

    def _inside(self, *nodes: ast.AST, called: bool) -> None:
        self._called, self._own = self._called + called, self._own + (not called)
        for node in nodes:
            self.visit(node)
        self._called, self._own = self._called - called, self._own - (not called)

    def visit_FunctionDef(self, node) -> None:
        self._bind(node.name)
        for decorator in node.decorator_list:
            self._decorate(decorator)
        self.visit(node.args)
        self._inside(*node.body, called=True)

    visit_AsyncFunctionDef = visit_FunctionDef

    def _decorate(self, decorator: ast.expr) -> None:
        self.visit(decorator)
        (self.late_calls if self._called else self.calls).add(callee(decorator))
        self.touches |= set() if self._called else roots(decorator)

    def visit_Lambda(self, node) -> None:
        self.visit(node.args)
        self._inside(node.body, called=True)

    def visit_ClassDef(self, node) -> None:
        self._bind(node.name)
        for part in (*node.bases, *node.keywords):
            self.visit(part)
        for decorator in node.decorator_list:
            self._decorate(decorator)
        self._inside(*node.body, called=False)

    def visit_ListComp(self, node) -> None:
        for part in node.generators:
            self._same(roots(part.target), roots(part.iter))
        self._inside(*ast.iter_child_nodes(node), called=False)

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp

    def visit_Name(self, node) -> None:
        if not isinstance(node.ctx, ast.Load):
            self._bind(node.id)
            if isinstance(node.ctx, ast.Del):
                self.binds_again.add(node.id)

    def visit_Attribute(self, node) -> None:
        if not isinstance(node.ctx, ast.Load):
            self._change(roots(node.value))
        self.opaque |= not self._called and node.attr == "modules" and callee(node.value) == "sys"
        self.generic_visit(node)

    def visit_Subscript(self, node) -> None:
        if not isinstance(node.ctx, ast.Load):
            self._change(roots(node.value))
        self.generic_visit(node)

    def visit_NamedExpr(self, node) -> None:
        if not self._called:
            self.binds.add(node.target.id)  # of a comprehension's, too
        self._same({node.target.id}, roots(node.value))
        self.visit(node.value)

    def visit_Assign(self, node) -> None:
        self._same(set().union(*map(roots, node.targets)), roots(node.value))
        self.generic_visit(node)

    def visit_AnnAssign(self, node) -> None:
        self.visit(node.annotation)
        if node.value:
            self._same(roots(node.target), roots(node.value))
            self.visit(node.target)
            self.visit(node.value)

    def visit_AugAssign(self, node) -> None:
        if isinstance(node.target, ast.Name) and not self._called and not self._own:
            self.binds_again.add(node.target.id)
            self.changes.add(node.target.id)  # of a list, the list itself
        self.generic_visit(node)

    def visit_For(self, node) -> None:
        self._same(roots(node.target), roots(node.iter))
        self.generic_visit(node)

    def visit_withitem(self, node) -> None:
        if node.optional_vars:
            self._same(roots(node.optional_vars), roots(node.context_expr))
        self.generic_visit(node)

    def visit_Global(self, node) -> None:
        if self._called:
            self.late_changes |= {*node.names}
            self.late_globals |= {*node.names}

    def visit_Nonlocal(self, node) -> None:
        self.late_changes |= {*node.names}

    def visit_Import(self, node) -> None:
        self._bind(*((a.asname or a.name.partition(".")[0]) for a in node.names))

    def visit_ImportFrom(self, node) -> None:
        self._bind(*(name for a in node.names for name in _names_of(node.module, a.asname or a.name)))

    def visit_ExceptHandler(self, node) -> None:
        self._bind(node.name)
        self.generic_visit(node)

    def visit_MatchAs(self, node) -> None:
        self._bind(getattr(node, "name", None), getattr(node, "rest", None))
        self.generic_visit(node)

    visit_MatchStar = visit_MatchMapping = visit_MatchAs

    def visit_Await(self, node) -> None:
        self.opaque |= not self._called
        self.generic_visit(node)

    visit_Yield = visit_YieldFrom = visit_AsyncFor = visit_AsyncWith = visit_Await

    def visit_Call(self, node) -> None:
        name, first = callee(node.func), getattr(node.func, "attr", getattr(node.func, "id", ""))
        (self.late_calls if self._called else self.calls).add(name)
        given = [roots(each) for each in (*node.args, *(k.value for k in node.keywords))]
        changes = first in CHANGE or (first.endswith("_") and not first.startswith("_"))
        if isinstance(node.func, ast.Attribute):
            owner = roots(node.func.value)
            if isinstance(node.func.value, ast.Call):
                owner -= BY_FUNCTION  # torch.Generator().manual_seed(0): the generator, not torch
            if changes:
                self._change(owner)
                self._same(owner, set().union(*given))
            elif first not in READ and not self._called:
                self.touches |= owner
        bare = isinstance(node.func, ast.Name)
        if given and (first in GIVEN or (changes and (bare or name in BY_FUNCTION))):
            self._change(given[0])
        for keyword in node.keywords:
            self._change(roots(keyword.value) if keyword.arg == "out" else set())
        if not self._called:
            self.passes |= {(name, each) for names in given for each in names}
            if first == "check" and node.args + node.keywords:
                self.checks |= roots(node.args[0] if node.args else node.keywords[0].value)
        self.generic_visit(node)
