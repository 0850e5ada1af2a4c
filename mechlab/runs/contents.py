"""What a value is, as a digest: the same for equal values, another one as soon as anything differs.

Functions count by what they do: their code, defaults, closures, and whatever of the user's own modules they
use, functions, classes and constants alike. What libraries hold counts by its name. What has no content that
could be compared, such as an open file or a lock, is refused.
"""

import dis
import enum
import functools
import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), range, slice)
LIBRARIES = [Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "purelib", "platlib")]


def digest(value: Any, what: str) -> str:
    """The content of a value in 64 letters. Raises a `TypeError` that begins with `what`."""
    found = _Content(what)
    found.add(value, "")
    return found.hash.hexdigest()


class _Content:
    """A hash that values are added to, one after the other."""

    def __init__(self, what: str):
        self.hash, self.what = hashlib.sha256(), what
        self.seen: dict[int, int] = {}  # values that may hold themselves, by the order they were met in
        self.kept: list[Any] = []  # so that no id is used twice
        self.read: set[tuple[str, int]] = set()  # modules, and the code that uses them

    def add(self, value: Any, path: str) -> None:
        kind = type(value)
        if isinstance(value, PLAIN) and not isinstance(value, enum.Enum):
            return self.say(kind.__name__, repr(value))
        if id(value) in self.seen:
            return self.say("again", str(self.seen[id(value)]))
        self.seen[id(value)] = len(self.seen)
        if isinstance(value, set | frozenset):
            self.say(kind.__name__, *sorted(digest(one, self.what) for one in value))
        elif kind in (list, tuple):
            self.all(kind.__name__, enumerate(value), path)
        elif kind in (dict, MappingProxyType):
            self.all("dict", sorted(value.items(), key=lambda pair: digest(pair[0], self.what)), path)
        else:
            self.kept.append(value)
            return self.thing(value, path)
        del self.seen[id(value)]  # equal containers count the same, one object or two

    def say(self, *words: str) -> None:
        for word in words:
            data = word.encode("utf-8", "surrogatepass")
            self.hash.update(len(data).to_bytes(8, "little") + data)

    def all(self, what: str, pairs: Iterable[tuple[Any, Any]], path: str) -> None:
        pairs = [*pairs]
        self.say(what, str(len(pairs)))
        for name, each in pairs:
            self.add(name, path)
            self.add(each, f"{path}[{name!r}]" if isinstance(name, int | str) else path)

    def thing(self, value: Any, path: str) -> None:
        """Anything that is no plain value and no container."""
        if isinstance(value, functools.partial):
            return self.all("partial", {"f": value.func, "a": value.args, "k": value.keywords}.items(), path)
        if isinstance(value, FunctionType):
            return self.function(value, path)
        if isinstance(value, MethodType):
            return self.all("method", {"self": value.__self__, "f": value.__func__}.items(), path)
        if isinstance(value, CodeType):
            return self.code(value, path)
        if isinstance(value, type):
            return self.a_class(value, path)
        if isinstance(value, ModuleType):
            return self.say("module", value.__name__, str(getattr(value, "__version__", "")))
        if isinstance(value, BuiltinFunctionType) and isinstance(value.__self__, ModuleType | None):
            return self.say("builtin", str(value.__module__), value.__qualname__)
        if type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "untyped_storage"):
            return self.tensor(value)
        if hasattr(value, "original_model") and hasattr(
            value, "cfg"
        ):  # a bridge: its weights are what counts
            return self.all("bridge", value.original_model.state_dict().items(), path)
        self.object(value, path)

    def function(self, function: FunctionType, path: str) -> None:
        """By its code, and by all that the code finds outside itself."""
        self.say("function", function.__qualname__)
        if _of_library(function.__module__):
            return self.say(str(function.__module__), _version(function.__module__))
        self.code(function.__code__, path)
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        closed = {name: cell.cell_contents for name, cell in cells if _is_filled(cell)}
        used = {
            n: function.__globals__[n] for n in _globals_in(function.__code__) if n in function.__globals__
        }
        given = {"defaults": function.__defaults__, "kwdefaults": function.__kwdefaults__}
        for outside in (given, closed, used, dict(vars(function))):
            for name, each in sorted(outside.items()):
                self.say(name)
                self.add(each, f"{path} → {name}")
                if isinstance(each, ModuleType):
                    self.attributes(each, function.__code__, path)

    def attributes(self, module: ModuleType, code: CodeType, path: str) -> None:
        """What some code may use of a module of the user's own."""
        if _of_library(module.__name__) or (module.__name__, id(code)) in self.read:
            return
        self.read.add((module.__name__, id(code)))
        for name in sorted(_names_in(code)):
            if hasattr(module, name):
                each = getattr(module, name)
                self.say(name)
                self.add(each, f"{path} → {module.__name__}.{name}")
                if isinstance(each, ModuleType):
                    self.attributes(each, code, path)

    def code(self, code: CodeType, path: str) -> None:
        """Code without where it stands."""
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        self.say(code.co_code.hex(), code.co_exceptiontable.hex(), repr(counts), repr(names))
        for each in code.co_consts:
            self.add(each, path)

    def a_class(self, given: type, path: str) -> None:
        """By its name where a library has it; else by its attributes and those that it inherits."""
        self.say("class", given.__module__, given.__qualname__)
        if _of_library(given.__module__):
            return self.say(_version(given.__module__))
        left_out = {"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__firstlineno__"}
        left_out |= {
            "__slotnames__",
            "__static_attributes__",
        }  # written by Python when it pickles or compiles
        for name, each in sorted(vars(given).items()):
            if name not in left_out and not name.startswith("_abc_"):
                inside = getattr(each, "__func__", None) or getattr(each, "fget", None) or each
                self.say(name)
                self.add(None if type(each).__name__.endswith("_descriptor") else inside, f"{path}.{name}")
        for base in given.__bases__:
            self.add(base, path)

    def tensor(self, value: Any) -> None:
        flat = value.detach().cpu().contiguous()
        self.say("tensor", str(flat.dtype), str(tuple(flat.shape)))
        self.hash.update(flat.flatten().view(_bytes()).numpy().tobytes() if flat.numel() else b"")

    def object(self, value: Any, path: str) -> None:
        """What pickle would store of it, piece by piece."""
        self.add(type(value), path)
        for inside in ("__wrapped__", "func"):  # functools.lru_cache, cached_property
            if callable(vars(value).get(inside) if hasattr(value, "__dict__") else None):
                return self.add(getattr(value, inside), path)
        try:
            parts = value.__reduce_ex__(4)
        except Exception as error:
            where = f" ({path.strip(' →')})" if path else ""
            raise TypeError(
                f"{self.what} uses a {type(value).__name__}{where}, whose content cannot be compared "
                f"({error}), so a kept result may be an old one. Hand over plain values, or leave out keep=."
            ) from None
        if isinstance(parts, str):
            return self.say(parts)
        for part in parts:
            self.add([*part] if hasattr(part, "__next__") else part, path)


