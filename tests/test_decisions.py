"""What a teacher decides: grading.toml, decisions.csv, teams.csv, answers in words, an earlier table."""

import csv
import io
import json
import math
import random
import re

import pytest
from typer.testing import CliRunner

from mechlab_course.cli import app
from mechlab_course.folders import ROOT
from mechlab_course.grading import items, results, similar
from mechlab_course.grading.answers import Answer
from mechlab_course.grading.grades import CORRECT, NOT_YET, Grade, Gradebook, Rules
from mechlab_course.grading.results import Setting
from mechlab_course.grading.sandbox import SandboxError
from mechlab_course.grading.submissions import Learner
from tests.handed_in import Told, answer, notebook

run = CliRunner().invoke
RIGHT, WRONG, SLY = "return 1  # right", "return 0", "import gc\nreturn 1  # right"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to grade into, `out`, and beside it `in`, with three learners."""
    monkeypatch.setattr(results, "Sandbox", Told)
    (tmp_path / "out").mkdir()
    for name, answers in {
        "Anna": {"12.1": RIGHT, "12.2": RIGHT},
        "Ben": {"12.1": SLY, "12.2": WRONG},
        "Cleo": {"12.1": RIGHT},
    }.items():
        hand_in(tmp_path, name, *(answer(id, lines) for id, lines in answers.items()))
    return tmp_path


def hand_in(place, name: str, *code: str, words: tuple[str, ...] = ()) -> None:
    made = notebook(*code)
    made["cells"] += [
        {"cell_type": "markdown", "id": f"w{n}", "metadata": {}, "source": text}
        for n, text in enumerate(words)
    ]
    (place / "in" / name).mkdir(parents=True, exist_ok=True)
    (place / "in" / name / "12.ipynb").write_text(json.dumps(made))


def grade(place, *options: str, **files: str):
    """Run the command; `toml`, `decisions` and `teams` are written beside the table first."""
    names = {"toml": "grading.toml", "decisions": "decisions.csv", "teams": "teams.csv"}
    for key, text in files.items():
        (place / "out" / names[key]).write_text(text, encoding="utf-8")
    return run(app, ["grade", str(place / "in"), "--out", str(place / "out" / "grades.csv"), *options])


def table(place, name: str = "grades.csv") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((place / "out" / name).read_text("utf-8-sig"))))


def totals(place) -> dict[str, str]:
    return {row["learner"]: row["total"] for row in table(place)}


def test_weights_come_from_the_file_and_the_command_line_comes_first(place):
    toml = 'points = 2\nquiz_points = 0.5\n[weights]\n"12.2" = 5\n'
    assert grade(place, toml=toml).exit_code == 0
    assert totals(place) == {"Anna": "7", "Ben": "0", "Cleo": "2"}
    assert table(place)[0]["out of"] == "16.5"  # five exercises at 2, one at 5, three questions at a half
    assert grade(place, "--points", "1").exit_code == 0
    assert totals(place) == {"Anna": "6", "Ben": "0", "Cleo": "1"}
    assert grade(place, toml='[weights]\n"12" = 3\n').exit_code == 0
    assert totals(place)["Anna"] == "6"


def test_the_last_version_counts_if_the_teacher_says_so(place):
    hand_in(place, "Dora", answer("12.1", RIGHT), answer("12.1", WRONG))
    assert grade(place).exit_code == 0 and totals(place)["Dora"] == "1"
    assert grade(place, toml='counts = "last"').exit_code == 0 and totals(place)["Dora"] == "0"


def test_what_waits_for_a_person_is_listed_and_is_decided_in_the_same_form(place):
    assert grade(place).exit_code == 0
    (waiting,) = table(place, "to_decide.csv")
    assert (waiting["learner"], waiting["exercise"], waiting["points"]) == ("Ben", "12.1 Direct effects", "")
    assert "imports `gc`" in waiting["what it says"]
    text = (place / "out" / "to_decide.csv").read_text("utf-8-sig")
    decided = text.replace("Direct effects,,,", 'Direct effects,"0,5",looked at it with Ben,')
    assert grade(place, decisions=decided).exit_code == 0
    assert totals(place)["Ben"] == "0.5" and table(place)[1]["12.1 status"] == "decided"
    page = (place / "out" / "feedback" / "Ben.html").read_text()
    assert "A person decided. looked at it with Ben<br>Before: review." in page and "0.5 of 1 points" in page
    assert table(place, "to_decide.csv") == []


def test_answers_in_words_wait_with_their_rubric_and_get_their_points_from_a_person(place):
    toml = '[texts."12.essay"]\ntitle = "What it cannot see"\npoints = 4\nrubric = ["names a head (2)", "one <test> (2)"]\n'
    hand_in(place, "Anna", words=("## Answer 12.essay:\n\nThe circuit leaves <b>23.3</b> out.",))
    hand_in(place, "Ben", words=("Answer 12.essay", "**Answer 12.other**: of no rubric"))
    assert grade(place, toml=toml).exit_code == 0
    (waiting,) = table(place, "to_decide.csv")
    assert waiting["learner"] == "Anna" and waiting["what it says"] == "The circuit leaves <b>23.3</b> out."
    page = (place / "out" / "feedback" / "Anna.html").read_text()
    assert (
        "12.essay What it cannot see: to read" in page
        and "one &lt;test&gt; (2)" in page
        and "<b>" not in page
    )
    assert {row["learner"]: row["12.essay status"] for row in table(place)}["Ben"] == "not attempted"
    done = grade(place, decisions="learner;exercise;points;why\nAnna;12.essay;3;no test\n")
    assert done.exit_code == 0 and totals(place)["Anna"] == "3"


def test_a_team_has_one_grade_and_one_page_each(place):
    done = grade(place, teams="team,learner\nReds,Ben\nReds,Cleo\nReds,Dora\n")
    assert "Dora of Reds handed in nothing and gets the team's grade." in done.stdout
    assert totals(place) == {"Anna": "2", "Ben": "1", "Cleo": "1", "Dora": "1"}
    assert "The grade is that of Reds." in (place / "out" / "feedback" / "Dora.html").read_text()
    assert grade(place, decisions="learner,exercise,points\nReds,12.2,0.5\nDora,12.1,0\n").exit_code == 0
    assert totals(place) == {"Anna": "2", "Ben": "1.5", "Cleo": "1.5", "Dora": "0.5"}


def test_being_late_costs_by_the_day_begun(place):
    toml = "[late]\ndeadline = 2026-12-01T18:00:00\nper_day = 40\n[late.handed_in]\n"
    toml += "Anna = 2026-12-01T18:00:01\nBen = 2026-11-01\nCleo = 2026-12-05\n"
    assert grade(place, toml=toml).exit_code == 0
    assert totals(place) == {"Anna": "1.2", "Ben": "0", "Cleo": "0"}
    assert [row["days late"] for row in table(place)] == ["1", "0", "5"]


def test_an_earlier_table_tells_who_changed_and_why(place):
    assert grade(place).exit_code == 0
    hand_in(place, "Anna", answer("12.1", RIGHT), answer("12.2", WRONG))
    hand_in(place, "Dora", answer("12.1", RIGHT))
    (place / "in" / "Cleo" / "12.ipynb").unlink()
    (place / "in" / "Cleo").rmdir()
    done = grade(place, "--compare", str(place / "out" / "grades.csv"))  # the table that this run replaces
    assert "Anna, 12.2: 1 -> 0 (correct -> not yet): So." in done.stdout
    rows = [
        [row[key] for key in ("learner", "exercise", "before", "now", "why")]
        for row in table(place, "changes.csv")
    ]
    assert rows == [
        ["Anna", "12.2", "1", "0", "So."],
        ["Anna", "total", "2", "1", ""],
        ["Dora", "total", "", "1", "not in the earlier table"],
        ["Cleo", "total", "1", "", "no longer there"],
    ]
    assert "Nothing has changed." in grade(place, "--compare", str(place / "out" / "grades.csv")).stdout


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("toml", "points = ", "grading.toml cannot be read"),
        ("toml", "weight = 1", "there is no key 'weight'. Did you mean 'weights'?"),
        ("toml", "points = 'two'", "points is a number from 0 on, not 'two'"),
        ("toml", "weights = 3", "weights is a table; begin it with a line [weights]"),
        ("toml", '[weights]\n"12.9" = 1', "there is no exercise or notebook '12.9'. Did you mean '12."),
        ("toml", "[weights]\n12.3 = 2", 'write an exercise in quotation marks, "12.3" = 2'),
        ("toml", 'counts = "first"', 'counts is "best" or "last", not \'first\''),
        ("toml", "[late]\nper_day = 10", "it needs a deadline and per_day"),
        ("toml", '[late]\nper_day = 10\ndeadline = "1 May"', "write a day as 2026-12-01"),
        ("toml", "[late]\nper_day = 10\ndeadline = 2026-12-01\nextra = 1", "there is no key 'extra'"),
        (
            "toml",
            "[late]\nper_day = 10\ndeadline = 2026-12-01\n[late.extra_days]\nAna = 1",
            "there is no learner 'Ana'. Did you mean 'Anna'?",
        ),
        ("toml", '[texts."12.1"]\npoints = 2', "needs the number of a notebook and a new name"),
        ("toml", '[texts."12.essay"]\nrubrik = []', "there is no key 'rubrik'. Did you mean 'rubric'?"),
        ("decisions", "who,exercise,points\n", "decisions.csv has no column learner"),
        (
            "decisions",
            "learner,exercise,points\nAna,12.1,1",
            "line 2: there is no learner 'Ana'. Did you mean 'Anna'?",
        ),
        ("decisions", "learner,exercise,points\nAnna,12.9,1", "line 2: there is no exercise '12.9'"),
        ("decisions", "learner,exercise,points\nAnna,12.1,much", "points is a number from 0 on, not 'much'"),
        ("decisions", "learner,exercise,points\nAnna,12.1,2", "2 points, but 12.1 is worth 1"),
        (
            "decisions",
            "learner,exercise,points\nAnna,12.1,1\nAnna,12.1,0",
            "line 3: a second decision about 12.1",
        ),
        ("teams", "team,learner\nReds,\n", "line 2: both team and learner are needed"),
        ("teams", "team,learner\nReds,Anna\nBlues,Anna", "line 3: Anna is in Reds already"),
        ("teams", "team,learner\nReds,Ana\n", "nobody of Reds handed anything in (Ana)"),
    ],
)
def test_what_is_not_known_is_refused_by_name(place, file, text, says):
    done = grade(place, **{file: text})
    assert done.exit_code == 1 and says in done.stdout
    assert not (place / "out" / "grades.csv").exists()


def test_a_line_that_a_spreadsheet_changed_is_refused_and_a_line_without_points_is_open(place):
    assert "no exercise '12.'" in grade(place, decisions="learner,exercise,points\nAnna,12. Jan,1\n").stdout
    assert (
        grade(place, decisions="learner,exercise,points,why\nAnna,12.1,,not yet looked at\n").exit_code == 0
    )
    assert totals(place)["Anna"] == "2"


def test_a_notebook_that_few_handed_in_is_told_and_counts_unless_the_teacher_says_otherwise(place):
    for name in ("Dora", "Eva", "Finn"):
        hand_in(place, name, answer("12.1", RIGHT))
    hand_in(place, "Gül", '@exercise("11.1")\ndef f(x):\n    return 1  # right')
    assert "Of notebook 11 few handed in anything. If it was not asked for: --only 12" in grade(place).stdout
    assert "Of notebook" not in grade(place, "--only", "12").stdout


def test_the_example_of_the_guide_is_taken_as_it_stands(place):
    guide = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
    (toml,) = re.findall(r"(?s)```toml\n(.*?)```", guide)
    for number, name in ((1001, "Anna Schmidt"), (1002, "Jo")):
        hand_in(place, f"{name}_{number}_assignsubmission_file", answer("12.3", RIGHT))
    assert grade(place, toml=toml).exit_code == 0
    assert totals(place) == {"Anna": "2", "Anna Schmidt": "1.8", "Ben": "0", "Cleo": "1", "Jo": "2"}
    said = "\n".join(run(app, ["grade", "--help"], env={"COLUMNS": "200"}).stdout.split())
    for option in re.findall(r"`mechlab grade FOLDER ([^`]*)`", guide):
        assert all(each in said for each in re.findall(r"--\w+", option))


# Several at once


def asked(tmp_path, jobs: int) -> dict:
    answers = [
        Answer(f"12.{n % 7 + 1}", "exercise", f"# {n}{' right' * (n % 3)}", "f", "") for n in range(20)
    ]
    setting = Setting(Rules(), {"12": []}, [], jobs)
    return results.results_of(answers, tmp_path / f"kept{jobs}", setting, False, lambda _: None)


def test_two_at_once_give_the_same_results_and_keep_as_many(tmp_path, monkeypatch):
    started = []

    class Noted(Told):
        def __enter__(self):
            started.append(self)
            return self

    monkeypatch.setattr(results, "Sandbox", Noted)
    monkeypatch.setattr(results.os, "cpu_count", lambda: 8)
    one, two = asked(tmp_path, 1), asked(tmp_path, 2)
    assert one == two and len(one) == 20 and len(started) == 3
    kept = [(tmp_path / f"kept{n}").read_text().splitlines() for n in (1, 2)]
    assert sorted(kept[0]) == sorted(kept[1]) and len(kept[0]) == 20
    started.clear()
    assert asked(tmp_path, 2) == two and not started


def test_a_sandbox_that_does_not_start_ends_the_run_with_its_reason(tmp_path, monkeypatch):
    class Broken(Told):
        def __enter__(self):
            raise SandboxError("Nothing can be graded: no torch")

    monkeypatch.setattr(results, "Sandbox", Broken)
    with pytest.raises(SandboxError, match="no torch"):
        asked(tmp_path, 2)


# The figures of the class


def given(points: list[list[float]], status: str = CORRECT) -> list:
    ids = [f"12.{n}" for n in range(1, 1 + len(points[0]))]
    return [
        (Learner(str(n)), {id: Grade(id, status, each, "") for id, each in zip(ids, row, strict=True)})
        for n, row in enumerate(points)
    ]


def test_items_have_a_share_and_go_with_the_rest():
    draw = random.Random(0)
    able = [draw.random() for _ in range(40)]
    points = [[float(x > draw.random()) for _ in range(5)] + [float(x < 0.3), 1.0] for x in able]
    found = items.items(Gradebook(given(points), [f"12.{n}" for n in range(1, 8)], Rules()), str)
    assert [item.share for item in found] == [sum(row[n] for row in points) / 40 for n in range(7)]
    assert all(item.rest > 0 for item in found[:5]) and found[5].rest < -0.2
    assert found[6].rest is None  # all have it
    (few,) = items.items(Gradebook(given(points[:7]), ["12.1"], Rules()), str)
    (free,) = items.items(Gradebook(given(points), ["12.1"], Rules(points=0)), str)
    assert few.rest is None and free.share is None
    one, other = [row[0] for row in points], [sum(row[1:]) for row in points]
    mean = lambda values: sum(values) / 40
    spread = lambda values: math.sqrt(mean([x * x for x in values]) - mean(values) ** 2)
    both = mean([x * y for x, y in zip(one, other, strict=True)]) - mean(one) * mean(other)
    assert found[0].rest == pytest.approx(both / spread(one) / spread(other))


def test_the_histogram_has_its_edges_where_they_belong():
    assert items.histogram([0, 0.05, 0.1, 0.3, 0.7, 0.99, 1.0]) == [2, 1, 0, 1, 0, 0, 0, 1, 0, 2]


def coded(**codes: str) -> list:
    return [
        (Learner(name), {"12.1": Grade("12.1", NOT_YET, 0, "", code=code)}) for name, code in codes.items()
    ]


THREE = """def f(parts, scale):
    '''Of one learner.'''
    # what is left when the mean of all parts is gone
    left = torch.stack([part - parts.mean(0) * scale for part in parts[1:]])
    longest = max(range(len(left)), key=lambda n: float(left[n].norm() / 7))
    return left[longest] / (torch.linalg.norm(left, dim=1).sum() + 0.125)
