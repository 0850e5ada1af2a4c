"""The sheet that Moodle or Canvas exported, filled in with grades, and the pages named as they expect them.

Only the bytes of the grade cells change. What the two systems read was learnt from their published code
(Moodle: mod/assign/feedback/offline and feedback/file; Canvas: gradebook_importer, abstract_assignment);
neither was at hand to try.
"""

import re
import zipfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from mechlab_course.grading.grades import GradingError
from mechlab_course.grading.submissions import Learner
from mechlab_course.grading.tables import MARK, Cell, decoded, number, places, separator

SYSTEMS = ("moodle", "canvas")
_KEPT = ("EX", "N/A")  # Canvas: excused, and not asked of this learner
_ASSIGNMENT = re.compile(r"(.*) \((\d+)\)")  # Canvas's titles carry the number
_HANDED_IN = "Last modified (submission)"
_TIMES = ("%A, %d %B %Y, %I:%M %p", "%A, %d %B %Y, %H:%M")  # Moodle's, in English


@dataclass(frozen=True)
class Row:
    """A learner's: the name as the sheet and as submissions have it, the cell of the grade, a time."""

    shown: str
    alike: str
    grade: Cell
    handed_in: str = ""


@dataclass(frozen=True)
class Sheet:
    """The sheet: rows by the learners' numbers, and the most points there are, as the sheet writes them."""

    system: str
    name: str
    text: str
    mark: bytes
    comma: str
    rows: dict[str, Row]
    most: str

    def number_of(self, learner: Learner) -> str:
        """The number of the learner's row: by the key, or, of one whose files tell none, by the full name."""
        if learner.key:
            known = learner.key.system == self.system and learner.key.id in self.rows
            return learner.key.id if known else ""
        same = [id for id, row in self.rows.items() if row.alike == _alike(self.system, learner.name)]
        return same[0] if len(same) == 1 else ""

    def times(self) -> dict[str, datetime]:
        """When they handed in, by number, where the sheet tells it in English."""
        found = {id: _time(row.handed_in) for id, row in self.rows.items()}
        return {id: when for id, when in found.items() if when}

    def filled(self, points: dict[str, float], out_of: float) -> bytes:
        """The sheet's bytes with these points, by number, scaled to the most that the sheet has."""
        most, parts, at = number(self.most), [], 0
        scale = most / out_of if most and out_of else 1.0
        cells = {id: self.rows[id].grade for id in points}
        for id, cell in sorted(cells.items(), key=lambda item: item[1].start):
            parts += [self.text[at : cell.start], self._written(points[id] * scale, cell)]
            at = cell.end
        return self.mark + "".join([*parts, self.text[at:]]).encode()

    def _written(self, value: float, cell: Cell) -> str:
        """A number as this sheet writes them."""
        shown = f"{value:.2f}".rstrip("0").rstrip(".")
        shown = shown.replace(".", ",") if "," in self.most else shown
        quoted = self.text[cell.start : cell.start + 1] == '"' or self.comma in shown
        return f'"{shown}"' if quoted else shown


def read(path: Path, system: str, column: str = "") -> Sheet:
    """Read a grading worksheet of Moodle, or a gradebook of Canvas. column: the title of what is graded."""
    if system not in SYSTEMS:
        raise GradingError(f"--lms is one of {', '.join(SYSTEMS)}, not {system!r}.")
    text = decoded(path)
    comma = separator(text)
    table = [row for row in places(text, comma, path.name) if any(cell.text.strip() for cell in row)]
    if not table:
        raise GradingError(f"{path.name} is empty.")
    for row in table:
        if len(row) != len(table[0]):
            line = text.count("\n", 0, row[0].start) + 1
            raise GradingError(
                f"{path.name}, line {line}: {len(row)} cells, but the first line has {len(table[0])}."
            )
    rows, most = (_moodle if system == "moodle" else _canvas)(table, column, path.name)
    mark = MARK if path.read_bytes().startswith(MARK) else b""
    return Sheet(system, path.name, text, mark, comma, rows, most)


def _moodle(table: list[list[Cell]], column: str, file: str) -> tuple[dict[str, Row], str]:
    """Rows and most points of a grading worksheet. In every language the first column is the number."""
    head = [cell.text.strip() for cell in table[0]]
    grade, rows = _place(head, column or "Grade", file), {}
    when = head.index(_HANDED_IN) if _HANDED_IN in head else None
    named = int("Full name" in head or "Identifier" not in head)  # where marking is blind, there are no names
    for row in table[1:]:
        id = re.search(r"(\d+)\s*$", row[0].text)
        if not id:
            raise GradingError(f"{file}: no grading worksheet of Moodle, whose first column is Identifier.")
        name = row[named].text
        handed_in = "" if when is None else row[when].text
        rows[id[1]] = Row(f"{name} ({id[1]})", _alike("moodle", name), row[grade], handed_in)
    most = {row[grade + 1].text for row in table[1:]} if grade + 1 < len(head) else set()
    return rows, most.pop() if len(most) == 1 else ""


