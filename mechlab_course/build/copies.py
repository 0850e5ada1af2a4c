"""A learner's file: read with care, found under another name, written whole or not at all.

It belongs to the learner. Nothing is written over a notebook that is open in JupyterLab, where what they have
typed is perhaps not saved yet, nor over one that they have made read-only.
"""

import errno
import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

COPIES = "notebooks"  # inside work/: the learner's copies, beside docs/, so that links keep working
UNREADABLE = (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError)
OPEN = (
    "open in JupyterLab. There: File > Close and Shut Down Notebook (its tab is closed already? Stop its "
    "kernel in the left panel). Then run this again."
)


def load(path: Path) -> dict:
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


def readable(paths: list[Path]) -> Iterator[dict]:
    """Those notebooks that can be read."""
    for path in paths:
        with suppress(*UNREADABLE):
            yield load(path)


def said(error: Exception) -> str:
    """What went wrong with a file, in a few words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def dumped(notebook: dict) -> bytes:
    """A notebook as it is written."""
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a letter, which only JSON's own way of writing it can hold
        return (json.dumps(notebook, indent=1) + "\n").encode()


def save(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, where its links lead; an `OSError` leaves it as it was."""
    real = path.resolve()
    if real.is_file() and not real.stat().st_mode & 0o222:
        raise PermissionError(errno.EACCES, "it is read-only", str(path))
    written = real.with_name(f".{real.name}.new")
    try:
        written.write_bytes(data)
        if real.exists():
            shutil.copymode(real, written)
        written.replace(real)
    except OSError:
        with suppress(OSError):
            written.unlink()
        raise


def back_up(path: Path, work: Path) -> Path:
    """Keep a notebook as it is now; returns where, seen from `work`."""
    folder, stamp, count = work / "backup", datetime.now().strftime("%Y%m%d-%H%M%S"), 1
    folder.mkdir(exist_ok=True)
    backup = folder / f"{path.stem}-{stamp}.ipynb"
    while backup.exists():
        count += 1
        backup = folder / f"{path.stem}-{stamp}-{count}.ipynb"
    save(backup, path.read_bytes())
    return backup.relative_to(work)


def copy_of(source: Path, work: Path) -> Path:
    """The learner's copy of a notebook; where they have renamed it, the one file that comes from it."""
    target = work / COPIES / source.name
    if os.path.lexists(target):
        return target
    others = [path for path, origin in renamed(source.parent, work) if origin == source.name]
    return others[0] if len(others) == 1 else target


def renamed(notebooks: Path, work: Path) -> Iterator[tuple[Path, str]]:
    """Each notebook under a name of the learner's, with the name of the course's that it comes from."""
    known = {path.name for path in notebooks.glob("*.ipynb")}
    for path in sorted((work / COPIES).glob("*.ipynb")):
        if path.name not in known and not path.name.startswith("."):
            for notebook in readable([path]):
                if origin := _origin(notebook, notebooks):
                    yield path, origin


def _origin(notebook: dict, notebooks: Path) -> str | None:
    """The name that its metadata says; else that of a notebook with which it shares half of the cells."""
    about = notebook.get("metadata")
    mark = about.get("mechlab") if isinstance(about, dict) else None
    name = f"{mark.get('notebook')}.ipynb" if isinstance(mark, dict) else ""
    if (notebooks / name).is_file() and name:
        return name
    ids = {str(cell.get("id")) for cell in notebook["cells"]}
    for source in sorted(notebooks.glob("*.ipynb")):
        for theirs in readable([source]):
            given = {str(cell["id"]) for cell in theirs["cells"] if "id" in cell}
            if given and len(given & ids) >= len(given) / 2:
                return source.name
    return None


def is_open(path: Path) -> bool:
    """Whether a JupyterLab of this user has the notebook open, as far as the running ones can be asked."""
    try:
        from jupyter_core.paths import jupyter_runtime_dir
    except ImportError:
        return False
    ask = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
    for file in Path(jupyter_runtime_dir()).glob("jpserver-*.json"):
        with suppress(*UNREADABLE):
            server = json.loads(file.read_text(encoding="utf-8"))
            root = Path(server["root_dir"])
            with ask(f"{server['url']}api/sessions?token={server['token']}", timeout=3) as answer:
                if any((root / session["path"]).resolve() == path.resolve() for session in json.load(answer)):
                    return True
    return False
