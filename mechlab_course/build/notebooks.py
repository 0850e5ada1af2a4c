"""Build the notebooks from their sources, `course/NN_name/notebook.py`, deterministically to the byte.

notebooks/NN_name.ipynb   for learners: stubs, no outputs
solutions/NN_name.ipynb   solved; executed when asked, since that runs the model
"""

import hashlib
import json
from copy import deepcopy
from pathlib import Path

from mechlab_course import pulse
from mechlab_course.build.docs import glossary_page, hook_map_page
from mechlab_course.build.folding import FOLDED, TITLE, parts
from mechlab_course.build.links import address, colab
from mechlab_course.build.sources import Cell, SourceError, exercises, read
from mechlab_course.checking import mistakes_of
from mechlab_course.folders import ROOT, sources

SETUP = """\
# Setup, the same in every notebook. Indented lines act in Colab or Kaggle, or if the course is missing.
# After a restart: click the cell you were at, then Run > Run All Above Selected Cell. Your answers stay.
import os, sys
from importlib.util import find_spec

if "google.colab" in sys.modules or "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
    import runpy
    os.system("git clone -q --depth 1 {address} /tmp/mechlab")
    runpy.run_path("/tmp/mechlab/mechlab_course/build/colab.py", run_name="__main__")
elif not find_spec("mechlab_course"):
    raise SystemExit('This kernel does not have the course. Choose one that does, or run '
                     '%pip install "mechlab-course[lab]" and restart the kernel.')
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab_course import check, claim, exercise, predict, quiz, reveal
import mechlab as ml

model = ml.load()"""
LEARNER_DROPS = {"wrong", "hidden"}


def setup_cell() -> str:
    return SETUP.format(address=address())


def learner_notebook(path: Path) -> dict:
    """The notebook for learners, as nbformat JSON."""
    return _notebook(path, solved=False)


def solution_notebook(path: Path) -> dict:
    """The solved notebook, not executed."""
    return _notebook(path, solved=True)