"""


def test_three_rare_things_in_common_are_a_hint_and_two_are_none():
    other = THREE.replace("left", "rest").replace("parts", "x").replace("Of one learner", "Mine")
    other = other.replace("# what is rest when the mean of all x is gone", "# nothing to see")
    apart = {
        f"learner{n}": f"def f(x):\n    return x.sum({n}) * {n} + x.mean({n}) / x.std()\n" for n in range(8)
    }
    (pair,) = similar.pairs(coded(one=THREE, two=other, **apart), ["12.1"])
    assert (pair.one, pair.other, len(pair.shared)) == ("one", "two", 3)
    two = other.replace("max(", "min(1, ").replace("float(", "abs(1 + ")
    assert similar.pairs(coded(one=THREE, two=two, **apart), ["12.1"]) == []
    assert similar.pairs(coded(one=THREE, two=other), ["12.1"]) == []  # of two nothing is rare
    everyone = {f"learner{n}": THREE for n in range(8)}
    assert similar.pairs(coded(**everyone), ["12.1"]) == []  # what all have is not rare
    team = coded(one=THREE, two=other, **apart)
    for learner, _ in team[:2]:
        learner.team = "Reds"
    assert similar.pairs(team, ["12.1"]) == []


def test_what_the_course_gives_is_no_hint():
    known = similar.given_marks(frozenset({"12"}))
    hints = [
        mark
        for mark, shown in similar.marks(
            "women_give += [('Karen', 'Andrew'), ('Nancy', 'George'), ('Helen', 'Edward')]"
        )
    ]
    assert hints and set(hints) <= known
    assert list(similar.marks("def f(:")) == []
