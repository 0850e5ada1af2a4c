"""Working copies: learners work on copies, and no command ever overwrites what they wrote.

`refresh` copies new notebooks into work/. A notebook the learner has not touched follows the course; one they
have touched is only changed by `update`, which carries their answers over by exercise id and keeps a backup.
"""

import json
import shutil
from datetime import datetime
from pathlib import Path

from mechlab_course.cells import answered, mentioned

BASE = ".mechlab"  # inside work/: the notebooks as they were handed out
COPIES = "notebooks"  # inside work/: the learner's copies, beside docs/, so that links keep working


def refresh(notebooks: Path, work: Path) -> dict[str, str]:
    """Copy what is new; returns {file name: "new" | "followed" | "changed by you" | "same"}."""
    for folder in (BASE, COPIES):
        (work / folder).mkdir(parents=True, exist_ok=True)
    if (notebooks.parent / "docs").is_dir():
        shutil.copytree(notebooks.parent / "docs", work / "docs", dirs_exist_ok=True)
    report = {}
    for source in sorted(notebooks.glob("*.ipynb")):
        target, base = work / COPIES / source.name, work / BASE / source.name
        if not target.exists():
            status = "new"
        elif base.exists() and base.read_bytes() == source.read_bytes():
            report[source.name] = "same"
            continue
        elif base.exists() and _cells_of(target) == _cells_of(base):
            status = "followed"  # opened and run perhaps, but not edited
        else:
            report[source.name] = "changed by you"
            continue
        shutil.copyfile(source, target)
        shutil.copyfile(source, base)
        report[source.name] = status
    return report


def update(notebooks: Path, work: Path) -> list[str]:
    """Bring every working copy up to date, keeping answers; returns one line for each file that changed."""
    lines = []
    for name, status in refresh(notebooks, work).items():
        if status in ("new", "followed"):
            lines.append(f"{name}: {status}")
        elif status == "changed by you":
            target = work / COPIES / name
            try:
                merged, kept = merge(_load(target), _load(notebooks / name), _load(work / BASE / name))
            except (ValueError, KeyError) as error:
                lines.append(f"{name}: left alone, it is not a readable notebook ({error}).")
                continue
            stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
            backup = work / "backup" / f"{target.stem}-{stamp}.ipynb"
            backup.parent.mkdir(exist_ok=True)
            shutil.copyfile(target, backup)
            target.write_text(json.dumps(merged, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            shutil.copyfile(notebooks / name, work / BASE / name)
            lines.append(
                f"{name}: updated, {kept} of your cells kept; the old file is {backup.relative_to(work)}"
            )
    return lines


def merge(mine: dict, new: dict, base: dict) -> tuple[dict, int]:
    """The new notebook with the learner's cells in it; returns it and how many cells were theirs.

    An answer belongs to its exercise id, found in the code, so a moved or copied cell still counts. Other
    cells they changed or added stand after the cell they followed.
    """
    given = {_text(cell) for cell in base["cells"]}
    answers, loose, previous = {}, [], None
    for cell in mine["cells"]:
        key = _answer_key(cell)
        if _text(cell) not in given and _text(cell).strip():
            if key:
                answers[key] = cell
            else:
                loose.append((previous, cell))
        previous = cell.get("id", previous)
    cells, kept = [], 0
    for cell in new["cells"]:
        key = _answer_key(cell)
        if key in answers:
            cell = {**cell, "source": answers.pop(key)["source"]}
            kept += 1
        cells.append(cell)
    for previous, cell in [*loose, *[(None, cell) for cell in answers.values()]]:
        ids = [c.get("id") for c in cells]
        place = ids.index(previous) + 1 if previous in ids else len(cells)
        cells.insert(place, cell)
        kept += 1
    return {**new, "cells": cells}, kept


def _answer_key(cell: dict) -> str | None:
    """The exercise, question or prediction that a code cell answers, however unfinished: "exercise 12.1"."""
    if cell["cell_type"] != "code":
        return None
    found = answered(_text(cell)) or mentioned(_text(cell))
    return f"{found[0].kind} {found[0].id}" if found else None


def _cells_of(path: Path) -> list[str] | None:
    try:
        return [_text(cell) for cell in _load(path)["cells"]]
    except (ValueError, KeyError):
        return None


def _load(path: Path) -> dict:
    if not path.exists():
        return {"cells": []}
    return json.loads(path.read_text(encoding="utf-8"))


def _text(cell: dict) -> str:
    return "".join(cell["source"])
