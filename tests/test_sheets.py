"""Moodle's and Canvas's own sheets, imitated: in, filled, and out again; the pages under the names that they read."""

import csv
import io
import json
import re
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mechlab_course.cli import app
from mechlab_course.grading import results
from mechlab_course.grading.grades import GradingError
from mechlab_course.grading.keys import Key, key_of
from mechlab_course.grading.sheets import fill, read
from mechlab_course.grading.submissions import Learner
from tests.handed_in import Told, answer, notebook

run = CliRunner().invoke
RIGHT, WRONG = "return 1  # right", "return 0"
MOODLE = (
    'Identifier,"Full name","Email address",Status,Grade,"Maximum Grade","Grade can be changed",'
    '"Last modified (submission)","Last modified (grade)","Feedback comments"\r\n'
    '"Participant 1001","Anna Schmidt",anna@x.edu,"Submitted for grading",,100.00,Yes,'
    '"Thursday, 26 November 2026, 11:12\u202fPM",-,\r\n'
    '"Participant 1002","Müller, Jörg ""Jo""",jo@x.edu,"Submitted for grading","",100.00,Yes,'
    '"Saturday, 28 November 2026, 9:00 AM",-,"two\r\nlines"\r\n'
    '"Participant 1003","Roe, Jane",jane@x.edu,"No submission",40.00,100.00,Yes,-,-,\r\n'
)
CANVAS = (
    "Student,ID,SIS User ID,SIS Login ID,Section,Reading (77),Heads (81),Current Score\n"
    ",,,,,,Manual Posting,\n"
    "    Points Possible,,,,,5,10,(read only)\n"
    '"Smith, Tom",54321,S1,tsmith,A,3.5,,88\n'
    '"O\'Hara, Éva-Lu",54322,S2,eohara,A,,1,\n'
    '"Poe, Ed",54323,S3,epoe,A,,EX,\n'
    '"Student, Test",54399,,test,A,,,\n'
)


def handed_in(folder: Path, files: dict[str, dict[str, str]]) -> None:
    """Files by name, each with its answers."""
    for name, answers in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(notebook(*(answer(id, lines) for id, lines in answers.items()))))


@pytest.fixture
def grade(tmp_path, monkeypatch):
    """Runs the command over what lies in `in`; nothing is run of the answers."""
    monkeypatch.setattr(results, "Sandbox", Told)

    def graded(system: str, sheet: bytes, *options: str):
        (tmp_path / "sheet.csv").write_bytes(sheet)
        command = ["grade", str(tmp_path / "in"), "--out", str(tmp_path / "out" / "grades.csv")]
        return run(app, [*command, "--lms", system, "--roster", str(tmp_path / "sheet.csv"), *options])

    return graded


def rows(data: bytes, comma: str = ",") -> list[list[str]]:
    return list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), delimiter=comma))


def differing(before: bytes, after: bytes) -> dict[tuple[int, int], tuple[str, str]]:
    """The cells that differ, by line and column."""
    old, new = rows(before), rows(after)
    assert [len(row) for row in old] == [len(row) for row in new]
    cells = [(y, x) for y, row in enumerate(old) for x, _ in enumerate(row)]
    return {(y, x): (old[y][x], new[y][x]) for y, x in cells if old[y][x] != new[y][x]}


def as_moodle_reads(name: str) -> tuple[int, str, str] | None:
    """(participant, part of the assignment, file), by the rule of Moodle's feedback/file/importziplib.php."""
    parts = f"/import/{name}".split("/")
    while parts:
        said = parts.pop(0).split("_", 4)
        if len(said) >= 4 and said[1].isdigit() and said[2:4] == ["assignsubmission", "file"]:
            return int(said[1]), f"{said[2]}_{said[3]}", "/".join([*said[4:], *parts])
    return None


def as_canvas_reads(name: str) -> tuple[str, str]:
    """(user, attachment), by the rule of Canvas's infer_comment_context_from_filename."""
    user, attachment, *_ = [part for part in name.split("_") if part != "LATE" and part.isdigit()]
    return user, attachment


