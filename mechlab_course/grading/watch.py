"""Notice an answer that works on the check instead of the exercise, by what it does and leaves changed.

None of this keeps foreign code in (`confine` does). It sees to it that such an answer is not called correct
before a person has looked at it.
"""

import os
import sys
import sysconfig
import threading
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

_FRAMES, _INSIDES = "looks into Python's frames", "looks into the inside of functions"
_LOOKS = {
    **dict.fromkeys(["sys._getframe", "sys._current_frames", "sys._current_exceptions"], _FRAMES),
    **dict.fromkeys(["sys.settrace", "sys.setprofile", "sys.addaudithook"], _FRAMES),
    **dict.fromkeys(
        ["gc.get_objects", "gc.get_referrers", "gc.get_referents"], "looks through all of Python's objects"
    ),
    **dict.fromkeys(
        ["code.__new__", "function.__new__", "marshal.loads", "compile", "exec"],
        "runs or reaches hidden code",
    ),
    **dict.fromkeys(["object.__getattr__", "object.__setattr__", "object.__delattr__"], _INSIDES),
}
_PROCESSES = (
    "subprocess.",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.system",
    "pty.spawn",
    "os.startfile",
)
_WRITES = (
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
)
_CONNECTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostby", "socket.sendto", "socket.sendmsg")
_WRITES += ("os.chown", "os.utime", "os.setxattr", "os.removexattr", "shutil.", "tempfile.")


def snapshot() -> dict[tuple[str, str], Any]:
    """All that a check relies on, by name: the course's functions and their code, torch's, Python's own."""
    names = ["builtins", "math", "operator", "inspect", "traceback", "linecache", "random", "json", "numpy"]
    names += ["os", "sys", "functools", "copy", "__main__"]
    names += ["torch", "torch.nn.functional", "torch.linalg", "torch.random", "torch.testing"]
    names += [name for name in list(sys.modules) if name.partition(".")[0] in ("mechlab", "mechlab_course")]
    held: dict[tuple[str, str], Any] = {}
    for name in names:
        for attribute, value in list(vars(sys.modules[name]).items()) if name in sys.modules else []:
            if not (callable(value) or isinstance(value, ModuleType)):
                continue
            held[name, attribute] = value
            if isinstance(value, type) and (name.startswith("mechlab") or attribute == "Tensor"):
                for inner, thing in list(vars(value).items()):
                    held[name, f"{attribute}.{inner}"] = thing
                    _hold_code(held, name, f"{attribute}.{inner}", thing)
            _hold_code(held, name, attribute, value)
    exercises = sys.modules.get("mechlab_course.exercises")
    for id, function in list(exercises._CHECKERS.items()) if exercises else []:
        held["the checker of", id] = function
    return held


def _hold_code(held: dict, name: str, attribute: str, value: Any) -> None:
    value = getattr(value, "__func__", value)  # static and class methods
    if isinstance(value, FunctionType):
        held[name, f"{attribute} (code)"] = value.__code__
        held[name, f"{attribute} (defaults)"] = value.__defaults__


def changed(before: dict[tuple[str, str], Any]) -> list[str]:
    """The names of what is no longer what it was."""
    now, missing = snapshot(), object()
    kept = {"__doc__", "__abstractmethods__", "_abc_impl", "__annotations__", "__dict__", "__weakref__"}
    found = [
        key
        for key, value in before.items()
        if now.get(key, missing) is not value and key[1].split(".")[-1] not in kept
    ]
    return [f"changes `{name}.{attribute}`" for name, attribute in found[:3]]


class Watcher:
    """An audit hook, which Python cannot remove again: refuses what no answer needs, and notes who tried."""

    def __init__(self, file: str, readable: list[Path], private: list[Path], tell: Callable[[str], None]):
        self.file, self._notes, self._busy, self._tell = file, set(), set(), tell
        self._readable = tuple(os.path.realpath(p) for p in readable)
        self._private = tuple(os.path.realpath(p) for p in private)
        self._python = tuple(os.path.realpath(sysconfig.get_path(p)) for p in ("stdlib", "platstdlib"))
        self._packages = tuple(os.path.realpath(sysconfig.get_path(p)) for p in ("purelib", "platlib"))

    def start(self) -> None:
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple) -> None:
        if threading.get_ident() in self._busy:
            return
        self._busy.add(threading.get_ident())
        try:
            refusal = self._judge(event, args)
        finally:
            self._busy.discard(threading.get_ident())
        if refusal:
            raise PermissionError(f"not while grading: an answer that {refusal}")

    def _judge(self, event: str, args: tuple) -> str | None:
        if event in _LOOKS:
            if self._is_answer(sys._getframe(2)):
                self._note(_LOOKS[event])
            return None
        refusal = self._refusal(event, args)
        if refusal:
            blamed = self._blamed(through_packages=event.startswith(_CONNECTS))
            if blamed or any(path in refusal for path in self._private):
                self._note(refusal)
        return refusal

    def _refusal(self, event: str, args: tuple) -> str | None:
        if event == "open":
            path, mode, flags = args[0], str(args[1] or ""), args[2] if isinstance(args[2], int) else 0
            if not isinstance(path, (str, bytes, os.PathLike)):
                return None
            path = os.path.realpath(os.fsdecode(path))
            if path == os.devnull:
                return None
            if set(mode) & set("wax+") or flags & (
                os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
            ):
                return f"writes to a file, {path[:200]}"
            return None if self._may_read(path) else f"reads a file that is not its own, {path[:200]}"
        if event in ("os.listdir", "os.scandir") and isinstance(args[0], (str, bytes, os.PathLike)):
            path = os.path.realpath(os.fsdecode(args[0]))
            return None if self._may_read(path) else f"lists a folder that is not its own, {path[:200]}"
        if event.startswith("socket.") and event != "socket.gethostname":
            return "opens a network connection"
        if event.startswith(_PROCESSES):
            return "starts another process"
        if event in ("os.kill", "os.killpg", "signal.pthread_kill"):
            return "sends a signal to a process"
        if event.startswith(_WRITES):
            return "changes files"
        if event.startswith("ctypes.") and self._blamed():
            return "calls into the system directly (ctypes)"
        return None

    def _may_read(self, path: str) -> bool:
        inside: Callable = lambda folders: any(path == f or path.startswith(f + os.sep) for f in folders)
        return inside(self._readable) and not inside(self._private)

    def _is_answer(self, frame) -> bool:
        return frame is not None and frame.f_code.co_filename == self.file

    def _blamed(self, through_packages: bool = False) -> bool:
        """Whether the answer itself asked, directly or through Python's own library.

        A package that it uses may read and import for reasons of its own; it connects (`through_packages`)
        for nobody but the answer.
        """
        frame = sys._getframe(1)
        while frame is not None:
            file = frame.f_code.co_filename
            if self._is_answer(frame):
                return True
            own = file.startswith(self._python) and not file.startswith(self._packages)
            if not (through_packages or own or file.startswith("<") or file == __file__):
                return False
            frame = frame.f_back
        return False

    def _note(self, what: str) -> None:
        if what not in self._notes and len(self._notes) < 10:
            self._notes.add(what)
            self._tell(what)  # out of this process at once, where no answer can take it back
