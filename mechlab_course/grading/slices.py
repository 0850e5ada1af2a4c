"""What an answer needs of the rest of its notebook, when that is run from the top.

Every statement of the top level that makes or changes what the answer uses is taken along, in order:
imports, functions, classes, values, loops. What runs a model, or calls what is not known here, stays behind
and is told.
"""

import ast
import builtins
import copy
import importlib.util
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator

from mechlab_course.grading.pieces import ITERATORS, Names, Piece, callee, piece_of, reads

PROVIDED = {"torch", "Float", "Int", "Tensor", "ml", "model", "sys", "__name__"}
PROVIDED |= {"check", "claim", "exercise", "predict", "progress_table", "quiz", "reveal"}  # by the setup cell
_CALLABLE = {"torch", "Float", "Int", "Tensor", "sys", "exercise"}  # of those what costs nothing to call
_MODULES = (
    "torch math numpy re functools itertools collections dataclasses einops jaxtyping typing enum types "
)
_MODULES += (
    "operator string statistics fractions decimal heapq bisect copy random cmath numbers textwrap json "
)
_MODULES += "abc contextlib warnings __future__ typing_extensions"
CHEAP = set(_MODULES.split())
_NOT_CALLED = {"open", "exec", "eval", "compile", "input", "__import__", "breakpoint", "exit", "quit", "help"}
_NOT_CALLED |= {"globals", "locals", "vars", "print", "memoryview"}
_HIDDEN = {"exec", "eval", "globals", "locals", "vars"}
_RUN = (
    "Your answer uses `{}`, which code cell {} {} by running something. Other cells are not run here: "
    "an answer gets all it needs as arguments, or defines it as a plain value."
)
_SETUP = "model = ml.load("


def free_names(code: str) -> set[str]:
    """The names this code reads, from around it or from itself; none if it is not Python."""
    return set().union(*reads(code))


