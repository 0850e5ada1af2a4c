"""Correct answers, kept in the progress file: a tab closed unsaved does not take them along."""

import inspect
import linecache
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from mechlab import waiting
from mechlab_course import progress

LONGEST = 20_000  # characters of an answer that is kept


@dataclass(frozen=True)
class Solved:
    """An exercise that was solved: when first in this way, and the cell that did; "" if it was not kept."""

    id: str
    day: str
    source: str


def to_keep(id: str, function: Callable) -> dict[str, str]:
    """What the progress file says beside "correct": the source, unless it is there already or too long."""
    source = _source(function)
    known = {each.source for each in solved(id)}
    return {} if not source or len(source) > LONGEST or source in known else {"source": source}


def _source(function: Callable) -> str:
    """The whole cell, helpers included; of a function in a file, the function. "" if there is none."""
    try:
        file = inspect.unwrap(function).__code__.co_filename
        in_cell = file.startswith("<") or Path(file).parent.name.startswith("ipykernel_")
        text = "".join(linecache.getlines(file)) if in_cell else inspect.getsource(function)
    except (OSError, TypeError, AttributeError, ValueError):
        return ""
    return _as_typed(text.replace("\r\n", "\n").strip("\n"))


def _as_typed(text: str) -> str:
    """A cell as it was written: the kernel has made calls of its `%magic` and `!command` lines."""
    shell = waiting.kernel_shell()
    if shell is None or "get_ipython()" not in text:
        return text
    typed = (each.strip("\n") for each in reversed(shell.history_manager.input_hist_raw))
    return next((each for each in typed if shell.transform_cell(each).strip("\n") == text), text)


def solved(which: str = "") -> list[Solved]:
    """Each different correct answer to an exercise, or to all of a notebook; the newest last."""
    found: dict[tuple[str, str], Solved] = {}
    which = f"0{which}" if which and which[1:2] in ("", ".") else which  # 3 and 3.2 are 03 and 03.2
    for entry in sorted(progress.entries(), key=lambda entry: (entry["id"], str(entry.get("time", "")))):
        id, source = entry["id"], str(entry.get("source") or "")
        notebook, _, number = id.partition(".")
        if entry["status"] == "correct" and number.isdigit() and which in ("", id, notebook):
            found.setdefault((id, source), Solved(id, _day(entry), source))
    kept = {id for id, source in found if source}
    return [each for each in found.values() if each.source or each.id not in kept]


def _day(entry: dict) -> str:
    """The day of an entry, here; "an unknown day" where its time is damaged."""
    try:
        return f"{datetime.fromisoformat(str(entry['time'])).astimezone():%Y-%m-%d}"
    except (KeyError, ValueError, OverflowError, OSError):
        return "an unknown day"