def test_a_worksheet_of_moodle_comes_back_with_grades_and_nothing_else_changed(tmp_path, grade):
    handed_in(tmp_path / "in", {
        "Anna Schmidt_1001_assignsubmission_file/12.ipynb": {"12.1": RIGHT, "12.2": RIGHT},
        "Müller, Jörg_1002_assignsubmission_file_/12.ipynb": {"12.1": RIGHT, "12.2": WRONG},
        "Stranger_1009_assignsubmission_file_/12.ipynb": {"12.1": RIGHT},
    })  # fmt: skip
    sheet = b"\xef\xbb\xbf" + MOODLE.encode()
    done = grade("moodle", sheet)
    assert done.exit_code == 0, done.stdout
    made = (tmp_path / "out" / "filled-sheet.csv").read_bytes()
    assert differing(sheet, made) == {(1, 4): ("", "33.33"), (2, 4): ("", "16.67")}
    assert (
        made.startswith(b"\xef\xbb\xbf")
        and made.replace(b",33.33,", b",,").replace(b'"16.67"', b'""') == sheet
    )
    assert "Handed in, but not in the sheet: Stranger." in done.stdout
    assert "handed in nothing; their cells are as they were: Roe, Jane (1003)." in done.stdout
    assert "The sheet has 100 points for what is worth 6 here: all were scaled." in done.stdout
    with zipfile.ZipFile(tmp_path / "out" / "feedback-moodle.zip") as archive:
        read_back = {as_moodle_reads(name): archive.read(name).decode() for name in archive.namelist()}
    assert set(read_back) == {(n, "assignsubmission_file", "feedback.html") for n in (1001, 1002)}
    assert "2 of 6 points" in read_back[1001, "assignsubmission_file", "feedback.html"]
    assert "No place in the zip file for the pages of Stranger." in done.stdout


def test_a_gradebook_of_canvas_comes_back_with_grades_and_nothing_else_changed(tmp_path, grade):
    handed_in(tmp_path / "in", {
        "smithtom_54321_998879_Copy of 12_direct_logit_attribution.ipynb": {"12.1": RIGHT},
        "smithtom_54321_998880_My solution.ipynb": {"12.2": RIGHT, "12.3": RIGHT},
        "oharaévalu_LATE_54322_998881_12-1.ipynb": {"12.1": RIGHT},
        "poeed_54323_998882_12.ipynb": {"12.1": RIGHT},
        "roejane_54399000_998883_12.ipynb": {"12.1": RIGHT},
    })  # fmt: skip
    assert (
        "say with --column which assignment is graded: 'Reading (77)', 'Heads (81)'"
        in grade("canvas", CANVAS.encode()).stdout
    )
    done = grade("canvas", CANVAS.encode(), "--column", "Heads")
    assert done.exit_code == 0, done.stdout
    made = (tmp_path / "out" / "filled-sheet.csv").read_bytes()
    assert differing(CANVAS.encode(), made) == {(3, 6): ("", "5"), (4, 6): ("1", "1.67")}
    assert made.replace(b"3.5,5,", b"3.5,,").replace(b",1.67,", b",1,") == CANVAS.encode()
    assert "Excused or not asked, says the sheet; their cells are as they were: poeed." in done.stdout
    assert "handed in nothing; their cells are as they were: Student, Test." in done.stdout
    assert "Handed in, but not in the sheet: roejane." in done.stdout
    with zipfile.ZipFile(tmp_path / "out" / "feedback-canvas.zip") as archive:
        read_back = {as_canvas_reads(name): archive.read(name).decode() for name in archive.namelist()}
    assert set(read_back) == {("54321", "998880"), ("54322", "998881"), ("54323", "998882")}
    assert "3 of 6 points" in read_back["54321", "998880"]


def test_a_sheet_in_another_language_has_its_own_comma_and_its_own_titles(tmp_path, grade):
    handed_in(tmp_path / "in", {"Jörg_7_assignsubmission_file/12.ipynb": {"12.1": RIGHT}})
    sheet = "ID;Vollständiger Name;Bewertung;Beste Bewertung\nTeilnehmer/in7;Jörg;-;10,00\n".encode()
    assert (
        "has no column 'Grade'. Say with --column which it is: ID, Vollständiger"
        in grade("moodle", sheet).stdout
    )
    assert grade("moodle", sheet, "--column", "Bewertung").exit_code == 0
    made = (tmp_path / "out" / "filled-sheet.csv").read_bytes()
    assert made == sheet.replace(b"-", b"1,67")