def _bytes() -> Any:
    import torch

    return torch.uint8


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # the name has no value yet
        return False


def _globals_in(code: CodeType) -> set[str]:
    """The global names that some code asks for, inner functions included."""
    own = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*(_globals_in(each) for each in code.co_consts if isinstance(each, CodeType)))


def _names_in(code: CodeType) -> set[str]:
    inner = (_names_in(each) for each in code.co_consts if isinstance(each, CodeType))
    return {*code.co_names}.union(*inner)


def _of_library(module: str | None) -> bool:
    """Whether a module is Python's, an installed package's or mechlab's: it counts by its name."""
    name = str(module)
    if name == "__main__":  # a notebook's or a script's own, whatever started it
        return False
    if name.partition(".")[0] in ("mechlab", "builtins") or name in sys.builtin_module_names:
        return True
    file = getattr(sys.modules.get(name), "__file__", None)
    return bool(file) and any(place in Path(file).resolve().parents for place in LIBRARIES)


def _version(module: str | None) -> str:
    return str(getattr(sys.modules.get(str(module).partition(".")[0]), "__version__", ""))


def stamp(folder: str | Path) -> Mapping[str, tuple[int, int]]:
    """What the files of a folder are now: their names, sizes and times of change."""
    files = sorted(path for path in Path(folder).iterdir() if path.is_file())
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}
