"""Find what learners handed in, and read it without trusting it.

One sub-folder a learner (of any depth inside), or files directly in the folder. Whose file it is:

- a sub-folder's name, less what Moodle adds: `Jane Doe_12345_assignsubmission_file` is Jane Doe, unless two
  would then be the same;
- a file's name up to `__`, or else up to `_` and the name of a notebook of the course, less what Canvas adds
  (`doejane_LATE_123_456_11_input_attribution-1.ipynb` is doejane), or else all of it.

Zip files are read in memory and never unpacked. Links are not followed. What cannot be read is a problem of
that file.
"""

import io
import json
import os
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mechlab_course.grading.answers import Answer, find

LARGEST = 50_000_000  # bytes of one file, and of what one zip file holds
MOST = 200  # files of one learner
READ = (".ipynb", ".py", ".zip")
_MOODLE = re.compile(r"_\d+_assignsubmission_[a-z]+_?$")
_CANVAS = re.compile(r"(_late)?_\d+_\d+$", re.IGNORECASE)


class Unreadable(Exception):
    """A file that cannot be graded; the text is for the learner."""


@dataclass
class Learner:
    """Whose answers they are, and what of the files could not be read."""

    name: str
    files: int = 0
    answers: list[Answer] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def collect(folder: Path, stems: list[str]) -> list[Learner]:
    """Everyone in the folder, by name. `stems` are the names of the course's notebooks."""
    entries = [e for e in sorted(folder.iterdir()) if not _passed_over(e.name)]
    folders = [e for e in entries if e.is_dir() and not e.is_symlink()]
    short = Counter(_MOODLE.sub("", e.name) for e in folders)
    learners: dict[str, Learner] = {}
    for entry in entries:
        if entry in folders:
            name = _MOODLE.sub("", entry.name)
            name = name if short[name] == 1 else entry.name
        elif entry.suffix.lower() in READ or entry.is_symlink():
            name = owner(entry.name, stems)
        else:
            continue  # a list of names, a note of the teacher
        learner = learners.setdefault(name, Learner(name))
        for path in _files(entry):
            if path.suffix.lower() not in READ and not path.is_symlink():
                continue
            learner.files += 1
            if learner.files > MOST:
                learner.problems.append(f"More than {MOST} files; the rest was not read.")
                break
            _take(learner, path, path.relative_to(entry if entry in folders else folder).as_posix())
        if not learner.files:
            learner.problems.append(f"{entry.name}: there is no notebook (.ipynb) in it.")
    return sorted(learners.values(), key=lambda learner: (learner.name.casefold(), learner.name))


def owner(file: str, stems: list[str]) -> str:
    """Whose file it is, from its name."""
    stem = Path(file).stem
    before, mark, _ = stem.partition("__")
    if not (mark and before):
        place = min((at for s in stems if (at := stem.find(f"_{s}")) > 0), default=len(stem))
        before = stem[:place]
    return _CANVAS.sub("", before) or stem


def _passed_over(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _files(entry: Path) -> Iterator[Path]:
    if entry.is_symlink() or not entry.is_dir():
        yield entry
        return
    for folder, inner, names in os.walk(entry):
        linked = [name for name in inner if (Path(folder) / name).is_symlink()]
        inner[:] = sorted(name for name in inner if not _passed_over(name) and name not in linked)
        yield from (Path(folder) / name for name in sorted([*names, *linked]) if not _passed_over(name))


def _take(learner: Learner, path: Path, shown: str) -> None:
    """Add the answers of one file; whatever is wrong with it costs that file only."""
    try:
        data = _bytes(path)
        if path.suffix.lower() == ".zip":
            _unzip(learner, data, shown)
        else:
            learner.answers += find(cells(data, path.suffix), shown)
    except Unreadable as error:
        learner.problems.append(f"{shown}: {error}.")
    except OSError as error:
        learner.problems.append(f"{shown}: {error.strerror or 'cannot be read'}.")


def _bytes(path: Path) -> bytes:
    if path.is_symlink():
        raise Unreadable("a link to somewhere else, which is not followed")
    handle = os.open(
        path,
        os.O_RDONLY
        | getattr(os, "O_NOFOLLOW", 0)
        | getattr(os, "O_NONBLOCK", 0)
        | getattr(os, "O_BINARY", 0),
    )
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise Unreadable("not a plain file")
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise Unreadable(f"larger than {LARGEST // 1_000_000} MB")
    return data


def _unzip(learner: Learner, data: bytes, shown: str) -> None:
    """Read the notebooks of a zip file in memory, up to `LARGEST` bytes in all."""
    left = LARGEST
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = sorted(archive.infolist(), key=lambda m: m.filename)
            if len(members) > 10 * MOST:
                raise Unreadable(f"the zip file holds {len(members)} files")
            for member in members:
                parts = re.split(r"[/\\]", member.filename)
                if member.is_dir() or any(_passed_over(part) and part != ".." for part in parts):
                    continue
                name, suffix = f"{shown}/{member.filename}", Path(parts[-1]).suffix.lower()
                if ".." in parts or member.filename.startswith(("/", "\\")) or ":" in parts[0]:
                    learner.problems.append(
                        f"{name}: its name leads out of the zip file, so it was not read."
                    )
                elif stat.S_ISLNK(member.external_attr >> 16):
                    learner.problems.append(f"{name}: a link to somewhere else, which is not followed.")
                elif suffix == ".zip":
                    learner.problems.append(f"{name}: a zip file within a zip file, so it was not read.")
                elif suffix in READ:
                    with archive.open(member) as file:
                        content = file.read(left + 1)
                    left -= len(content)
                    if left < 0:
                        raise Unreadable(f"it unpacks to more than {LARGEST // 1_000_000} MB")
                    learner.files += 1
                    try:
                        learner.answers += find(cells(content, suffix), name)
                    except Unreadable as error:
                        learner.problems.append(f"{name}: {error}.")
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, ValueError, OSError) as error:
        raise Unreadable(f"not a readable zip file ({error})") from None
    except Exception as error:  # zlib and lzma have errors of their own
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(f"a damaged zip file ({type(error).__name__})") from None


def cells(data: bytes, suffix: str = ".ipynb") -> list[str]:
    """The code cells of a notebook of any nbformat, or of a script that Colab or VS Code made of one."""
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        raise Unreadable("not text in UTF-8, so not a notebook") from None
    if suffix == ".py":
        return re.split(r"(?m)^# (?:%%|In\[).*$", text)
    if not text.strip():
        raise Unreadable("the file is empty")
    try:
        notebook = json.loads(text)
    except ValueError as error:
        cut = "; it seems to be cut off" if len(text) - getattr(error, "pos", 0) < 3 else ""
        raise Unreadable(f"not a notebook: no valid JSON ({error}){cut}") from None
    except RecursionError:
        raise Unreadable("not a notebook: nested too deeply") from None
    try:
        sheets = notebook["worksheets"] if "worksheets" in notebook else [notebook]
        listed = [cell for sheet in sheets for cell in sheet["cells"]]
        code = [c.get("source", c.get("input", "")) for c in listed if c.get("cell_type") == "code"]
        return [text if isinstance(text, str) else "".join(text) for text in code]
    except (KeyError, TypeError, AttributeError):
        raise Unreadable("JSON, but not a notebook: it has no list of cells") from None
