"""A restarted kernel has forgotten every name; a NameError for one of the notebook's then says what to do.

`mechlab lab` lets its kernels watch before the first cell (startup.py), other front ends do so
once the setup cell has run.
"""

import json
import os
import re
import symtable
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mechlab.waiting import kernel_shell
from mechlab_course import cells, folders

ADVICE = """`{}` is made by a cell {} that has not run since the kernel was started.
(A restart forgets everything.) Click this cell, then choose {}.
Your answers and your progress stay."""


def watch() -> None:
    """In the kernel of a notebook: add a sentence to a NameError that a restart explains."""
    shell = kernel_shell()
    if shell is not None and not shell.custom_exceptions:
        shell.set_custom_exc((NameError,), _shown)


def _shown(shell: Any, kind: type, error: NameError, trace: Any, tb_offset: int | None = None) -> None:
    if kind is NameError and error.name:
        this = shell.user_ns.get("In", [""])[-1]
        if advice := unquoted(error.name, this) or advice_for(error.name, this, list(_notebooks(shell))):
            error.add_note(advice)
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset, running_compiled_code=True)


def unquoted(name: str, this: str) -> str:
    """What to do if the cell answers a question, or predicts, with a word that has no quotes; else ""."""
    called = re.search(rf"\b(quiz|predict)\((.+?), *{re.escape(name)} *\)", this)
    return f'Write the answer in quotes: {called[1]}({called[2]}, "{name}").' if called else ""


def advice_for(name: str, this: str, notebooks: list[list[str]]) -> str:
    """What to do, if a cell above `this` one makes the name; "" if none does.

    notebooks: the code cells of the one that runs, or of all those that it may be.
    """
    this = this.strip()
    for texts in notebooks if len(notebooks) == 1 else [each for each in notebooks if this in each]:
        above = texts[: texts.index(this)] if this in texts else texts  # else it is not saved yet
        if any(name in made_by(text) for text in above):
            where = "further up" if this in texts else "of this notebook"
            return ADVICE.format(name, where, _menu())
    return ""


def made_by(text: str) -> set[str]:
    """The names that a cell makes."""
    try:
        symbols = symtable.symtable(cells.parsed(text)[0], "cell", "exec").get_symbols()
    except cells.UNREADABLE:
        return set()
    return {each.get_name() for each in symbols if each.is_assigned() or each.is_imported()}


def _menu() -> str:
    main = vars(sys.modules["__main__"])
    if "google.colab" in sys.modules:
        return "Runtime > Run before"
    return "Execute Above Cells" if "__vsc_ipynb_file__" in main else "Run > Run All Above Selected Cell"


def _notebooks(shell: Any) -> Iterator[list[str]]:
    """The code cells of the notebook of this kernel; where its file is not told, of each of the course."""
    path = shell.user_ns.get("__vsc_ipynb_file__") or os.environ.get("JPY_SESSION_NAME", "")
    files = [Path(path)] if path.endswith(".ipynb") else sorted((folders.ROOT / "notebooks").glob("*.ipynb"))
    for file in files:
        try:
            made = json.loads(file.read_text(encoding="utf-8-sig"))["cells"]
            yield ["".join(cell["source"]).strip() for cell in made if cell["cell_type"] == "code"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