def _notebook(path: Path, solved: bool) -> dict:
    cells, seen = [], {}
    source_cells = read(path)
    for id, _, _, wrong in exercises(source_cells):
        known = len(wrong) + len(mistakes_of(id))
        if known < 3:
            raise SourceError(f"{path.parent.name}: exercise {id} has {known} wrong variants; it needs 3.")
    kept = [c for c in source_cells if c.kind not in LEARNER_DROPS]
    if not kept or kept[0].type != "markdown":
        raise SourceError(f"{path.parent.name}: the first cell must be the markdown title.")
    for number, cell in enumerate([*_parts(kept, path), Cell("markdown", _footer(path))]):
        text = _text(cell, path, number, solved)
        key = f"{path.parent.name}|{cell.meta.get('id') or cell.kind or ''}|{cell.source}"
        seen[key] = seen.get(key, 0) + 1
        id = hashlib.sha1(f"{key}|{seen[key]}".encode()).hexdigest()[:12]
        made: dict = {
            "cell_type": cell.type,
            "id": id,
            "metadata": _metadata(cell),
            "source": text.splitlines(True),
        }
        if cell.type == "code":
            made |= {"execution_count": None, "outputs": []}
        cells.append(made)
    return {
        "cells": cells,
        "metadata": {
            "accelerator": "GPU",
            "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "mechlab": {"notebook": path.parent.name},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _parts(cells: list[Cell], path: Path) -> list[Cell]:
    made = []
    for number, cell in enumerate(cells):
        try:
            made += parts(cell)
        except (SourceError, SyntaxError) as error:
            raise SourceError(f"{path.parent.name}, cell {number}: {error}") from None
    return made


def _text(cell: Cell, path: Path, number: int, solved: bool) -> str:
    if cell.kind == "setup":
        return setup_cell()
    if cell.type == "markdown":
        link = colab(path.parent.name) if number == 0 else ""
        return f"{cell.source}\n\n[Open in Colab]({link})" if link else cell.source
    text = cell.solved() if solved else cell.stub()
    title = TITLE if cell.kind == "assert" else f"# @title {cell.meta.get('folded')}"
    return f"{title}\n{text}" if _is_folded(cell) else text


def _is_folded(cell: Cell) -> bool:
    """A cell that checks, or one that would answer what has just been asked."""
    return cell.kind == "assert" or "folded" in cell.meta


def _footer(path: Path) -> str:
    """Links to the neighbours."""
    order, name = [*sources()], path.parent.name
    place = order.index(name) if name in order else 0
    title = lambda stem: stem.replace("_", " ")
    links = []
    if place > 0:
        links.append(f"Previous: [{title(order[place - 1])}]({order[place - 1]}.ipynb)")
    if place + 1 < len(order):
        links.append(f"Next: [{title(order[place + 1])}]({order[place + 1]}.ipynb)")
    return " · ".join(links) or "The only notebook so far."


def _metadata(cell: Cell) -> dict:
    meta: dict = deepcopy(FOLDED) if _is_folded(cell) else {}
    if cell.kind:
        meta["mechlab"] = {"kind": cell.kind} | ({"id": cell.meta["id"]} if "id" in cell.meta else {})
    if cell.kind in ("compare", "predict"):
        meta["tags"] = [*meta.get("tags", []), "nbval-check-output"]
    return meta


def dump(notebook: dict) -> str:
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def pages() -> dict[str, str]:
    """The generated pages of docs/."""
    return {
        "hook_map.md": hook_map_page(),
        "glossary.md": glossary_page(sources().values(), ROOT / "data" / "words.csv"),
    }


def build(execute: bool = False, only: str = "", force: bool = False) -> list[Path]:
    """Write the notebooks that changed; returns their paths.

    only: a prefix such as "01". force: run solutions again whose cells have not changed.
    """
    written = []
    for name, text in pages().items():
        if _write(ROOT / "docs" / name, text):
            written.append(ROOT / "docs" / name)
    for name, path in sources().items():
        if not name.startswith(only):
            continue
        target = ROOT / "notebooks" / f"{name}.ipynb"
        if _write(target, dump(learner_notebook(path))):
            written.append(target)
        target, wanted = ROOT / "solutions" / f"{name}.ipynb", solution_notebook(path)
        if execute and (force or not _is_fresh(target, wanted)):
            from mechlab_course.build.execute import execute_solution

            executed, seconds = execute_solution(wanted, target.parent)
            pulse.note(name, seconds)
            _write(target, dump(executed))
            written.append(target)
    return written


def stale() -> list[str]:
    """What `build --check` complains about: every generated file that does not match its source."""
    problems = [
        f"docs/{name} is stale: run `mechlab build`."
        for name, text in pages().items()
        if not _holds(ROOT / "docs" / name, text)
    ]
    for name, path in sources().items():
        target = ROOT / "notebooks" / f"{name}.ipynb"
        if not _holds(target, dump(learner_notebook(path))):
            problems.append(f"{target.relative_to(ROOT)} is stale: run `mechlab build`.")
        target = ROOT / "solutions" / f"{name}.ipynb"
        if not _is_fresh(target, solution_notebook(path)):
            problems.append(f"{target.relative_to(ROOT)} is stale: run `mechlab build --execute`.")
    known = sources().keys()
    for folder in ("notebooks", "solutions"):
        for file in (ROOT / folder).glob("*.ipynb"):
            if file.stem not in known:
                problems.append(f"{file.relative_to(ROOT)} has no source in course/.")
    return problems


def _is_fresh(target: Path, expected: dict) -> bool:
    """The executed notebook has these very cells, and really was executed."""
    if not target.exists():
        return False
    executed = json.loads(target.read_text(encoding="utf-8"))
    bare = lambda nb: [(c["cell_type"], c["id"], c["metadata"], "".join(c["source"])) for c in nb["cells"]]
    counts = [c["execution_count"] for c in executed["cells"] if c["cell_type"] == "code"]
    return bare(executed) == bare(expected) and None not in counts


def _holds(target: Path, text: str) -> bool:
    return target.exists() and target.read_text(encoding="utf-8") == text


def _write(target: Path, text: str) -> bool:
    """Write a file unless it holds this text already; True when it was written."""
    target.parent.mkdir(exist_ok=True)
    if _holds(target, text):
        return False
    target.write_text(text, encoding="utf-8")
    return True
