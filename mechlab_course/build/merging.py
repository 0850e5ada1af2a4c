"""The learner's cells in a new version of a notebook: nothing they wrote is lost, nothing of it is undone.

An answer belongs to the id that its code names: cells that were moved, copied, merged or split still count.
"""

import difflib
import hashlib
import re
from collections import defaultdict

from mechlab_course import cells as code
from mechlab_course.cells import answered, mentioned

Cell = dict
_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # what nbformat takes for the id of a cell


def merge(mine: dict, new: dict, base: dict) -> tuple[dict, int]:
    """The new notebook with the learner's cells in it; returns it and how many cells were theirs.

    Answers take the place of the cells they answer, all attempts in the learner's order, so that the last one
    still comes last. A cell that only they have changed takes its own place; one that the course has changed
    too stands after the course's. What they added stands after what it followed.
    """
    places, names = _Places(new["cells"], base["cells"]), other_names(mine["cells"])
    own: dict[int, list[Cell]] = defaultdict(
        list
    )  # by the number of the new cell that they stand at or after
    last: dict[str, int] = {}
    replaced, here = set(), -1
    for cell in mine["cells"]:
        at = places.of(cell)
        if not text_of(cell).strip() or places.is_as_given(cell):
            here = here if at is None else at
            continue
        answers = answer_keys(cell, names)
        done = set(answer_keys(cell, names, named=False))
        slots = [places.answered[key] for key in answers if key in places.answered]
        if slots:
            here = max([min(slots), *(last[key] for key in done & last.keys())])
            last |= dict.fromkeys(done, here)
        elif at is not None:
            here = at
            replaced |= {at} if places.only_they_changed(cell) else set()
        own[here].append(cell)
    replaced |= {at for at, keys in enumerate(places.keys) if keys and keys <= last.keys()}
    merged = list(own[-1])
    for at, cell in enumerate(new["cells"]):
        merged += _in_its_place(cell, own[at], names) if at in replaced else [cell, *own[at]]
    return {**new, "cells": _with_ids(merged, new["cells"])}, sum(map(len, own.values()))


def _in_its_place(cell: Cell, own: list[Cell], names: dict[str, str]) -> list[Cell]:
    """The learner's cells instead of the course's; one of them goes on as that cell."""
    keys = set(answer_keys(cell))
    heir = next((mine for mine in own if keys & set(answer_keys(mine, names))), own[0] if own else None)
    if heir is None or heir["cell_type"] != cell["cell_type"]:
        return own  # answered elsewhere, or made text of
    kept = {"metadata": cell.get("metadata", {})} | ({"id": cell["id"]} if "id" in cell else {})
    return [{**mine, **kept} if mine is heir else mine for mine in own]


class _Places:
    """Where cells of the version that was handed out, and their answers, stand in the new one."""

    def __init__(self, new: list[Cell], base: list[Cell]):
        self._new, self._base = new, base
        self.keys = [set(answer_keys(cell)) for cell in new]
        self.answered: dict[str, int] = {}
        for at in reversed(range(len(new))):
            self.answered |= dict.fromkeys(self.keys[at], at)
        self._at = {}  # number in the base: number in the new
        by_what = [
            [frozenset(answer_keys(c)) or (c["cell_type"], text_of(c)) for c in nb] for nb in (base, new)
        ]
        for _, i, end, j, stop in difflib.SequenceMatcher(None, *by_what, autojunk=False).get_opcodes():
            self._at |= {n: min(j + n - i, stop - 1) for n in range(i, end)}
        self._by_id = {str(cell["id"]): n for n, cell in enumerate(base) if "id" in cell}
        self._by_text = {(cell["cell_type"], text_of(cell)): n for n, cell in reversed([*enumerate(base)])}
        self._new_ids = {str(cell["id"]): n for n, cell in enumerate(new) if "id" in cell}
        self._tasks = {text_of(cell) for cell in base if answer_keys(cell)}

    def is_as_given(self, cell: Cell) -> bool:
        """As handed out; a task without an answer also where it was made text of."""
        return (cell["cell_type"], text_of(cell)) in self._by_text or text_of(cell) in self._tasks

    def _origin(self, cell: Cell) -> int | None:
        number = self._by_id.get(str(cell.get("id")))
        return self._by_text.get((cell["cell_type"], text_of(cell))) if number is None else number

    def of(self, cell: Cell) -> int | None:
        """Where the cell it was handed out as stands now; None for one that the learner added."""
        origin = self._origin(cell)
        return self._new_ids.get(str(cell.get("id"))) if origin is None else self._at[origin]

    def only_they_changed(self, cell: Cell) -> bool:
        """The course has not changed what this cell was, and asks for no answer there."""
        origin = self._origin(cell)
        if origin is None or self._at[origin] < 0 or self.keys[self._at[origin]]:
            return False
        return text_of(self._base[origin]) == text_of(self._new[self._at[origin]])


def answer_keys(cell: Cell, names: dict[str, str] | None = None, named: bool = True) -> list[str]:
    """All that a code cell answers, however unfinished: "exercise 12.1".

    named: if it answers nothing, what it names, such as in a comment.
    """
    if cell["cell_type"] != "code":
        return []
    found = answered(text_of(cell), names) or (mentioned(text_of(cell)) if named else [])
    return list(dict.fromkeys(f"{each.kind} {each.id}" for each in found))


def other_names(cells: list[Cell]) -> dict[str, str]:
    """What else the learner calls `exercise` and `quiz`, anywhere in the notebook."""
    trees = []
    for cell in cells:
        if cell["cell_type"] == "code":
            try:
                trees.append(code.parsed(text_of(cell))[1])
            except code.UNREADABLE:
                continue
    return code.renamed(trees)


def _with_ids(cells: list[Cell], new: list[Cell]) -> list[Cell]:
    """The cells, none of them with the id of another; those of the course keep theirs."""
    if not any("id" in cell for cell in [*cells, *new]):
        return cells
    course = {id(cell) for cell in new}
    kept = {cell.get("id") for cell in cells if id(cell) in course}
    seen, done = set(), []
    for number, cell in enumerate(cells):
        name, wish = cell.get("id"), f"{number}|{text_of(cell)}"
        usable = isinstance(name, str) and _ID.fullmatch(name) and name not in seen
        if id(cell) not in course and (not usable or name in kept):
            while (name := hashlib.sha1(wish.encode(errors="replace")).hexdigest()[:12]) in seen | kept:
                wish += "|"
        seen.add(name)
        done.append({**cell, "id": name})
    return done


def text_of(cell: Cell) -> str:
    """What a cell says, whatever its lines end in."""
    text = "".join(cell["source"]).lstrip("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip()
