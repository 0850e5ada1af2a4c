"""Working copies: learners work on copies, and no command ever overwrites what they wrote.

`refresh` copies new notebooks and pages into work/. What the learner has not touched follows the course; a
notebook they have touched is only changed by `update`, which carries their answers over by exercise id
(merging.py) and keeps a backup. A file that cannot be read is left alone, and costs that file only; so does
one that is open in JupyterLab. A copy may have another name.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from mechlab_course.build import copies
from mechlab_course.build.copies import COPIES, UNREADABLE, back_up, copy_of, load, readable, renamed, save
from mechlab_course.build.merging import Cell, answer_keys, merge, other_names, text_of

__all__ = ["merge", "refresh", "update"]

BASE = ".mechlab"  # inside work/: the notebooks and pages as they were handed out
OLDER = "older"  # inside that: what was handed out before
FOLLOWED = "brought up to date; if its cells had shown anything, that is gone until they are run again"
NOT_FOR_LEARNERS = {"contributing.md", "teaching.md", "make_picture.py"}  # pages for authors and teachers


def refresh(notebooks: Path, work: Path) -> dict[str, str]:
    """Copy what is new; returns {file name: status}.

    The status is "new", "followed", "changed by you", "same", "open", when it should follow and is open in
    JupyterLab, or "unreadable", when your copy or the course's own file cannot be read; `problem_with` says
    which. Raises an `OSError` when `work` itself cannot be used.
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
    target, base = copy_of(source, work), work / BASE / source.name
    theirs, status = _kinds_and_texts(load(source)), "new"
    if os.path.lexists(target):
        mine, versions = load(target), [*handed_out(source, work), load(source)]
        if _bytes(base) == source.read_bytes() and _began_with(mine, versions) is versions[-1]:
            return "same"
        mine = _kinds_and_texts(mine)
        status = "same" if mine == theirs else "followed"  # opened and run perhaps, but not edited
        if mine not in map(_kinds_and_texts, versions):
            return "changed by you"
    if status == "followed" and copies.is_open(target):
        return "open"
    if status != "same":
        save(target, source.read_bytes())
    _note_as_handed_out(source, base)
    return status


def _note_as_handed_out(source: Path, base: Path) -> None:
    """Keep what was handed out before: a copy of it may still be somewhere, under another name."""
    before = _bytes(base)
    if before is not None and before != source.read_bytes():
        (base.parent / OLDER).mkdir(exist_ok=True)
        name = f"{source.stem}-{hashlib.sha256(before).hexdigest()[:8]}.ipynb"
        save(base.parent / OLDER / name, before)
    save(base, source.read_bytes())


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
            if not page.is_file() or page.name in NOT_FOR_LEARNERS:
                continue
            data = page.read_bytes()
            if os.path.lexists(target) and _bytes(target) not in (data, _bytes(base) or data):
                continue
            for copy in (target, base):
                copy.parent.mkdir(parents=True, exist_ok=True)
                if _bytes(copy) != data:
                    save(copy, data)
        except OSError:
            continue


def update(notebooks: Path, work: Path, restore: str = "") -> list[str]:
    """Bring every working copy up to date, keeping answers; returns one line for each file that changed.

    restore: the number of a notebook whose deleted cells come back, also if the course has not changed.
    """
    report, restore = refresh(notebooks, work), restore and restore.zfill(2)
    known = not restore or any(name[:2] == restore for name in report)
    lines = [] if known else [f"There is no notebook {restore}. Say its two figures, such as 12."]
    for name, status in report.items():
        source, copy = notebooks / name, copy_of(notebooks / name, work)
        if status == "new":
            lines.append(f"{copy.name}: copied")
        elif status == "followed":
            lines.append(f"{copy.name}: {FOLLOWED}")
        elif status == "unreadable":
            lines.append(f"{copy.name}: left alone, {problem_with(source, work)}.")
        elif status != "same" or name[:2] == restore:
            try:
                lines.append(f"{copy.name}: {_update(source, work)}")
            except UNREADABLE as error:
                lines.append(f"{copy.name}: left alone, it could not be written ({copies.said(error)}).")
    return lines


def _update(source: Path, work: Path) -> str:
    """Merge one notebook, and keep a backup."""
    target, base = copy_of(source, work), work / BASE / source.name
    if copies.is_open(target):
        return f"left alone, it is {copies.OPEN}"
    mine, new = load(target), load(source)
    merged, kept = merge(mine, new, _began_with(mine, [*handed_out(source, work), new]))
    backup = back_up(target, work)
    save(target, copies.dumped(merged))
    _note_as_handed_out(source, base)
    return (
        f"updated, {kept} of your cells kept; the old file is {backup}. "
        "What its other cells showed is gone until they are run again."
    )


def handed_out(source: Path, work: Path) -> list[dict]:
    """Every version of a notebook that was handed out, the last one at the end."""
    base = work / BASE / source.name
    return list(readable([*sorted((base.parent / OLDER).glob(f"{source.stem}-*.ipynb")), base]))


def _began_with(mine: dict, versions: list[dict]) -> dict:
    """The version that has most cells in common with a copy, the last such one."""
    texts = set(map(text_of, mine["cells"]))
    return max(reversed(versions), key=lambda nb: len(texts & set(map(text_of, nb["cells"]))))


def remarks(notebooks: Path, work: Path) -> Iterator[str]:
    """What a learner should know of their copies: other names, and exercises that are missing."""
    for path, origin in renamed(notebooks, work):
        if copy_of(notebooks / origin, work) == path:
            yield (
                f"{path.name} is your copy of {origin} under another name, which links do not find. "
                "For a new one, move it to another folder."
            )
        else:
            yield (
                f"{path.name}: left alone, a copy of {origin} under another name. "
                "To bring it up to date, move the one of that name away, rename this one, run this again."
            )
    for source in sorted(notebooks.glob("*.ipynb")):
        copy = copy_of(source, work)
        for mine in readable([copy]):
            given = next(iter(handed_out(source, work)[-1:]), mine)
            if gone := sorted(answers_in(given) - answers_in(mine)):
                one = gone[0] if len(gone) == 1 else f"{', '.join(gone[:-1])} and {gone[-1]}"
                yield (
                    f"{copy.name}: {one} {'is' if len(gone) == 1 else 'are'} missing. "
                    f"`mechlab update --restore {source.name[:2]}` brings back what was deleted."
                )


def answers_in(notebook: dict) -> set[str]:
    """The exercises that a notebook has a cell for, such as "exercise 12.1"."""
    names = other_names(notebook["cells"])
    keys = {key for cell in notebook["cells"] for key in answer_keys(cell, names, named=False)}
    return {key for key in keys if key.startswith("exercise ")}


def problem_with(source: Path, work: Path) -> str:
    """Why a notebook is "unreadable": the learner's copy, or else the course's own file."""
    for path, what in ((copy_of(source, work), "it"), (source, "the course's own file")):
        try:
            if os.path.lexists(path):
                load(path)
        except UNREADABLE as error:
            remedy = "Move it away to get a new copy" if what == "it" else "Fetch the course again"
            return f"{what} is not a readable notebook ({copies.said(error)}). {remedy}"
    return "it could not be copied"


def _kinds_and_texts(notebook: dict) -> list[tuple[str, str]]:
    """What a notebook says, whatever has been run in it."""
    return [(cell["cell_type"], text_of(cell)) for cell in notebook["cells"]]


def _answer_key(cell: Cell) -> str | None:
    """The first thing that a cell answers."""
    return next(iter(answer_keys(cell)), None)
