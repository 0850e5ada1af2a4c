"""Find what learners handed in, and read it without trusting it.

One sub-folder a learner (of any depth inside), or files directly in the folder. Whose file it is:

- what Moodle or Canvas say in the name of the folder or file (keys.py), with the number they know them by;
- else a sub-folder's name;
- else a file's name up to `__`, or up to `_` and the name of a notebook of the course, or else all of it.

Two of the same name whom the system tells apart are called `Li Na (1001)` and `Li Na (1002)`.

Zip files are read in memory and never unpacked. Links are not followed. What cannot be read is a problem of
that file.
"""

import io
import json
import os
import re
import stat
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mechlab_course.cells import foreign
from mechlab_course.grading.answers import Answer, find, in_words
from mechlab_course.grading.keys import Key, key_of

LARGEST = 50_000_000  # bytes of one file, and of what one zip file holds
MOST = 200  # files of one learner
READ = (".ipynb", ".py", ".zip")
PACKED = (".rar", ".7z", ".tar", ".gz", ".tgz", ".bz2", ".xz")
ADDED = (".txt", ".json", ".download", ".bak", ".tmp")  # what browsers and mail programs put behind a name
_NUMBERED = re.compile(r"\s*\(\d+\)$")  # of a second download
_COPY = re.compile(r"(?:^|(?<=_))copy of[ _]", re.IGNORECASE)  # Colab's and Drive's


class Unreadable(Exception):
    """A file that cannot be graded; the text is for the learner."""


@dataclass
class Learner:
    """Whose answers they are, and what of the files could not be read."""

    name: str
    key: Key | None = None  # what a learning system knows them by
    team: str = ""
    days_late: int = 0
    files: int = 0
    answers: list[Answer] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def is_flagged(self) -> bool:
        """Whether Canvas wrote LATE into the name of a file."""
        return bool(self.key and self.key.late)


def collect(folder: Path, stems: list[str]) -> list[Learner]:
    """Everyone in the folder, by name. `stems` are the names of the course's notebooks."""
    entries = sorted(
        (e for e in folder.iterdir() if not _passed_over(e.name)), key=lambda e: in_order(e.name)
    )
    folders = [e for e in entries if e.is_dir() and not e.is_symlink()]
    whose = {}
    for entry in entries:
        if entry in folders:
            name, key, _ = key_of(spelt(entry.name))
            whose[entry] = name, key
        elif entry.is_symlink() or _kind(entry) or _is_a_submission(entry.name, stems):
            whose[entry] = owner(spelt(entry.name), stems)  # the rest is a list of names, a teacher's note
    numbers = defaultdict(set)  # by which the bearers of a name are known
    for name, key in whose.values():
        numbers[name] |= {key.id} if key else set()
    learners: dict[str, Learner] = {}
    for entry, (name, key) in whose.items():
        name = f"{name} ({key.id})" if key and len(numbers[name]) > 1 else name
        learner = learners.setdefault(name, Learner(name))
        learner.key = key.joined(learner.key) if key else learner.key
        _take_all(learner, entry, entry if entry in folders else folder)
    return sorted(learners.values(), key=lambda learner: (learner.name.casefold(), learner.name))


def _take_all(learner: Learner, entry: Path, top: Path) -> None:
    """Add the answers of a learner's folder or file; names are shown as they are below `top`."""
    others = []
    for path in _files(entry):
        if not path.is_symlink() and not _kind(path):
            others.append(spelt(path.name))
            if path.suffix.lower() in PACKED or entry != top:
                learner.problems.append(f"{spelt(path.name)}: {_NOT_READ}")
            continue
        learner.files += 1
        if learner.files > MOST:
            learner.problems.append(f"More than {MOST} files; the rest was not read.")
            break
        _take(learner, path, spelt(path.relative_to(top).as_posix()))
    if not learner.files and not learner.problems:
        only = f", only {', '.join(others[:5])}" if others else ""
        learner.problems.append(f"{spelt(entry.name)}: there is no notebook (.ipynb) in it{only}.")