class Notebook:
    """The statements of a notebook, and what each does to the others' names."""

    def __init__(self, pieces: Iterable[Piece]):
        self.pieces = list(pieces)
        self._binders: dict[str, list[Piece]] = defaultdict(list)
        for piece in self.pieces:
            for name in piece.names:
                self._binders[name].append(piece)
        self._heavy = self._heavy_names()
        self._alike, self._perhaps_alike = self._groups(wide=False), self._groups(wide=True)

    def divided(self) -> "Notebook":
        """The same with what cannot be run taken out of `if`, `for`, `try` and `with`."""
        return Notebook(part for piece in self.pieces for part in self._parts(piece))

    def is_heavy(self, piece: Piece) -> bool:
        """Whether it runs something that is not run here."""
        if piece.defines:
            return isinstance(piece.node, ast.ImportFrom) and "*" in piece.names and not _is_here(piece.node)
        return piece.opaque or bool(piece.calls & self._heavy_among(piece.calls))

    def _parts(self, piece: Piece) -> Iterator[Piece]:
        inner = isinstance(piece.node, (ast.If, ast.For, ast.While, ast.Try, ast.With, ast.Match))
        if not inner or not self.is_heavy(piece):
            yield piece
            return
        node, taken_out = copy.deepcopy(piece.node), []
        again = lambda part: piece_of(part, None, piece.cell)
        _TakeOut(lambda part: self.is_heavy(again(part)), taken_out).visit(node)
        rest = again(node)
        if not self.is_heavy(rest):
            yield from map(again, taken_out)
            yield rest
        elif isinstance(node, ast.With) or _holds_definition(node):
            yield from map(again, taken_out)
            for part in (*node.body, *getattr(node, "orelse", [])):
                yield from self._parts(again(part))
        else:
            yield piece

    def _heavy_among(self, names: Names) -> set[str]:
        """Of names that are called, those that cost something, or are not known."""
        found = names & self._heavy
        for name in names - found - _CALLABLE:
            unknown = name and name not in self._binders and not self._has_star()
            if name in PROVIDED or (unknown and (name in _NOT_CALLED or not hasattr(builtins, name))):
                found |= {name}
        return set(found)

    def _heavy_names(self) -> set[str]:
        """Names bound in the notebook that cost something to call: from what is unknown, up the callers."""
        self._heavy, grown = set(), True
        while grown:
            grown = False
            for name, binders in self._binders.items():
                if name not in self._heavy and name not in _CALLABLE and any(map(self._costs, binders)):
                    self._heavy.add(name)
                    grown = True
        return self._heavy

    def _costs(self, piece: Piece) -> bool:
        """Whether what it binds costs something to call."""
        if _imports(piece):
            module = getattr(piece.node, "module", None) or piece.node.names[0].name
            return module.partition(".")[0] not in CHEAP
        value = getattr(piece.node, "value", None)  # a method of the model under another name
        called = piece.calls | piece.late_calls | ({callee(value)} if value else set())
        return piece.opaque or bool(self._heavy_among(called))

    def _has_star(self) -> bool:
        return "*" in self._binders

    def _groups(self, wide: bool) -> dict[str, set[str]]:
        """For each name the names that may be the same thing, or parts of it.

        wide: also what a function gives that is called, which may be anything that it knows or was given.
        """
        groups: dict[str, set[str]] = {}
        for piece in self.pieces:
            alike = [*piece.alike]
            if wide and not piece.defines and (called := piece.calls & self._binders.keys() - PROVIDED):
                given = {name for _, name in piece.passes}
                alike.append(piece.names | given | called | self.late(called) | frozenset().union(*alike))
            for names in alike:
                values = {n for n in names if not all(map(_imports, self._binders.get(n, ())))}
                joined = values.union(*(groups.get(name, ()) for name in values))
                groups |= dict.fromkeys(joined, joined)
        return groups

    def behind(self, names: Iterable[str]) -> list[Piece]:
        """All that makes these names, and what functions among it call."""
        seen, todo, found = set(), [*names], {}
        while todo:
            for piece in self._binders.get(todo.pop(), ()):
                if id(piece) not in found:
                    found[id(piece)] = piece
                    todo += (piece.late | piece.uses) - seen
                    seen |= piece.late | piece.uses
        return list(found.values())

    def late(self, names: Iterable[str]) -> set[str]:
        """What may be read when these names are called."""
        return {name for piece in self.behind(names) for name in piece.late}

    def changed(self, piece: Piece) -> tuple[set[str], set[str]]:
        """(names whose values this statement changes, names whose values it may change)."""
        behind = self.behind(piece.calls)
        surely = piece.changes | self.by_calls(piece)
        given = {name for function, name in piece.passes if self._may_change(function)}
        perhaps = piece.touches | given | {name for name in piece.uses if self._is_used_up(name)}
        for each in behind:
            if each.late_changes - each.late:  # of something under a name of its own
                perhaps |= each.late | piece.calls
        imported = set(filter(self.is_imported, perhaps))
        return _with(self._alike, surely), _with(self._perhaps_alike, (surely | perhaps) - imported)

    def _is_used_up(self, name: str) -> bool:
        """Whether it is something that is no longer the same when it has been looked through."""
        values = [getattr(piece.node, "value", None) for piece in self._binders.get(name, ())]
        made = [callee(value.func) for value in values if isinstance(value, ast.Call)]
        return bool(ITERATORS & {*made}) or any(isinstance(value, ast.GeneratorExp) for value in values)

    def is_imported(self, name: str) -> bool:
        """Whether a name is a module's, or the setup cell's; nothing of the notebook makes it."""
        return name in PROVIDED or all(map(_imports, self._binders.get(name, ())))

    def by_calls(self, piece: Piece) -> set[str]:
        """Names of the notebook that functions bind or change which are called here."""
        return {name for each in self.behind(piece.calls) for name in each.late_changes & each.late}

    def _may_change(self, function: str) -> bool:
        """Whether a function may change what it is given."""
        if function not in self._binders:
            return False
        return any(piece.late_changes for piece in self.behind([function]))


class _TakeOut(ast.NodeTransformer):
    """Puts `pass` in place of statements that are heavy, those inside others first."""

    def __init__(self, is_heavy, taken_out: list[ast.stmt]):
        self._is_heavy, self._taken_out, self._depth = is_heavy, taken_out, 0

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.expr):
            return node
        self._depth += 1
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            self.generic_visit(node)
        self._depth -= 1
        if self._depth and isinstance(node, ast.stmt) and self._is_heavy(node):
            self._taken_out.append(node)
            return ast.copy_location(ast.Pass(), node)
        return node


def _holds_definition(node: ast.stmt) -> bool:
    return any(isinstance(part, (ast.FunctionDef, ast.Lambda)) for part in ast.walk(node))


