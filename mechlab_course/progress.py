"""Progress: a small local file, one JSON line for each check, quiz and prediction. Nothing leaves the machine."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_data_path

if TYPE_CHECKING:
    import ipywidgets

TITLES = {
    "00": "Start here",
    "01": "Tokens and embeddings",
    "02": "One forward pass by hand",
    "03": "Hooks and caching",
    "11": "Input attribution",
    "12": "Direct logit attribution",
    "13": "Neurons",
    "21": "Logit lens and tuned lens",
    "22": "Probing",
    "23": "Attention patterns",
    "24": "Ablation",
    "25": "Superposition",
    "26": "Sparse autoencoders",
    "31": "Activation patching and causal tracing",
    "32": "Steering",
    "33": "Matrix orthogonalization",
    "34": "ROME: editing a fact",
    "41": "The IOI circuit: finding it",
    "42": "The IOI circuit: proving it",
    "43": "The IOI circuit: automating it",
}


def path() -> Path:
    """The progress file: in `MECHLAB_HOME`, or in the user's data folder."""
    return Path(os.environ.get("MECHLAB_HOME") or user_data_path("mechlab")) / "progress.jsonl"


def record(id: str, status: str, **extra: str) -> None:
    """Append one line. A place that cannot be written to costs the record, never the lesson."""
    line = {"id": id, "status": status, "time": datetime.now(UTC).isoformat(timespec="seconds"), **extra}
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        with path().open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        print(
            f"(Progress could not be saved in {path()}: {error.strerror}. Set MECHLAB_HOME to another folder.)"
        )


def entries(file: Path | None = None) -> list[dict]:
    """All readable lines; a damaged line is skipped, not fatal."""
    found = []
    try:
        lines = (file or path()).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            entry = json.loads(line)
            found.append({**entry, "id": str(entry["id"]), "status": str(entry["status"])})
        except (ValueError, KeyError, TypeError):
            continue
    return found


def best(recorded: Iterable[dict]) -> dict[str, str]:
    """For each id the best status ever reached: correct counts for good, even if a later try fails."""
    order = ["not attempted", "predicted", "not yet", "correct"]
    rank = {status: n for n, status in enumerate(order)}
    reached: dict[str, str] = {}
    for entry in recorded:
        old = rank.get(reached.get(entry["id"], ""), -1)
        if rank.get(entry["status"], -1) > old:
            reached[entry["id"]] = entry["status"]
    return reached


@dataclass(frozen=True)
class Table:
    """Exercises done, notebook by notebook."""

    rows: list[tuple[str, str, int, int]]  # number, title, done, all

    def __repr__(self) -> str:
        lines = [f"{number}  {title:<28} {done} of {total}" for number, title, done, total in self.rows]
        return "\n".join(["Exercises solved", *lines, self.next_step()])

    def to_html(self) -> str:
        body = "".join(
            f'<tr><td>{number}</td><td style="text-align:left">{title}</td><td>{done} of {total}</td>'
            f'<td><progress value="{done}" max="{total}" aria-label="{title}: {done} of {total}"></progress></td></tr>'
            for number, title, done, total in self.rows
        )
        head = '<tr><th></th><th style="text-align:left">notebook</th><th>solved</th><th></th></tr>'
        return f"<table>{head}{body}</table><p>{self.next_step()}</p>"

    _repr_html_ = to_html

    def next_step(self) -> str:
        for number, title, done, total in self.rows:
            if done < total:
                return f"Next: notebook {number}, {title.lower()}."
        return "Everything solved."


def table() -> Table:
    """Progress over all notebooks that have exercises."""
    from mechlab_course.exercises import all_ids

    reached = best(entries())
    rows = []
    for number in sorted({id.partition(".")[0] for id in all_ids()}):
        ids = [id for id in all_ids() if id.startswith(number + ".")]
        done = sum(reached.get(id) == "correct" for id in ids)
        rows.append((number, TITLES.get(number, ""), done, len(ids)))
    return Table(rows)


def merge(other: Path) -> int:
    """Add the lines of another progress file that are not here yet; returns how many."""
    known = {json.dumps(entry, sort_keys=True) for entry in entries()}
    new = [entry for entry in entries(other) if json.dumps(entry, sort_keys=True) not in known]
    path().parent.mkdir(parents=True, exist_ok=True)
    with path().open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in new)
    return len(new)


def progress_table() -> "ipywidgets.VBox":
    """The learner's progress, with a button that reads it again."""
    import ipywidgets as w

    button, shown = w.Button(description="Refresh", tooltip="Read the progress file again"), w.HTML()
    update = lambda _=None: setattr(shown, "value", table().to_html())
    button.on_click(update)
    update()
    return w.VBox([button, shown])
