"""Progress: a small local file, one JSON line a check, quiz or prediction. Nothing leaves the machine."""

import json
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from platformdirs import user_data_path


def path() -> Path:
    """The progress file: in `MECHLAB_HOME`, or in the user's data folder."""
    home = os.environ.get("MECHLAB_HOME")
    return (Path(home).expanduser() if home else user_data_path("mechlab")) / "progress.jsonl"


def record(id: str, status: str, **extra: str) -> None:
    """Append one line. A place that cannot be written to costs the record, never the lesson."""
    line = {"id": id, "status": status, "time": datetime.now(UTC).isoformat(timespec="seconds"), **extra}
    try:
        _append([line])
    except OSError as error:
        remedy = "Set MECHLAB_HOME to another folder."
        print(f"(Progress could not be saved in {path()}: {error.strerror}. {remedy})")


def _append(lines: Iterable[dict]) -> None:
    """Add lines, on a line of their own even where the last one was cut off."""
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True)
    cut_off = file.exists() and file.stat().st_size and not file.read_bytes().endswith(b"\n")
    with file.open("a", encoding="utf-8") as opened:
        opened.write("\n" * bool(cut_off) + "".join(json.dumps(line) + "\n" for line in lines))


def entries(file: Path | None = None) -> list[dict]:
    """All readable lines; a damaged line is skipped, not fatal."""
    found = []
    try:
        lines = (file or path()).read_text(encoding="utf-8-sig", errors="replace").split("\n")
    except OSError:
        return []
    for line in lines:
        try:
            entry = json.loads(line)
            found.append({**entry, "id": str(entry["id"]), "status": str(entry["status"])})
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return found


def best(recorded: Iterable[dict]) -> dict[str, str]:
    """For each id the best status ever reached: correct counts for good, even if a later try fails."""
    order = ["not attempted", "predicted", "recorded", "not yet", "correct"]
    rank = {status: n for n, status in enumerate(order)}
    reached: dict[str, str] = {}
    for entry in recorded:
        old = rank.get(reached.get(entry["id"], ""), -1)
        if rank.get(entry["status"], -1) > old:
            reached[entry["id"]] = entry["status"]
    return reached


def merge(other: Path) -> int:
    """Add the lines of another progress file that are not here yet; returns how many.

    Raises an `OSError` when either file cannot be opened.
    """
    other.open("rb").close()
    known = {json.dumps(entry, sort_keys=True) for entry in entries()}
    new = [entry for entry in entries(other) if json.dumps(entry, sort_keys=True) not in known]
    _append(new)
    return len(new)
