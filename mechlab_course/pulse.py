"""A sign of life: a cell that computes for long and shows nothing says for how long it has been at it.

The line is an output of the cell, written anew every two seconds and emptied when the cell is done. For cells
of the course it says how long they took where the solutions were made (`mechlab build --execute`).
"""

import json
import time
from functools import cache
from pathlib import Path
from threading import Event, Thread
from typing import Any

from mechlab import waiting

SECONDS = Path(__file__).with_name("seconds.json")
SLOW = 3.0  # seconds of silence that nobody minds


@cache
def known() -> dict[str, int]:
    """Seconds of the slow cells of the course, by the id of the cell; empty where they cannot be read."""
    try:
        notebooks = json.loads(SECONDS.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {id: seconds for cells in notebooks.values() for id, seconds in cells.items()}


def note(notebook: str, seconds: dict[str, float]) -> None:
    """Write down how long the cells of a notebook took; only slow ones are kept."""
    found = json.loads(SECONDS.read_text(encoding="utf-8")) if SECONDS.exists() else {}
    found[notebook] = {id: round(each) for id, each in seconds.items() if each >= SLOW}
    SECONDS.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n", encoding="utf-8")


class Pulse:
    """One a kernel. `delay`: seconds of silence before the line; `every`: between two of its texts."""

    def __init__(self, delay: float = SLOW, every: float = 2.0):
        self.delay, self.every = delay, every
        self.over, self.thread = Event(), None

    def started(self, info: Any) -> None:
        """A cell begins (IPython's `pre_run_cell`); one that runs another leaves the word to it."""
        self.ended()
        self.over = Event()
        self.thread = Thread(target=self._beat, args=(self.over, getattr(info, "cell_id", None)), daemon=True)
        self.thread.start()

    def ended(self, result: Any = None) -> None:
        """It is done, or was interrupted (`post_run_cell`); the line is gone when this returns."""
        self.over.set()
        if self.thread is not None:
            self.thread.join(2)

    def _beat(self, over: Event, cell: str | None) -> None:
        begun, line, usual = time.monotonic(), waiting.Line(), known().get(cell or "")
        while not over.wait(self.every if line.shown else self.delay):
            if waiting.speaking(but=line):  # a loop that can be counted says more
                line.wipe()
                continue
            text = f"still computing: {time.monotonic() - begun:.0f} s so far"
            line.says(text + (f" (about {usual} s in all where it was measured)" if usual else ""))
        line.wipe()


def watch() -> None:
    """In the kernel of a notebook: let every cell speak. A second call changes nothing."""
    shell = waiting.kernel_shell()
    if shell is not None and not hasattr(shell, "mechlab_pulse"):
        shell.mechlab_pulse = Pulse()
        shell.events.register("pre_run_cell", shell.mechlab_pulse.started)
        shell.events.register("post_run_cell", shell.mechlab_pulse.ended)
