"""Working copies: learners work on copies, and no command ever overwrites what they wrote.

`refresh` copies new notebooks and pages into work/. What the learner has not touched follows the course; a
notebook they have touched is only changed by `update`, which carries their answers over by exercise id
(merging.py) and keeps a backup. A file that cannot be read is left alone, and costs that file only.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from mechlab_course.build.merging import Cell, answer_keys, merge, text_of

__all__ = ["merge", "refresh", "update"]

BASE = ".mechlab"  # inside work/: the notebooks and pages as they were handed out
OLDER = "older"  # inside that: what was handed out before
COPIES = "notebooks"  # inside work/: the learner's copies, beside docs/, so that links keep working
UNREADABLE = (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError)


def refresh(notebooks: Path, work: Path) -> dict[str, str]:
    """Copy what is new; returns {file name: status}.

    The status is "new", "followed", "changed by you", "same", or "unreadable", when your copy or the course's
    own file cannot be read; `problem_with` says which. Raises an `OSError` when `work` itself cannot be used.
    """
    for folder in (BASE, COPIES):
        (work / folder).mkdir(parents=True, exist_ok=True)
    _refresh_docs(notebooks.parent / "docs", work)
    report = {}
    for source in sorted(notebooks.glob("*.ipynb")):
        try:
            report[source.name] = _refresh(source, work)
        except UNREADABLE:
            report[source.name] = "unreadable"
    return report


def _refresh(source: Path, work: Path) -> str:
    """Copy one notebook, if that costs the learner nothing."""
    target, base = work / COPIES / source.name, work / BASE / source.name
    theirs, status = _kinds_and_texts(_load(source)), "new"
    if os.path.lexists(target):
        mine, versions = _load(target), [*_handed_out(source, base), _load(source)]
        if _bytes(base) == source.read_bytes() and _began_with(mine, versions) is versions[-1]:
            return "same"
        mine = _kinds_and_texts(mine)
        status = "same" if mine == theirs else "followed"  # opened and run perhaps, but not edited
        if mine not in map(_kinds_and_texts, versions):
            return "changed by you"
    if status != "same":
        shutil.copyfile(source, target)
    _note_as_handed_out(source, base)
    return status


def _note_as_handed_out(source: Path, base: Path) -> None:
    """Keep what was handed out before: a copy of it may still be somewhere, under another name."""
    before = _bytes(base)
    if before is not None and before != source.read_bytes():
        (base.parent / OLDER).mkdir(exist_ok=True)
        name = f"{source.stem}-{hashlib.sha256(before).hexdigest()[:8]}.ipynb"
        (base.parent / OLDER / name).write_bytes(before)
    shutil.copyfile(source, base)


def _bytes(path: Path) -> bytes | None:
    """What a file holds; None if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def _refresh_docs(docs: Path, work: Path) -> None:
    """Copy the pages that are new, or that the learner has left as they were; never one with their notes."""
    for page in sorted(docs.rglob("*")) if docs.is_dir() else []:
        name = page.relative_to(docs)
        target, base = work / "docs" / name, work / BASE / "docs" / name
        try:
            if not page.is_file():
                continue
            data = page.read_bytes()
            if os.path.lexists(target) and _bytes(target) not in (data, _bytes(base) or data):
                continue
            for copy in (target, base):
                copy.parent.mkdir(parents=True, exist_ok=True)
                if _bytes(copy) != data:
                    copy.write_bytes(data)
        except OSError:
            continue


def update(notebooks: Path, work: Path) -> list[str]:
    """Bring every working copy up to date, keeping answers; returns one line for each file that changed."""
    lines = []
    for name, status in refresh(notebooks, work).items():
        if status in ("new", "followed"):
            lines.append(f"{name}: {status}")
        elif status == "unreadable":
            lines.append(f"{name}: left alone, {problem_with(notebooks / name, work)}.")
        elif status == "changed by you":
            try:
                lines.append(f"{name}: {_update(notebooks / name, work)}")
            except UNREADABLE as error:
                lines.append(f"{name}: left alone, it could not be written ({_said(error)}).")
    return [*lines, *_others(notebooks, work)]