def _canvas(table: list[list[Cell]], column: str, file: str) -> tuple[dict[str, Row], str]:
    """Rows and most points of a gradebook: rows without a number are not learners'."""
    head = [cell.text.strip() for cell in table[0]]
    if "ID" not in head or head[0] not in ("Student", "LastName"):
        raise GradingError(f"{file}: no gradebook of Canvas, which begins with Student and ID.")
    titles = [title for title in head if _ASSIGNMENT.fullmatch(title)]
    if not column and len(titles) != 1:
        listed = ", ".join(map(repr, titles)) or "none is there"
        raise GradingError(f"{file}: say with --column which assignment is graded: {listed}.")
    meant = [
        title for title in titles if not column or column in (title, *_ASSIGNMENT.fullmatch(title).groups())
    ]
    grade, at, most, rows = (
        _place(head, meant[0] if len(meant) == 1 else column, file),
        head.index("ID"),
        "",
        {},
    )
    for row in table[1:]:
        id, names = row[at].text.strip(), row[:at]
        if "Points Possible" in row[0].text:
            most = row[grade].text.strip()
        elif id.isdecimal():
            shown = ", ".join(cell.text.strip() for cell in names)
            rows[id] = Row(shown, _alike("canvas", shown), row[grade])
    return rows, most


def _place(head: list[str], title: str, file: str) -> int:
    if title not in head:
        raise GradingError(
            f"{file} has no column {title!r}. Say with --column which it is: {', '.join(head)}."
        )
    return head.index(title)


def _alike(system: str, name: str) -> str:
    """A full name as it stands in the names of submissions: Canvas leaves letters only."""
    return re.sub(r"[\W_]", "", name).lower() if system == "canvas" else " ".join(name.split())


def _time(text: str) -> datetime | None:
    for form in _TIMES:
        try:
            return datetime.strptime(" ".join(text.split()), form)
        except ValueError:
            continue
    return None


@dataclass(frozen=True)
class Filled:
    """What came of filling a sheet: its bytes, whose row is which, and what a person should know."""

    data: bytes
    numbers: dict[str, str]  # the row's number, by the learner's name
    remarks: list[str]


def fill(sheet: Sheet, learners: list[Learner], points: list[float], out_of: float) -> Filled:
    """Give each learner's points to their row; those who are on one side only are named."""
    given, numbers, strange, kept = {}, {}, [], []
    for learner, earned in zip(learners, points, strict=True):
        id = sheet.number_of(learner)
        if not id or id in numbers.values():
            strange.append(learner.name)
            continue
        numbers[learner.name] = id
        if sheet.rows[id].grade.text.strip().upper() in _KEPT:
            kept.append(learner.name)
        else:
            given[id] = earned
    silent = [row.shown for id, row in sheet.rows.items() if id not in numbers.values()]
    remarks, most = [], number(sheet.most)
    if most and out_of and most != out_of:
        remarks.append(f"The sheet has {most:g} points for what is worth {out_of:g} here: all were scaled.")
    for who, text in (
        (silent, "In the sheet, but handed in nothing; their cells are as they were"),
        (strange, "Handed in, but not in the sheet"),
        (kept, "Excused or not asked, says the sheet; their cells are as they were"),
    ):
        remarks += [f"{text}: {'; '.join(who)}."] if who else []
    return Filled(sheet.filled(given, out_of), numbers, remarks)


def pack(out: Path, sheet: Sheet, numbers: dict[str, str], pages: list[tuple[Learner, str]]) -> list[str]:
    """Write the pages into the zip file that the system takes; those whom it has no place for are named.

    Canvas takes a page only as an answer to a file that was handed in, and shows it under that file's name.
    """
    left = []
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for learner, page in pages:
            id, file = numbers.get(learner.name, ""), learner.key.file if learner.key else ""
            if not id or (sheet.system == "canvas" and not file):
                left.append(learner.name)
                continue
            name = re.sub(r"[^\w.-]|_", " ", learner.name).strip() or "learner"
            name = f"{name}_{id}_assignsubmission_file_feedback.html"
            if sheet.system == "canvas":
                name = f"{sheet.rows[id].alike}_{id}_{file}_feedback.html"
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, page, zipfile.ZIP_DEFLATED)
    return left
