"""How far a long loop is, as one line of text that is gone at the end.

A progress bar made of widgets stays in the saved notebook and is an error when that is opened again. This is
plain text: in a notebook an output that is emptied, in a terminal a line that is wiped out.
"""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any


@contextmanager
def waiting(what: str, total: float | int, *, delay: float | int = 3.0) -> Generator[Callable[..., None]]:
    """Say how far `what` is: `with waiting("patching", 30) as done: ...; done()`.

    total: how often `done()` is called, or what the amounts `done(amount)` add up to
    delay: seconds before the line appears: what is over sooner needs none
    """
    line, start = Line(), time.monotonic()
    so_far, shown = 0.0, start + delay - 0.5

    def done(amount: float | int = 1) -> None:
        nonlocal so_far, shown
        so_far, now = so_far + amount, time.monotonic()
        if now - shown >= 0.5 and 0 < so_far < total:
            left = (now - start) * (total - so_far) / so_far
            line.says(f"{what}: {so_far / total:.0%} done, about {max(1, round(left))} s left")
            shown = now

    try:
        yield done
    finally:
        line.wipe()


@contextmanager
def meanwhile(text: str) -> Generator[None]:
    """Show a line while something runs that cannot be counted: `with meanwhile("loading ..."): ...`."""
    line = Line()
    line.says(text)
    try:
        yield
    finally:
        line.wipe()


def speaking(but: "Line") -> bool:
    """Whether another line is on show."""
    return any(line is not but for line in list(_SHOWN))


_SHOWN: "set[Line]" = set()


class Line:
    """A line of text that can be written anew: an output of the cell, or of a terminal."""

    def __init__(self):
        self.handle, self.longest = None, 0

    @property
    def shown(self) -> bool:
        """Whether it says something now."""
        return self in _SHOWN

    def says(self, text: str) -> None:
        """Show this text in place of the last one."""
        _SHOWN.add(self)
        if kernel_shell() is not None:
            from IPython.display import display

            bundle = {"text/plain": text}
            if self.handle is None:
                self.handle = display(bundle, raw=True, display_id=True)
            else:
                self.handle.update(bundle, raw=True)
        elif sys.stderr.isatty():
            self.longest = max(self.longest, len(text))
            print(f"\r{text:<{self.longest}}", end="", file=sys.stderr, flush=True)

    def wipe(self) -> None:
        """Leave nothing behind."""
        if not self.shown:
            return
        _SHOWN.discard(self)
        if self.handle is not None:
            self.handle.update({"text/plain": ""}, raw=True)
        elif self.longest:
            print(f"\r{'':<{self.longest}}\r", end="", file=sys.stderr, flush=True)


def kernel_shell() -> Any:
    """The IPython shell of a notebook's kernel; None elsewhere."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell if hasattr(shell, "kernel") else None