def test_days_late_come_from_the_sheet_and_from_canvas_mark(tmp_path, grade):
    handed_in(tmp_path / "in", {
        "Anna Schmidt_1001_assignsubmission_file/12.ipynb": {"12.1": RIGHT},
        "Jo_1002_assignsubmission_file/12.ipynb": {"12.1": RIGHT},
    })  # fmt: skip
    (tmp_path / "out").mkdir()
    rule = '[late]\ndeadline = 2026-11-26\nper_day = 10\n[late.extra_days]\n"1002" = 1\n'
    (tmp_path / "out" / "grading.toml").write_text(rule)
    assert grade("moodle", MOODLE.encode()).exit_code == 0
    table = csv.DictReader(io.StringIO((tmp_path / "out" / "grades.csv").read_text("utf-8-sig")))
    assert {row["learner"]: (row["days late"], row["total"]) for row in table} == {
        "Anna Schmidt": ("0", "1"),
        "Jo": ("1", "0.9"),  # a day and nine hours, of which one day was granted
    }
    page = (tmp_path / "out" / "feedback" / "Jo.html").read_text()
    assert "Handed in 1 day late: 10 % less, so 0.9 of 6 points." in page
    odd = MOODLE.replace("Thursday, 26 November 2026", "jeudi 26 novembre 2026")
    assert "A time such as 'jeudi 26 novembre 2026" in grade("moodle", odd.encode()).stdout


@pytest.mark.parametrize(
    ("data", "system", "says"),
    [
        (b"", "moodle", "is empty"),
        ("Grade\nÄ".encode("latin-1"), "moodle", "not in UTF-8"),
        (b"Identifier,Full name,Grade\nJohn,John,", "moodle", "no grading worksheet of Moodle"),
        (b"Identifier,Full name,Grade\nP 1,John", "moodle", "line 2: 2 cells, but the first line has 3"),
        (b'Identifier,Full name,Grade\nP 1,"John"x,', "moodle", "line 2: a quotation mark in the middle"),
        (MOODLE.encode(), "canvas", "no gradebook of Canvas"),
        (b"Student,ID,Section\nX,1,A", "canvas", "which assignment is graded: none is there"),
        (CANVAS.encode(), "ilias", "one of moodle, canvas, not 'ilias'"),
    ],
)  # fmt: skip
def test_what_is_no_sheet_is_refused_in_one_sentence(tmp_path, data, system, says):
    (tmp_path / "sheet.csv").write_bytes(data)
    with pytest.raises(GradingError, match=re.escape(says)):
        read(tmp_path / "sheet.csv", system)


def test_a_sheet_of_blind_marking_has_no_names(tmp_path):
    (tmp_path / "sheet.csv").write_text("Identifier,Status,Grade\nParticipant 7,Submitted for grading,\n")
    filled = fill(read(tmp_path / "sheet.csv", "moodle"), [], [], 1)
    assert filled.remarks == [
        "In the sheet, but handed in nothing; their cells are as they were: Participant 7 (7)."
    ]


def test_system_and_sheet_belong_together(tmp_path):
    (tmp_path / "in").mkdir()
    done = run(app, ["grade", str(tmp_path / "in"), "--lms", "moodle"])
    assert done.exit_code == 1 and "--lms and --roster belong together" in done.stdout
    (tmp_path / "all.zip").write_bytes(b"PK")
    assert "is a file. Unpack it" in run(app, ["grade", str(tmp_path / "all.zip")]).stdout


def test_who_has_no_number_is_found_by_the_full_name_if_only_one_has_it(tmp_path):
    text = "Identifier,Full name,Grade\nP 1,Li Na,\nP 2,Li Na,\nP 3,Jo Roe,\n"
    (tmp_path / "sheet.csv").write_text(text)
    filled = fill(
        read(tmp_path / "sheet.csv", "moodle"), [Learner("Jo Roe"), Learner("Li Na")], [2.0, 1.0], 2
    )
    assert filled.data.decode() == text.replace("Roe,", "Roe,2")
    assert filled.remarks[1] == "Handed in, but not in the sheet: Li Na."


def test_what_the_two_systems_write_into_names():
    for name, expected in {
        "Anna Schmidt_1001_assignsubmission_file": ("Anna Schmidt", Key("moodle", "1001"), ""),
        "doe_jane_7_assignsubmission_file_12_x.ipynb": ("doe_jane", Key("moodle", "7"), "12_x.ipynb"),
        "doe_LATE_1_2_12.ipynb": ("doe", Key("canvas", "1", "2", late=True), "12.ipynb"),
        "doe_LATE_1_998_12.ipynb": ("doe", Key("canvas", "1", "998", late=True), "12.ipynb"),
        "LATE_anon_x7Yz2_998_a_b.ipynb": (
            "anon_x7Yz2",
            Key("canvas", "x7Yz2", "998", late=True),
            "a_b.ipynb",
        ),
        "group_12_31_answers.ipynb": ("group_12_31_answers.ipynb", None, "group_12_31_answers.ipynb"),
        "doe_2026_11_30_12.ipynb": ("doe_2026_11_30_12.ipynb", None, "doe_2026_11_30_12.ipynb"),
    }.items():
        assert key_of(name) == expected
