"""Tables that a person edits in a spreadsheet: read in the forms in which those save them, written safely."""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mechlab_course.grading.grades import GradingError

MARK = b"\xef\xbb\xbf"  # by which Excel knows UTF-8
_FORMULA = ("=", "+", "-", "@")


def rows_of(path: Path, needed: Iterable[str]) -> list[dict[str, str]]:
    """The rows by the names of their columns; refused, by name, where one that is needed is missing."""
    text = decoded(path)
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator(text), restval="")
    missing = [name for name in needed if name not in (table.fieldnames or ())]
    if missing:
        there = ", ".join(table.fieldnames or ())
        raise GradingError(f"{path.name} has no column {', '.join(missing)}. Its columns are {there}.")
    return [{key: plain(cell.strip()) for key, cell in row.items() if key} for row in table]


def decoded(path: Path) -> str:
    """The text of a file in UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise GradingError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise GradingError(f"{path.name} is not in UTF-8. In Excel save it as `CSV UTF-8`.") from None


def separator(text: str) -> str:
    """What stands between two cells: in some countries spreadsheets write a semicolon."""
    head = text.partition("\n")[0]
    return max(",;\t", key=head.count)


def written(columns: list[str], rows: Iterable[Iterable[str]]) -> bytes:
    """The bytes of a table: UTF-8 with the mark that Excel needs, and that Moodle and Canvas accept."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(columns)
    table.writerows([no_formula(cell) for cell in row] for row in rows)
    return MARK + text.getvalue().encode()


def no_formula(text: str) -> str:
    """A spreadsheet takes what begins so for a formula, and would run it."""
    return f"'{text}" if text.lstrip()[:1] in _FORMULA else text


def plain(text: str) -> str:
    """The cell as it was before `no_formula`."""
    return text[1:] if text[:1] == "'" and text[1:].lstrip()[:1] in _FORMULA else text


def number(text: str) -> float | None:
    """The number in a cell, with a point or a comma; None if it holds no plain number."""
    try:
        value = float(text.strip().replace(",", "."))
    except ValueError:
        return None
    return value if abs(value) < 1e9 else None


@dataclass(frozen=True)
class Cell:
    """A cell, and where in the text of its file it stands."""

    start: int
    end: int
    text: str


def places(text: str, comma: str, file: str) -> Iterator[list[Cell]]:
    """The rows of a table with the place of each cell, so that one can be changed and the rest left alone."""
    one, line_end = re.compile(rf'"((?:[^"]|"")*)"|([^{comma}\r\n]*)'), re.compile(r"\r\n|\r|\n|$")
    row, at = [], 0
    while True:
        found = one.match(text, at)
        inner = found[2] if found[1] is None else found[1].replace('""', '"')
        row.append(Cell(at, found.end(), inner))
        at = found.end()
        if text[at : at + 1] == comma:
            at += 1
            continue
        yield row
        end = line_end.match(text, at)
        if not end:
            line = text.count("\n", 0, at) + 1
            raise GradingError(f"{file}, line {line}: a quotation mark in the middle of a cell.")
        if end.end() >= len(text):
            return
        row, at = [], end.end()