def owner(file: str, stems: list[str]) -> tuple[str, Key | None]:
    """Whose file it is, from its name."""
    name, key, _ = key_of(file)
    if key:
        return name, key
    stem = _NUMBERED.sub("", Path(file).stem)
    while Path(stem).suffix.lower() in (*READ, *ADDED):
        stem = _NUMBERED.sub("", Path(stem).stem)
    stem = _COPY.sub("", stem)
    before, mark, _ = stem.partition("__")
    if not (mark and before):
        lower = stem.lower()
        place = min((at for s in stems if (at := lower.find(f"_{s.lower()}")) > 0), default=len(stem))
        before = stem[:place]
    return before or stem, None


def spelt(name: str) -> str:
    """A name in one spelling: a Mac writes an umlaut as two letters, and an old locale knows none."""
    with suppress(UnicodeError):
        name = os.fsencode(name).decode()
    return unicodedata.normalize("NFC", name)


def in_order(name: str) -> list:
    """For sorting: `12.ipynb`, `12 (1).ipynb`, `12 (2).ipynb`, `12 (10).ipynb`. The last is the newest."""
    stem, dot, rest = spelt(name).partition(".")
    parts = re.split(r"(\d+)", stem)
    return [[(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts], dot + rest]


def kind_of(name: str, start: bytes = b"") -> str:
    """What a file is to be read as: one of `READ`, or "" for none.

    start: its first bytes, which tell a notebook with another ending, such as `12.json`, from other files.
    """
    path = Path(_NUMBERED.sub("", name.strip().rstrip(".")))
    last = path.suffix.lower()
    while path.suffix.lower() in ADDED:
        path = Path(_NUMBERED.sub("", path.stem))
    if path.suffix.lower() in READ:
        return path.suffix.lower()
    text = start.replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \r\n\t")
    looks_so = text[:1] == b"{" and any(mark in text for mark in (b'"cell', b'"nbformat', b'"worksheets'))
    return ".ipynb" if looks_so and last in ("", *ADDED) else ""


def _kind(path: Path) -> str:
    """The same of a file on the disk, without opening what is no plain file."""
    known = kind_of(path.name)
    if known or path.suffix.lower() not in ("", *ADDED) or path.is_symlink() or not path.is_file():
        return known
    try:
        with path.open("rb") as file:
            return kind_of(path.name, file.read(5000))
    except OSError:
        return ""


_NOT_READ = "not read. Only notebooks (.ipynb), scripts (.py) and zip files (.zip) are."


def _is_a_submission(name: str, stems: list[str]) -> bool:
    """Whether a file that cannot be read is somebody's: packed, or named after a notebook or a learner."""
    named = key_of(name)[1] or any(stem.lower() in name.lower() for stem in stems)
    return Path(name).suffix.lower() in PACKED or bool(named)


def _passed_over(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _files(entry: Path) -> Iterator[Path]:
    if entry.is_symlink() or not entry.is_dir():
        yield entry
        return
    for folder, inner, names in os.walk(entry):
        linked = [name for name in inner if (Path(folder) / name).is_symlink()]
        inner[:] = sorted((n for n in inner if not _passed_over(n) and n not in linked), key=in_order)
        here = sorted([*names, *linked], key=in_order)
        yield from (Path(folder) / name for name in here if not _passed_over(name))


def _take(learner: Learner, path: Path, shown: str) -> None:
    """Add the answers of one file; whatever is wrong with it costs that file only."""
    try:
        data, kind = _bytes(path), _kind(path)
        if kind == ".zip":
            _unzip(learner, data, shown)
        else:
            _read(learner, data, kind, shown)
    except Unreadable as error:
        learner.problems.append(f"{shown}: {error}.")
    except OSError as error:
        learner.problems.append(f"{shown}: {error.strerror or 'cannot be read'}.")


def _read(learner: Learner, data: bytes, kind: str, shown: str) -> None:
    """Add the answers of a notebook or a script; a notebook in another language has a sentence with them."""
    file = shown.rpartition("/")[2].lower()
    try:
        notebook = None if kind == ".py" else loaded(data)
        learner.answers += [*find(cells(data, kind), shown), *in_words(cells(data, kind, "markdown"), shown)]
    except Unreadable as error:
        if file.endswith((".json", ".txt")) and ".ipynb" not in file and "no list of cells" in str(error):
            return  # settings of a program, not a notebook
        raise
    if language := foreign(notebook or {}):
        learner.problems.append(
            f"{shown}: its kernel is for {language}. The answers of the course are in Python."
        )


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
            members = sorted(archive.infolist(), key=lambda m: in_order(m.filename))
            if len(members) > 10 * MOST:
                raise Unreadable(f"the zip file holds {len(members)} files")
            for member in members:
                parts = re.split(r"[/\\]", member.filename)
                if member.is_dir() or any(_passed_over(part) and part != ".." for part in parts):
                    continue
                name, suffix = f"{shown}/{spelt(member.filename)}", Path(parts[-1]).suffix.lower()
                if ".." in parts or member.filename.startswith(("/", "\\")) or ":" in parts[0]:
                    learner.problems.append(
                        f"{name}: its name leads out of the zip file, so it was not read."
                    )
                elif stat.S_ISLNK(member.external_attr >> 16):
                    learner.problems.append(f"{name}: a link to somewhere else, which is not followed.")
                elif suffix == ".zip":
                    learner.problems.append(f"{name}: a zip file within a zip file, so it was not read.")
                elif suffix in PACKED:
                    learner.problems.append(f"{name}: {_NOT_READ}")
                elif kind := _kind_in(archive, member, parts[-1]):
                    with archive.open(member) as file:
                        content = file.read(left + 1)
                    left -= len(content)
                    if left < 0:
                        raise Unreadable(f"it unpacks to more than {LARGEST // 1_000_000} MB")
                    learner.files += 1
                    try:
                        _read(learner, content, kind, name)
                    except Unreadable as error:
                        learner.problems.append(f"{name}: {error}.")
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, ValueError, OSError) as error:
        raise Unreadable(f"not a readable zip file ({error})") from None
    except Exception as error:  # zlib and lzma have errors of their own
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(f"a damaged zip file ({type(error).__name__})") from None


def _kind_in(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> str:
    """What a file in a zip file is to be read as."""
    if kind_of(name) or Path(name).suffix.lower() not in ("", *ADDED):
        return kind_of(name)
    with archive.open(member) as file:
        return kind_of(name, file.read(5000))


def cells(data: bytes, suffix: str = ".ipynb", type: str = "code") -> list[str]:
    """The cells of a notebook of any nbformat, or of a script that Colab or VS Code made of one.

    type: "code" or "markdown"; in a script, text stands in comments.
    """
    if suffix.lower() == ".py":
        parts = re.split(r"(?m)^# (?:%%|In\[).*$", _text(data))
        return parts if type == "code" else [re.sub(r"(?m)^# ?", "", each) for each in parts]
    notebook = loaded(data)
    try:
        sheets = notebook["worksheets"] if "worksheets" in notebook else [notebook]
        listed = [cell for sheet in sheets for cell in sheet["cells"]]
        found = [c.get("source", c.get("input", "")) for c in listed if c.get("cell_type") == type]
        return [text if isinstance(text, str) else "".join(text) for text in found]
    except (KeyError, TypeError, AttributeError):
        raise Unreadable("JSON, but not a notebook: it has no list of cells") from None


def loaded(data: bytes) -> dict:
    """What the JSON of a notebook says."""
    text = _text(data)
    if not text.strip():
        raise Unreadable("the file is empty")
    try:
        return json.loads(text)
    except ValueError as error:
        ends = len(text) - getattr(error, "pos", 0) < 3 or "Unterminated" in str(error)
        cut = "; it seems to be cut off" if ends else ""
        cut = "; it seems to be a web page" if text.lstrip()[:1] == "<" else cut
        raise Unreadable(f"not a notebook: no valid JSON ({error}){cut}") from None
    except RecursionError:
        raise Unreadable("not a notebook: nested too deeply") from None


def _text(data: bytes) -> str:
    """UTF-8, or what Windows calls Unicode, with or without a mark at the start."""
    marks = {
        b"\xff\xfe\0\0": "utf-32",
        b"\0\0\xfe\xff": "utf-32",
        b"\xff\xfe": "utf-16",
        b"\xfe\xff": "utf-16",
    }
    form = next((form for mark, form in marks.items() if data.startswith(mark)), "utf-8-sig")
    if form == "utf-8-sig" and len(data) > 3 and data[:2].count(0) == 1:
        form = "utf-16-be" if data[0] == 0 else "utf-16-le"
    try:
        return data.decode(form).lstrip("\ufeff")
    except UnicodeDecodeError:
        raise Unreadable("not text in UTF-8, so not a notebook") from None
