"""Correct answers, from the progress file back into the learner's copies; over another one only if asked."""

from collections.abc import Callable, Iterator
from pathlib import Path

from mechlab_course.answers import Solved, solved
from mechlab_course.build import copies
from mechlab_course.build.merging import Cell, answer_keys, other_names, text_of
from mechlab_course.build.workspace import handed_out

Kept = dict[str, list[Solved]]  # exercise -> its kept answers, the newest last
HELD, STUB, OTHER, GONE = "held", "stub", "other", "gone"


def restore(notebooks: Path, work: Path, which: str, ask: Callable[[str], bool]) -> Iterator[str]:
    """Put what was solved where the exercise stands unanswered, and, if `ask` says so, over another answer.

    Yields a line for each exercise; a notebook that changes is backed up first.
    """
    for source, path, kept in _solved_in(notebooks, work, which):
        try:
            yield from _restore(source, path, work, kept, ask)
        except copies.UNREADABLE as error:
            yield f"{path.name}: left alone, it cannot be read or written ({copies.said(error)})."


def _restore(source: Path, path: Path, work: Path, kept: Kept, ask: Callable) -> Iterator[str]:
    if copies.is_open(path):
        yield f"{path.name}: left alone, it is {copies.OPEN}"
        return
    mine, changed = copies.load(path), []
    given = _given(source, work)
    for found in kept.values():
        each = found[-1]
        state, cell = _state(found, mine, given)
        if state == GONE or cell is None:
            yield f"{each.id}: its cell is missing. First `mechlab update --restore {source.name[:2]}`."
        elif state == HELD:
            yield f"{each.id}: your copy holds it already."
        elif state == STUB or ask(f"{each.id}: your copy has another answer. Replace it?"):
            cell["source"] = each.source.splitlines(True)
            cell |= {"outputs": [], "execution_count": None}
            changed.append(each)
        else:
            yield f"{each.id}: your copy has another answer, and keeps it."
    if changed:
        backup = copies.back_up(path, work)
        copies.save(path, copies.dumped(mine))
        for each in changed:
            yield f"{each.id}: put back into {path.name}, as it was correct on {each.day}."
        yield f"The old file is {backup}."


def differing(notebooks: Path, work: Path) -> Iterator[str]:
    """A line for each exercise that was solved, where the saved notebook has no answer or another one."""
    for source, path, kept in _solved_in(notebooks, work):
        for mine in copies.readable([path]):
            given = _given(source, work)
            for found in kept.values():
                each = found[-1]
                state, _ = _state(found, mine, given)
                if state == OTHER:
                    yield f"{each.id}: solved on {each.day}; your saved file has another answer."
                elif state != HELD:
                    yield f"{each.id}: solved on {each.day}; your saved file does not have the answer."


def _solved_in(notebooks: Path, work: Path, which: str = "") -> Iterator[tuple[Path, Path, Kept]]:
    """(the course's notebook, the learner's copy, the kept answers to its exercises, the newest last)."""
    kept: Kept = {}
    for each in solved(which):
        if each.source:
            kept.setdefault(each.id, []).append(each)
    for source in sorted(notebooks.glob("*.ipynb")):
        own = {id: kept[id] for id in sorted(kept) if id.partition(".")[0] == source.name[:2]}
        if own:
            yield source, copies.copy_of(source, work), own


def _given(source: Path, work: Path) -> set[str]:
    """Every cell of a notebook as it was ever handed out."""
    versions = [*handed_out(source, work), *copies.readable([source])]
    return {text_of(cell) for version in versions for cell in version["cells"]}


def _state(found: list[Solved], notebook: dict, given: set[str]) -> tuple[str, Cell | None]:
    """How an exercise, with what was found for it, stands in a copy, and the cell that answers it last."""
    key, names = f"exercise {found[-1].id}", other_names(notebook["cells"])
    cells = [cell for cell in notebook["cells"] if key in answer_keys(cell, names, named=False)]
    if not cells:
        return GONE, None
    known = {text_of({"source": each.source}).strip() for each in found}
    if text_of(cells[-1]).strip() in known:
        return HELD, cells[-1]
    return (STUB if text_of(cells[-1]) in given else OTHER), cells[-1]