def _update(source: Path, work: Path) -> str:
    """Merge one notebook, and keep a backup."""
    target, base = work / COPIES / source.name, work / BASE / source.name
    mine = _load(target)
    new = _load(source)
    merged, kept = merge(mine, new, _began_with(mine, [*_handed_out(source, base), new]))
    folder, stamp, count = work / "backup", datetime.now().strftime("%Y%m%d-%H%M%S"), 1
    folder.mkdir(exist_ok=True)
    backup = folder / f"{target.stem}-{stamp}.ipynb"
    while backup.exists():
        count += 1
        backup = folder / f"{target.stem}-{stamp}-{count}.ipynb"
    shutil.copyfile(target, backup)
    real = target.resolve()
    written = real.with_name(f".{real.name}.new")  # whole or not at all
    written.write_bytes(_dumped(merged))
    written.replace(real)
    _note_as_handed_out(source, base)
    return f"updated, {kept} of your cells kept; the old file is {backup.relative_to(work)}"


def _dumped(notebook: dict) -> bytes:
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a letter, which only JSON's own way of writing it can hold
        return (json.dumps(notebook, indent=1) + "\n").encode()


def _handed_out(source: Path, base: Path) -> list[dict]:
    """Every version of a notebook that was handed out, the last one at the end."""
    return list(_readable([*sorted((base.parent / OLDER).glob(f"{source.stem}-*.ipynb")), base]))


def _began_with(mine: dict, versions: list[dict]) -> dict:
    """The version that has most cells in common with a copy, the last such one."""
    texts = set(map(text_of, mine["cells"]))
    return max(reversed(versions), key=lambda nb: len(texts & set(map(text_of, nb["cells"]))))


def _readable(paths: list[Path]) -> Iterator[dict]:
    for path in paths:
        try:
            yield _load(path)
        except UNREADABLE:
            continue


def _others(notebooks: Path, work: Path) -> Iterator[str]:
    """A line for each notebook that was renamed or duplicated: it is the learner's, and stays as it is."""
    known = {path.name for path in notebooks.glob("*.ipynb")}
    for path in sorted((work / COPIES).glob("*.ipynb")):
        if path.name not in known and not path.name.startswith("."):
            for notebook in _readable([path]):
                about = re.search(r'"mechlab": {"notebook": "(\w+)"', json.dumps(notebook.get("metadata")))
                if about and f"{about[1]}.ipynb" in known:
                    yield (
                        f"{path.name}: left alone, a copy of {about[1]}.ipynb under another name. "
                        "Give it that name, and run this again, to bring it up to date."
                    )


def problem_with(source: Path, work: Path) -> str:
    """Why a notebook is "unreadable": the learner's copy, or else the course's own file."""
    for path, what in ((work / COPIES / source.name, "it"), (source, "the course's own file")):
        try:
            if os.path.lexists(path):
                _load(path)
        except UNREADABLE as error:
            remedy = "Move it away to get a new copy" if what == "it" else "Fetch the course again"
            return f"{what} is not a readable notebook ({_said(error)}). {remedy}"
    return "it could not be copied"


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _kinds_and_texts(notebook: dict) -> list[tuple[str, str]]:
    """What a notebook says, whatever has been run in it."""
    return [(cell["cell_type"], text_of(cell)) for cell in notebook["cells"]]


def _load(path: Path) -> dict:
    """A notebook; a `ValueError` says what is wrong with it."""
    notebook = json.loads(path.read_text(encoding="utf-8-sig"))
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        raise ValueError("it has no list of cells")
    for cell in cells:
        source = cell.get("source") if isinstance(cell, dict) else None
        lines = source if isinstance(source, list) else [source]
        if not (all(isinstance(line, str) for line in lines) and isinstance(cell.get("cell_type"), str)):
            raise ValueError("a cell of it has no text")
    return notebook


def _answer_key(cell: Cell) -> str | None:
    """The first thing that a cell answers."""
    return next(iter(answer_keys(cell)), None)