def _is_here(node: ast.ImportFrom) -> bool:
    """Whether the module of a star import can be found, without importing it."""
    name = (node.module or "").partition(".")[0]
    if node.level or not name:
        return False
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def slice_for(name: str, at: int, book: Notebook, until: int | None = None) -> tuple[str, tuple[str, ...]]:
    """The code of piece `at`, which defines `name`, with what it needs at piece `until`; and what is missing.

    until: the number of the piece that calls the answer; by default it is called when all has been run.
    """
    chosen, wanted, left = _needed(name, at, book, len(book.pieces) if until is None else until)
    kept, tried, have, read = [], set(), set(PROVIDED), book.pieces[at].late | book.late(book.pieces[at].late)
    star = any("*" in book.pieces[n].names for n in chosen)
    for n in sorted(chosen, key=lambda n: (not _is_future(book.pieces[n]), n)):
        piece = book.pieces[n]
        if n != at and not star and _lacking(piece, have, book):
            changed = {each for each in book.changed(piece)[0] & wanted if not book.is_imported(each)}
            left |= _left_out(piece, piece.names & wanted, changed)
            continue
        have |= piece.names | book.by_calls(piece)
        read |= piece.uses
        tried |= piece.uses if isinstance(piece.node, ast.Try) else set()
        kept.append(piece.text)
    left = {each: said for each, said in left.items() if each in read | _HIDDEN | {"*"}}
    for each in read - tried - have - left.keys() - {name} if not star else ():
        if not hasattr(builtins, each):
            left[each] = f"Your answer uses `{each}`, which the notebook does not define."
    return "\n\n".join(kept) + "\n", tuple(left[each] for each in sorted(left))


def _needed(name: str, at: int, book: Notebook, until: int) -> tuple[set[int], set[str], dict[str, str]]:
    """(numbers of the pieces, all names they want, sentences about what is left out), from the end up."""
    pieces, answer = book.pieces, book.pieces[at]
    wanted = (answer.late | book.late(answer.late | answer.uses)) - {name}
    chosen, left, ever = {at}, {}, set(wanted)
    for n in range(max(until, at + 1) - 1, -1, -1):
        piece = pieces[n]
        if n == at:
            wanted = (wanted - piece.names) | piece.uses | book.late(piece.uses)
            ever |= wanted - {name}
            continue
        bound = piece.names - ({name} if n > at else set())
        surely, perhaps = book.changed(piece)
        targets = wanted | ({name} if n > at else set())
        if piece.calls & _HIDDEN and not piece.defines:
            hidden = sorted(piece.calls & _HIDDEN)[0]
            left[hidden] = f"Code cell {piece.cell} calls `{hidden}`: what that defines is not followed here."
        general = "*" in piece.names or _is_future(piece)
        hit = bound & wanted
        if not (hit or general or (surely | perhaps) & targets):
            continue
        if book.is_heavy(piece):
            changed = {each for each in surely & targets if not book.is_imported(each)}
            left |= _left_out(piece, hit, changed) if not general else _star(piece)
        else:
            chosen.add(n)
        if piece.sure and not piece.names & piece.uses:
            wanted = wanted - hit
        if n in chosen:
            more = piece.uses | book.late(piece.uses)
            wanted, ever = wanted | more, ever | more
    return chosen, ever - {name}, left


def _left_out(piece: Piece, made: Names, changed: set[str]) -> dict[str, str]:
    """A sentence for each name that is made or changed by what is not run here."""
    if piece.text.startswith(_SETUP):
        return {}
    told = {each: _RUN.format(each, piece.cell, "changes") for each in changed}
    return told | {each: _RUN.format(each, piece.cell, "makes") for each in made}


def _star(piece: Piece) -> dict[str, str]:
    said = f"Code cell {piece.cell} has `{piece.text.strip()[:80]}`, and no such file was handed in."
    return {"*": said}


def _lacking(piece: Piece, have: set[str], book: Notebook) -> set[str]:
    """What a statement would stop at, if it ran: names that nothing before it has made."""
    if isinstance(piece.node, ast.Try):
        return set()  # it says itself what to do then
    needed = piece.uses | book.late(piece.calls)
    own = book.by_calls(piece) | (set() if piece.sure else piece.names)
    return {each for each in needed - have - own if not hasattr(builtins, each)}


def _with(groups: dict[str, set[str]], names: Iterable[str]) -> set[str]:
    return {same for name in names for same in groups.get(name, {name})}


def _imports(piece: Piece) -> bool:
    return isinstance(piece.node, (ast.Import, ast.ImportFrom))


def _is_future(piece: Piece) -> bool:
    return isinstance(piece.node, ast.ImportFrom) and piece.node.module == "__future__"
