"""What happens to a learner's work by accident: merged cells, broken files, restarts, other terminals."""

import ast
import io
import json
import os
import subprocess
import sys
import unicodedata
import warnings
import zipfile

import nbformat
import pytest
from jupyter_client.kernelspec import NoSuchKernel
from nbclient.exceptions import CellTimeoutError
from typer.testing import CliRunner

from mechlab_course import cli, predict, progress, questions, reveal
from mechlab_course.build import notebooks as build
from mechlab_course.build import workspace
from mechlab_course.build.execute import in_one_sentence
from mechlab_course.build.workspace import merge, refresh, update
from mechlab_course.cli import app
from mechlab_course.grading import supervisor
from mechlab_course.grading.answers import find
from mechlab_course.grading.grader import _tried
from mechlab_course.grading.submissions import Learner, collect

ROOT = build.ROOT


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("MECHLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(questions, "_PREDICTIONS", {})


# --- merging ---


def cell(source, id, kind="code", **more):
    made = {"cell_type": kind, "id": id, "metadata": {}, "source": source} | more
    return ({"outputs": [], "execution_count": None} if kind == "code" else {}) | made


def notebook(*cells):
    return {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def task(number, body="raise NotImplementedError"):
    return f'@exercise("01.{number}")\ndef f{number}():\n    {body}'


def done(number, value=None):
    return task(number, f"return {number if value is None else value}")


BASE = notebook(
    cell("# Title", "t", "markdown"),
    cell("x = 1", "x"),
    cell(task(1), "a"),
    cell("check(f1)", "ca"),
    cell(task(2), "b"),
    cell("check(f2)", "cb"),
    cell('quiz("01.a", ...)', "q"),
    cell("The end", "e", "markdown"),
)


def mine(*changes, base=BASE):
    """The notebook with cells replaced: pairs (id, cells in its place)."""
    changes = dict(changes)
    return notebook(*(new for old in base["cells"] for new in changes.get(old["id"], [old])))


def merged(theirs, new=BASE, base=BASE):
    """The merged notebook, which is valid and has no id twice, and holds each of the learner's texts."""
    result, _ = merge(theirs, new, base)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nbformat.validate(nbformat.from_dict(result))
    given = {workspace.text_of(c) for c in base["cells"]}
    texts = [workspace.text_of(c) for c in result["cells"]]
    for each in theirs["cells"]:
        text = workspace.text_of(each)
        assert not text.strip() or text in given or text in texts, each
    again, _ = merge(result, new, new)
    assert [workspace.text_of(c) for c in again["cells"]] == texts  # a second update changes nothing
    return result


def session(nb):
    """Names after the code cells were run as a notebook runs them: a broken cell stops itself only."""
    names = {"exercise": lambda id: lambda f: f, "check": lambda f: None, "quiz": lambda *a: None}
    for each in nb["cells"]:
        if each["cell_type"] == "code":
            try:
                exec("".join(each["source"]), names)
            except Exception:
                continue
    return names


NEW = notebook(
    cell("# Another title", "t2", "markdown"),
    cell("x = 2", "x2"),
    cell(task(1, "raise NotImplementedError  # new"), "a2"),
    cell("check(f1)", "ca"),
    cell("A new paragraph", "p", "markdown"),
    cell(task(2, "raise NotImplementedError  # new"), "b2"),
    cell("check(f2)", "cb"),
    cell('quiz("01.a", ...)', "q"),
    cell("The end", "e", "markdown"),
)
SPELLINGS = [
    '@ml.course.exercise("01.1")',
    "@exercise('01.1')",
    '@exercise(id="01.1")',
    "@course.exercise( '01.1' )",
    '@exercise("""01.1""")',
    '@exercise("01.1")  # mine',
    '@exercise(\n    "01.1"\n)',
    '@torch.no_grad()\n@exercise("01.1")',
]
versions = pytest.mark.parametrize("new", [BASE, NEW], ids=["same", "changed"])


@versions
@pytest.mark.parametrize(
    "cells",
    {
        "two exercises": (("a", [cell(done(1) + "\n\n" + done(2), "a")]), ("b", [])),
        "with the check": (("a", [cell(f"{done(1)}\n\ncheck(f1)\n\n{done(2)}", "a")]), ("ca", []), ("b", [])),
        "all": (
            ("a", []),
            ("b", [cell(f'{done(2)}\n{done(1)}\nquiz("01.a", "b")', "b")]),
            ("q", []),
        ),
        "attempts before": (("a", [cell(done(2, 0), "n"), cell(f"{done(1)}\n{done(2)}", "a")]), ("b", [])),
        "attempts after": (("a", [cell(f"{done(1)}\n{done(2, 0)}", "a")]), ("b", [cell(done(2), "b")])),
    }.items(),
    ids=lambda pair: pair[0],
)
def test_answers_that_stand_in_one_cell_are_not_undone_by_tasks_below(cells, new):
    result = merged(mine(*cells[1]), new)
    names = session(result)
    assert (names["f1"](), names["f2"]()) == (1, 2)
    assert "NotImplementedError" not in json.dumps(result)
    if "quiz" in json.dumps(cells):
        assert 'quiz("01.a", ...)' not in [workspace.text_of(c) for c in result["cells"]]


@versions
def test_every_attempt_at_an_exercise_survives_and_the_last_is_the_last(new):
    tries = [cell(done(1, n), id) for n, id in ((5, "n1"), (6, "a"), (7, "n2"))]
    result = merged(mine(("a", tries[:2]), ("e", [cell("The end", "e", "markdown"), tries[2]])), new)
    texts = [workspace.text_of(c) for c in result["cells"]]
    assert [t for t in texts if "01.1" in t] == [done(1, n) for n in (5, 6, 7)]
    assert session(result)["f1"]() == 7
    assert sum(task(2) in t for t in texts) == 1  # what was not answered is still asked


@versions
@pytest.mark.parametrize("head", SPELLINGS)
def test_an_answer_is_known_however_its_mark_is_spelt(head, new):
    answer = f"{head}\ndef f1():\n    return 1"
    result = merged(mine(("a", [cell(answer, "other")])), new)
    texts = [workspace.text_of(c) for c in result["cells"]]
    assert answer in texts and not [t for t in texts if "01.1" in t and "NotImplemented" in t]


def test_another_name_of_the_mark_is_followed_through_the_notebook():
    renamed = cell("from mechlab_course import exercise as ex", "n")
    answer = cell('@ex("01.1")\ndef f1():\n    return 1', "a")
    result = merged(mine(("x", [cell("x = 1", "x"), renamed]), ("a", [answer])))
    assert not [c for c in result["cells"] if "01.1" in c["source"] and "NotImplemented" in c["source"]]


@versions
@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_lines_that_end_as_on_windows_are_no_edits(end, new):
    theirs = notebook(*(c | {"source": c["source"].replace("\n", end)} for c in BASE["cells"]))
    result, kept = merge(theirs, new, BASE)
    assert kept == 0 and result["cells"] == new["cells"]
    theirs["cells"][2]["source"] = done(1).replace("\n", end)
    result, kept = merge(theirs, new, BASE)
    assert kept == 1 and session(result)["f1"]() == 1 and len(result["cells"]) == len(new["cells"])


def test_a_plain_cell_that_only_the_learner_changed_takes_its_place():
    result = merged(mine(("x", [cell("x = 10", "x", outputs=[])])))
    assert len(result["cells"]) == len(BASE["cells"]) and session(result)["x"] == 10
    assert [c["id"] for c in result["cells"]] == [c["id"] for c in BASE["cells"]]


def test_a_plain_cell_that_both_changed_is_there_twice_the_learners_last():
    result = merged(mine(("x", [cell("x = 10", "x")])), NEW)
    texts = [workspace.text_of(c) for c in result["cells"]]
    assert texts.index("x = 10") == texts.index("x = 2") + 1 and session(result)["x"] == 10
    same_id = notebook(*(c | {"id": "x"} if c["id"] == "x2" else c for c in NEW["cells"]))
    assert merged(mine(("x", [cell("x = 10", "x")])), same_id)


@versions
def test_a_cell_that_was_split_stays_in_order(new):
    halves = [cell('@exercise("01.1")\ndef f1():\n    y = 1', "a"), cell("    return y", "n")]
    texts = [workspace.text_of(c) for c in merged(mine(("a", halves)), new)["cells"]]
    at = texts.index(halves[0]["source"])
    assert texts[at + 1] == "    return y" and texts[at + 2] == "check(f1)"
    apart = [cell("def helper():\n    return 1", "a"), cell(done(1, "helper()"), "n")]
    result = merged(mine(("a", apart)), new)
    assert session(result)["f1"]() == 1 and not [c for c in result["cells"] if c["source"] == task(1)]
    plain = [cell("x = 10", "x"), cell("z = x", "n")]
    assert session(merged(mine(("x", plain)), new))["z"] == 10


@versions
@pytest.mark.parametrize("kind", ["markdown", "raw"])
def test_a_cell_that_was_made_text_of_is_kept_and_the_task_comes_back(kind, new):
    result = merged(mine(("a", [cell(done(1), "a", kind)])), new)
    at = next(n for n, c in enumerate(result["cells"]) if c["source"] == done(1))
    assert result["cells"][at]["cell_type"] == kind and "NotImplemented" in result["cells"][at - 1]["source"]
    untouched = merged(mine(("a", [cell(task(1), "a", kind)])), new)
    assert [c["source"] for c in untouched["cells"]] == [c["source"] for c in new["cells"]]
    switched_off = merged(mine(("x", [cell("x = 1", "x", kind)])))  # a cell that they do not want to run
    assert [c["cell_type"] for c in switched_off["cells"] if c["source"] == "x = 1"] == [kind]


@versions
def test_what_was_added_stands_after_what_it_followed(new):
    first, after, last = (cell(f"mine = {n}", f"n{n}") for n in range(3))
    own_text = cell("my own text", "n4", "markdown", attachments={"a.png": {"image/png": "iVBOR"}})
    changes = (
        ("t", [first, BASE["cells"][0]]),
        ("a", [cell(done(1), "a"), after, own_text]),
        ("e", [BASE["cells"][-1], last]),
    )
    result = merged(mine(*changes), new)
    texts = [workspace.text_of(c) for c in result["cells"]]
    assert texts[0] == "mine = 0" and texts[-1] == "mine = 2"
    at = texts.index("mine = 1")
    assert texts[at - 1] == done(1) and texts[at + 1] == "my own text" and texts[at + 2] == "check(f1)"
    assert result["cells"][at + 1]["attachments"]


def test_a_note_that_names_an_exercise_does_not_take_the_place_of_the_task():
    note = cell("# exercise('01.1') is hard", "n")
    result = merged(mine(("ca", [note, BASE["cells"][3]])))
    assert [c["source"] for c in result["cells"]].count(task(1)) == 1


def test_an_answer_that_is_not_python_yet_takes_the_place_of_the_task():
    half = '@exercise("01.1")\ndef f1():\n    return (1'
    texts = [c["source"] for c in merged(mine(("a", [cell(half, "a")])))["cells"]]
    assert half in texts and task(1) not in texts


@versions
def test_outputs_of_the_learners_cells_and_odd_ids_are_no_trouble(new):
    said = [{"output_type": "stream", "name": "stdout", "text": "hi\n"}]
    cells = [
        cell(done(1), "a", outputs=said, execution_count=3),
        cell("m = 1", "a"),
        cell("m = 2", "a b c"),
        cell("m = 3", "a"),
    ]
    result = merged(mine(("a", cells)), new)
    assert [c["outputs"] for c in result["cells"] if c["source"] == done(1)] == [said]
    no_ids = notebook(*({k: v for k, v in c.items() if k != "id"} for c in mine(("a", cells))["cells"]))
    assert session(merged(no_ids, new))["m"] == 3


# --- working copies ---


@pytest.fixture
def course(tmp_path):
    """(the course's notebooks, work/, the learner's copies), handed out once."""
    released, work = tmp_path / "notebooks", tmp_path / "work"
    released.mkdir()
    (tmp_path / "docs" / "more").mkdir(parents=True)
    (tmp_path / "docs" / "glossary.md").write_text("ours", encoding="utf-8")
    (tmp_path / "docs" / "more" / "heads.png").write_bytes(b"\x89PNG")
    for name in ("01_x", "02_y"):
        put(released / f"{name}.ipynb", named(BASE, name))
    refresh(released, work)
    return released, work, work / "notebooks"


def named(nb, name):
    return nb | {"metadata": {"mechlab": {"notebook": name}}}


def put(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")


def a_folder(path):
    path.unlink()
    path.mkdir()


def a_link_to_nowhere(path):
    path.unlink()
    path.symlink_to("nowhere.ipynb")


BROKEN = {
    "a list": lambda path: path.write_text("[]"),
    "null": lambda path: path.write_text("null"),
    "a number": lambda path: path.write_text("3"),
    "no cells": lambda path: path.write_text("{}"),
    "cells are no list": lambda path: path.write_text('{"cells": 3}'),
    "a cell is no cell": lambda path: path.write_text('{"cells": [3]}'),
    "a cell without text": lambda path: path.write_text('{"cells": [{"cell_type": "code"}]}'),
    "text that is none": lambda path: path.write_text('{"cells": [{"cell_type": "code", "source": [1]}]}'),
    "no kind": lambda path: path.write_text('{"cells": [{"source": ""}]}'),
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_text(path.read_text()[:200]),
    "not UTF-8": lambda path: path.write_bytes('{"cells": [], "metadata": "é"}'.encode("latin-1")),
    "UTF-16": lambda path: path.write_bytes(path.read_text().encode("utf-16")),
    "zeros": lambda path: path.write_bytes(bytes(1000)),
    "too deep": lambda path: path.write_text("[" * 100_000),
    "a folder": a_folder,
    "a link": a_link_to_nowhere,
}


@pytest.mark.parametrize("which", ["mine", "handed out", "course"])
@pytest.mark.parametrize("how", BROKEN)
def test_one_broken_file_costs_that_file_only(course, how, which):
    released, work, copies = course
    for name in ("01_x", "02_y"):
        put(released / f"{name}.ipynb", named(NEW, name))
    where = {"mine": copies, "handed out": work / ".mechlab", "course": released}[which]
    BROKEN[how](where / "01_x.ipynb")
    before = (copies / "01_x.ipynb").read_bytes() if (copies / "01_x.ipynb").is_file() else None
    report = refresh(released, work)
    assert report["02_y.ipynb"] == "followed"
    if how in ("a folder", "a link") and which == "course":
        assert report.get("01_x.ipynb", "unreadable") == "unreadable"
    else:
        assert report["01_x.ipynb"] == ("changed by you" if which == "handed out" else "unreadable")
    if before is not None:
        assert (copies / "01_x.ipynb").read_bytes() == before
    lines = [line for line in update(released, work) if line.startswith("01_x")]
    if which == "mine":
        assert "01_x.ipynb: left alone, it is not a readable notebook (" in lines[0]
        assert "Move it away to get a new copy" in lines[0]
    elif which == "course" and how not in ("a folder", "a link"):
        assert "left alone, the course's own file is not a readable notebook" in lines[0]
        assert (copies / "01_x.ipynb").read_bytes() == before


def test_a_broken_copy_is_told_of_also_when_the_course_has_not_changed(course):
    released, work, copies = course
    (copies / "01_x.ipynb").write_text("[]", encoding="utf-8")
    assert refresh(released, work) == {"01_x.ipynb": "unreadable", "02_y.ipynb": "same"}
    (copies / "01_x.ipynb").unlink()
    assert refresh(released, work)["01_x.ipynb"] == "new"


@pytest.mark.parametrize("how", ["forgotten", "folder"])
def test_without_the_note_of_what_was_handed_out_nothing_is_lost(course, how):
    released, work, copies = course
    (work / ".mechlab" / "01_x.ipynb").unlink()
    if how == "folder":
        (work / ".mechlab" / "01_x.ipynb").mkdir()
    put(copies / "01_x.ipynb", named(mine(("a", [cell(done(1), "a")])), "01_x"))
    put(released / "01_x.ipynb", named(NEW, "01_x"))
    assert refresh(released, work)["01_x.ipynb"] == "changed by you"
    line = next(line for line in update(released, work) if line.startswith("01_x"))
    assert "updated" in line or "left alone" in line
    assert done(1) in [c["source"] for c in json.loads((copies / "01_x.ipynb").read_text())["cells"]]


def test_a_notebook_that_was_renamed_or_copied_stays_and_can_be_brought_up_to_date(course):
    released, work, copies = course
    theirs = json.dumps(named(mine(("a", [cell(done(1), "a")])), "01_x"))
    (copies / "01_x.ipynb").write_text(theirs, encoding="utf-8")
    (copies / "01_x.ipynb").rename(copies / "my notebook.ipynb")
    (copies / "02_y-Copy1.ipynb").write_bytes((copies / "02_y.ipynb").read_bytes())
    for name in ("01_x", "02_y"):
        put(released / f"{name}.ipynb", named(NEW, name))
    assert refresh(released, work) == {"01_x.ipynb": "new", "02_y.ipynb": "followed"}
    lines = update(released, work)
    assert [line.partition(":")[0] for line in lines] == ["02_y-Copy1.ipynb", "my notebook.ipynb"]
    assert "a copy of 01_x.ipynb under another name" in lines[1] and "Give it that name" in lines[1]
    assert (copies / "my notebook.ipynb").read_text(encoding="utf-8") == theirs
    (copies / "my notebook.ipynb").replace(copies / "01_x.ipynb")
    lines = [line for line in update(released, work) if line.startswith("01_x")]
    assert "updated, 1 of your cells kept" in lines[0]  # not those of the old course
    texts = [c["source"] for c in json.loads((copies / "01_x.ipynb").read_text())["cells"]]
    assert done(1) in texts and "# Title" not in texts and "# Another title" in texts


def test_two_updates_in_a_second_keep_two_backups(course):
    released, work, copies = course
    for n, new in enumerate([NEW, BASE, NEW]):
        put(copies / "01_x.ipynb", named(mine(("a", [cell(done(1, n), "a")])), "01_x"))
        put(released / "01_x.ipynb", named(new, "01_x"))
        assert "updated" in update(released, work)[0]
    kept = [path.read_text(encoding="utf-8") for path in (work / "backup").iterdir()]
    assert sorted(json.loads(text)["cells"][2]["source"] for text in kept) == [done(1, n) for n in range(3)]


def test_half_a_letter_is_written_as_it_was(course):
    released, work, copies = course
    odd = mine(("a", [cell(done(1, "'\ud800'"), "a")]))
    put(copies / "01_x.ipynb", named(odd, "01_x"))
    put(released / "01_x.ipynb", named(NEW, "01_x"))
    assert "updated" in update(released, work)[0]
    assert "\\ud800" in (copies / "01_x.ipynb").read_text(encoding="utf-8")


def test_a_copy_that_was_only_run_keeps_its_outputs_when_nothing_else_changed(course):
    released, work, copies = course
    ran = named(mine(("x", [cell("x = 1", "x", execution_count=4)])), "01_x")
    put(copies / "01_x.ipynb", ran)
    put(released / "01_x.ipynb", named(BASE, "01_x") | {"nbformat_minor": 4})
    assert refresh(released, work)["01_x.ipynb"] == "same"
    assert json.loads((copies / "01_x.ipynb").read_text(encoding="utf-8")) == ran


def test_notes_in_the_pages_are_kept_and_the_other_pages_follow(course):
    released, work, _ = course
    docs, ours = work / "docs", released.parent / "docs"
    assert (docs / "glossary.md").read_text(encoding="utf-8") == "ours"
    (ours / "more" / "heads.png").write_bytes(b"new")
    refresh(released, work)
    assert (docs / "more" / "heads.png").read_bytes() == b"new"
    for text in ("my notes", "ours\nand my notes", ""):
        (docs / "glossary.md").write_text(text, encoding="utf-8")
        (ours / "glossary.md").write_text(f"newer than {text}", encoding="utf-8")
        refresh(released, work)
        assert (docs / "glossary.md").read_text(encoding="utf-8") == text
    (docs / "own.md").write_text("mine", encoding="utf-8")
    refresh(released, work)
    assert (docs / "own.md").read_text(encoding="utf-8") == "mine"
    (docs / "glossary.md").unlink()  # thrown away: it comes back
    refresh(released, work)
    assert "newer than" in (docs / "glossary.md").read_text(encoding="utf-8")


def test_notes_written_before_pages_were_noted_are_kept(course):
    """A work/ of before there was a note of what was handed out."""
    released, work, _ = course
    (work / ".mechlab" / "docs" / "glossary.md").unlink()
    (work / "docs" / "glossary.md").write_text("my notes", encoding="utf-8")
    refresh(released, work)
    assert (work / "docs" / "glossary.md").read_text(encoding="utf-8") == "my notes"


@pytest.mark.parametrize("what", ["docs", "docs/glossary.md", "docs/more"])
def test_a_page_that_cannot_be_written_stops_nothing(course, what):
    released, work, _ = course
    place = work / what
    if place.is_dir():
        for path in sorted(place.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        place.rmdir()
        place.write_text("a file", encoding="utf-8")
    else:
        place.unlink()
        place.mkdir()
    assert refresh(released, work) == {"01_x.ipynb": "same", "02_y.ipynb": "same"}


# --- predictions ---


def elsewhere(code, home):
    """What a fresh Python says: the kernel after a restart."""
    env = os.environ | {"MECHLAB_HOME": str(home)}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, encoding="utf-8", cwd=ROOT
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_a_prediction_outlives_the_kernel(tmp_path):
    elsewhere("from mechlab_course import predict; predict('12.p', 41); predict('12.p', 42)", tmp_path / "h")
    ask = "from mechlab.course import reveal; print(reveal('12.p', 40), reveal('12.q', 1))"
    said = elsewhere(ask, tmp_path / "h")
    assert said == "You predicted: 42. Measured: 40. Measured: 1. (You noted no prediction.)"


@pytest.mark.parametrize("guess", [None, 0, "", "größer 0", [1, 2], 0.25])
def test_every_guess_is_found_again(guess, monkeypatch):
    predict("12.p", guess)
    assert repr(reveal("12.p", 3)) == f"You predicted: {guess}. Measured: 3."
    monkeypatch.setattr(questions, "_PREDICTIONS", {})
    assert repr(reveal("12.p", 3)) == f"You predicted: {guess}. Measured: 3."
    assert "noted no prediction" in repr(reveal("12.q", 3))


def test_the_newest_prediction_counts_and_damage_costs_a_line(tmp_path, monkeypatch):
    predict("12.p", 1)
    old = {"id": "12.p", "status": "predicted", "time": "2001-01-01T00:00:00+00:00", "guess": "9"}
    (tmp_path / "old.jsonl").write_text(json.dumps(old) + "\n", encoding="utf-8")
    assert progress.merge(tmp_path / "old.jsonl") == 1  # of another machine, and older, yet below
    with progress.path().open("a", encoding="utf-8") as file:
        file.write('[]\n{"id": "12.p", "status": "predicted"}\n{"id": "12.q", "sta')  # the machine went off
    monkeypatch.setattr(questions, "_PREDICTIONS", {})
    assert repr(reveal("12.p", 3)) == "You predicted: 1. Measured: 3."
    predict("12.r", 5)  # on a line of its own, not at the end of what was cut off
    monkeypatch.setattr(questions, "_PREDICTIONS", {})
    assert repr(reveal("12.r", 3)) == "You predicted: 5. Measured: 3."


def test_a_home_with_a_tilde_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("MECHLAB_HOME", "~/course")
    assert progress.path() == tmp_path / "course" / "progress.jsonl"


# --- the commands ---

run = CliRunner().invoke
PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}


@pytest.fixture
def released(course, monkeypatch):
    monkeypatch.setattr(cli, "_notebooks", lambda: course[0])
    return course


def test_lab_starts_beside_a_broken_notebook_and_says_which(released, monkeypatch):
    _, work, copies = released
    (copies / "01_x.ipynb").write_text("[]", encoding="utf-8")
    started = []
    monkeypatch.setattr(cli, "pull", lambda *_: None)

    def start(*command):
        started.append(command)
        raise SystemExit(0)

    monkeypatch.setattr(cli.os, "execv", start)
    monkeypatch.setattr(cli.subprocess, "run", start)
    said = run(app, ["lab", "--work", str(work), "--no-browser"]).stdout
    assert len(started) == 1
    assert "01_x.ipynb: left alone, it is not a readable notebook (it has no list of cells)." in said
    assert "02_y" not in said


@pytest.mark.parametrize("command", ["lab", "update"])
def test_a_work_folder_that_cannot_be_used_is_one_sentence(released, monkeypatch, command, tmp_path):
    monkeypatch.setattr(cli, "pull", lambda *_: None)
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = run(app, [command, "--work", str(tmp_path / "file")])
    assert done.exit_code == 1 and "cannot be used" in done.stdout and "--work" in done.stdout
    assert "Traceback" not in done.stdout and len(done.stdout.strip().splitlines()) == 1


def unusable(tmp_path):
    """Files that cannot be run: name, and what is said of them."""
    r = notebook(cell("x <- 1", "a")) | {"metadata": {"kernelspec": {"name": "ir", "language": "R"}}}
    julia = notebook(cell("x = 1", "a")) | {"metadata": {"kernelspec": {"name": "julia-1.9"}}}
    info = notebook(cell("x = 1", "a")) | {"metadata": {"language_info": {"name": "julia"}}}
    for name, content in {"r": r, "julia": julia, "info": info, "list": []}.items():
        put(tmp_path / f"{name}.ipynb", content)
    (tmp_path / "bytes.ipynb").write_bytes(b"\xff\xfa")
    (tmp_path / "cut.ipynb").write_text('{"cells": [', encoding="utf-8")
    (tmp_path / "folder.ipynb").mkdir()
    return {
        "nowhere": "there is no such file",
        "r": "its kernel is for R",
        "julia": "its kernel is for Julia",
        "info": "its kernel is for julia",
        "list": "not a notebook: it has no list of cells",
        "bytes": "not a notebook",
        "cut": "not a notebook",
        "folder": "cannot be read",
    }


@pytest.mark.parametrize("command", ["run", "check"])
def test_what_cannot_be_run_is_one_sentence(tmp_path, command):
    for name, says in unusable(tmp_path).items():
        done = run(app, [command, str(tmp_path / f"{name}.ipynb")])
        (line,) = done.stdout.strip().splitlines()
        assert done.exit_code == 1 and line.startswith(f"{name}.ipynb: ") and says in line
        assert done.exception.__class__ is SystemExit


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_kernel_that_dies_is_one_sentence(tmp_path, command):
    put(tmp_path / "dies.ipynb", notebook(cell("import os\nos._exit(3)", "a")))
    done = run(app, [command, str(tmp_path / "dies.ipynb")])
    assert done.exit_code == 1 and done.exception.__class__ is SystemExit
    assert done.stdout.strip().splitlines()[-1].startswith("dies.ipynb: the kernel died")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (NoSuchKernel("python3"), "no kernel named python3. Run `python -m ipykernel install"),
        (RuntimeError("Kernel died before replying to kernel_info"), "the kernel died"),
        (CellTimeoutError("x"), "a cell ran too long"),
        (OSError(), "OSError: no reason was given"),
        (ValueError("one\ntwo"), "ValueError: one"),
    ],
)
def test_what_stopped_a_notebook_is_one_sentence(error, says):
    said = in_one_sentence(error)
    assert says in said and "\n" not in said


@pytest.mark.parametrize("option", ["--import", "--export"])
def test_progress_that_is_not_there_is_one_sentence(tmp_path, option):
    done = run(app, ["progress", option, str(tmp_path / "no" / "such.jsonl")])
    assert done.exit_code == 1 and "such.jsonl cannot be used (No such file" in done.stdout


def test_commands_speak_on_a_terminal_that_knows_ascii_only(course, tmp_path):
    """The locale C, and as on Windows no UTF-8 by default: names with umlauts, files in UTF-8."""
    released, _, _ = course
    code = (
        "import sys, pathlib; from mechlab_course import cli\n"
        "folder = pathlib.Path(sys.argv.pop(1)); cli._notebooks = lambda: folder\ncli.app()"
    )
    odd = notebook(cell("größer → 0 \U0001f600", "a", "markdown"))
    put(released / "03_ü.ipynb", odd)
    (released / "03_ü.ipynb").write_text(json.dumps(odd, ensure_ascii=False), encoding="utf-8")
    command = [sys.executable, "-c", code, str(released), "update", "--work", str(tmp_path / "Müller")]
    for change in ("anders", "kleiner"):
        env = os.environ | PLAIN | {"MECHLAB_HOME": str(tmp_path / "hö")}
        done = subprocess.run(command, env=env, capture_output=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        text = json.dumps(odd, ensure_ascii=False).replace("größer", change)
        (tmp_path / "Müller" / "notebooks" / "03_ü.ipynb").write_text(text, encoding="utf-8")
        (released / "03_ü.ipynb").write_text(text.replace("0", change), encoding="utf-8")
    said = done.stdout.decode()
    assert "03_" in said and "updated" in said


# --- what came back ---

STEMS = ["12_direct_logit_attribution", "11_input_attribution"]
ANSWER = '@exercise("12.1")\ndef f():\n    return 1'
NOTEBOOK = json.dumps(notebook(cell(ANSWER, "a")))
ANN = "ann_12_direct_logit_attribution"


def come_back(folder, files):
    """Those who handed in these files: name, answers found, what is wrong."""
    for name, content in files.items():
        path = folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return {each.name: (len(each.answers), each.problems) for each in collect(folder / "in", STEMS)}


@pytest.mark.parametrize(
    "name",
    [
        f"{ANN}.ipynb",
        f"{ANN}.IPYNB",
        f"{ANN}.ipynb.txt",
        f"{ANN}.ipynb.json",
        f"{ANN}.json",
        f"{ANN}.txt",
        f"{ANN} (1).ipynb",
        f"{ANN}.ipynb (2).txt",
        f"{ANN}(3).ipynb",
        f"{ANN}-1.ipynb",
        f"{ANN}.ipynb.txt.txt",
        f"{ANN}-Copy1.ipynb",
        f"{ANN}.Ipynb.TXT",
        ANN,
        f"{ANN}.ipynb.download",
        f"{ANN.upper()}.ipynb",
        f"{ANN}.JSON",
        "ann (1).ipynb",
        "ann.ipynb.txt",
        "ann__my notebook (2).json",
        "ann_LATE_12_34_11_input_attribution-2.ipynb.txt",
    ],
)
def test_a_notebook_is_found_and_its_owner_known_whatever_was_put_behind_its_name(tmp_path, name):
    ((owner, (answers, problems)),) = come_back(tmp_path, {name: NOTEBOOK}).items()
    assert (owner.lower(), answers, problems) == ("ann", 1, [])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(f"deep/{name}", NOTEBOOK)
        archive.writestr("settings.json", '{"a": 1}')
        archive.writestr("LICENSE", "free")
    found = come_back(
        tmp_path, {f"bo/{name}": NOTEBOOK, "cy.zip": packed.getvalue(), "di/x.ZIP": packed.getvalue()}
    )
    assert all(found[who] == (1, []) for who in ("bo", "cy", "di"))


FORMS = {
    "a mark": b"\xef\xbb\xbf" + NOTEBOOK.encode(),
    "two marks": b"\xef\xbb\xbf" * 2 + NOTEBOOK.encode(),
    "UTF-16": NOTEBOOK.encode("utf-16"),
    "UTF-16, little": NOTEBOOK.encode("utf-16-le"),
    "UTF-16, big": NOTEBOOK.encode("utf-16-be"),
    "UTF-16, big, with a mark": b"\xfe\xff" + NOTEBOOK.encode("utf-16-be"),
    "UTF-32": NOTEBOOK.encode("utf-32"),
    "blank lines": b"\r\n\n  " + NOTEBOOK.encode(),
    "CRLF": json.dumps(json.loads(NOTEBOOK), indent=1).replace("\n", "\r\n").encode(),
}


@pytest.mark.parametrize("data", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("ending", [".ipynb", ".json", ".ipynb.txt"])
def test_a_notebook_is_read_in_whatever_form_it_was_saved(tmp_path, data, ending):
    assert come_back(tmp_path, {f"ann{ending}": data}) == {"ann": (1, [])}


def test_umlauts_of_windows_and_of_a_mac_are_one_person(tmp_path):
    mac, windows = (unicodedata.normalize(form, "Jörg Müller") for form in ("NFD", "NFC"))
    files = {
        f"{mac}_12_direct_logit_attribution.ipynb": NOTEBOOK,
        f"{windows}__other.ipynb": NOTEBOOK,
        f"{mac}_77_assignsubmission_file/a.ipynb": NOTEBOOK,
    }
    assert come_back(tmp_path, files) == {windows: (3, [])}


def test_what_is_nobodys_is_passed_over_and_what_cannot_be_read_is_in_the_table(tmp_path):
    files = {
        "names.txt": "ann, bo",
        "grades.json": '{"ann": 1}',
        "README": "of the teacher",
        "ann_12_direct_logit_attribution.html": "<html>",
        "bo_12_direct_logit_attribution.pdf": b"%PDF",
        "cy.rar": b"Rar!",
        "di/work.7z": b"7z",
        "ed/12.ipynb": "<!DOCTYPE html><title>Sign in</title>",
        "flo_12_direct_logit_attribution.json": NOTEBOOK[:-40],
    }
    found = come_back(tmp_path, files)
    assert set(found) == {"ann", "bo", "cy", "di", "ed", "flo"}
    assert all(len(problems) == 1 and answers == 0 for answers, problems in found.values())
    for who in ("ann", "bo", "cy", "di"):
        assert (
            "not read. Only notebooks (.ipynb), scripts (.py) and zip files (.zip) are." in found[who][1][0]
        )
    assert "it seems to be a web page" in found["ed"][1][0] and "not a notebook" in found["flo"][1][0]


@pytest.mark.parametrize(
    ("metadata", "language"),
    [
        ({"kernelspec": {"name": "ir", "language": "R", "display_name": "R"}}, "R"),
        ({"kernelspec": {"name": "ir"}}, "R"),
        ({"kernelspec": {"name": "julia-1.10"}}, "Julia"),
        ({"kernelspec": {"name": "x", "language": "julia"}, "language_info": {"name": "python"}}, "julia"),
        ({"language_info": {"name": "R"}}, "R"),
        ({"kernelspec": {"name": "conda-env-ml-py", "language": "python"}}, ""),
        ({"kernelspec": {"name": "python3"}}, ""),
        ({"kernelspec": {"name": "xpython", "language": "Python 3"}}, ""),
        ({"kernelspec": None, "language_info": 3}, ""),
        (None, ""),
    ],
)
def test_a_notebook_for_another_language_is_one_sentence(tmp_path, metadata, language):
    nb = json.loads(NOTEBOOK) | {"metadata": metadata}
    ((answers, problems),) = come_back(tmp_path, {"ann.ipynb": json.dumps(nb)}).values()
    assert answers == 1  # it may be Python all the same
    if language:
        assert problems == [
            f"ann.ipynb: its kernel is for {language}. The answers of the course are in Python."
        ]
    else:
        assert problems == []


def chosen(*files, id="12.a"):
    """The letter that counts: of files with cells, read in the order of their names."""
    answers = [a for n, texts in enumerate(files) for a in find([*texts], f"{n}.ipynb")]
    tried = _tried(Learner("x", answers=answers), [id])
    assert len(tried) <= 1
    return tried[0].name if tried else None


@pytest.mark.parametrize(
    ("cells", "letter"),
    [
        (['quiz("12.a", "a")', 'quiz("12.a", "b")', 'quiz("12.a", "a")'], "a"),
        (['quiz("12.a", "a")\nquiz("12.a", "b")'], "b"),
        (['quiz("12.a", "b")', 'quiz("12.a", ...)'], "b"),
        (['quiz("12.a", ...)'], None),
        (['quiz("12.a")'], None),
        (['quiz(id="12.a", answer="c")'], "c"),
        (['quiz(answer="c", id="12.a")'], "c"),
        (['quiz("12.a", answer="c")'], "c"),
        (['print(quiz("12.a", "c"))', "x = 1"], "c"),
        (['shown = [quiz("12.a", "c"), quiz("12.b", "a")]'], "c"),
        (['def mine():\n    return quiz("12.a", "c")\nmine()'], "c"),
        (['if True:\n    quiz("12.a", "c")\nelse:\n    pass'], "c"),
        (['for _ in model(3):\n    quiz("12.a", "c")'], "c"),
        (['choice = "c"', 'quiz("12.a", choice)'], "c"),
        (['choice = "c"', 'choice = "d"\nquiz("12.a", choice)'], "d"),
        (["from mechlab_course import quiz as q", 'q("12.a", "c")'], "c"),
        (['ml.course.quiz("12.a", "c")'], "c"),
        (['assert quiz("12.a", "c").status == "correct"'], "c"),
        (['quiz("12.a", "a")', "x ="], "a"),
        (['predict("12.a", "c")'], None),
    ],
)
def test_the_last_answer_to_a_question_counts_however_it_is_given(cells, letter):
    assert chosen(cells) == letter
    assert chosen(['quiz("12.a", "z")'], cells) == (letter or "z")


def test_an_answer_to_a_question_that_is_computed_is_told():
    (answer,) = find(['quiz("12.a", "abc"[1])'], "n")
    assert "`'abc'[1]` is computed. Write the letter itself" in answer.problem


def test_the_newest_of_several_files_counts(tmp_path):
    names = ["12", "12 (1)", "12 (2)", "12 (10)"]
    files = {
        f"ann/{name}.ipynb": json.dumps(notebook(cell(f'quiz("12.a", "{n}")', "q")))
        for n, name in enumerate(names)
    }
    come_back(tmp_path, files)
    (learner,) = collect(tmp_path / "in", STEMS)
    assert [a.name for a in learner.answers] == ["0", "1", "2", "3"]
    assert _tried(learner, ["12.a"])[0].name == "3"


@pytest.mark.parametrize("number", [9, 11, 32, 33, 40, 64])
def test_an_answer_that_was_killed_by_any_signal_has_a_verdict(number):
    found = supervisor.verdict_of(b"", "word", "", -number, {"seconds": 3})
    assert found["status"] == "stopped" and "was killed (" in found["message"]
    assert "SIGKILL" in found["message"] if number == 9 else True
    assert "signal 40" in found["message"] if number == 40 else True


def test_names_are_read_under_a_locale_that_knows_ascii_only(tmp_path):
    come_back(tmp_path, {"Jörg_12_direct_logit_attribution.ipynb": NOTEBOOK.replace("f()", "größer()")})
    code = (
        "import sys, pathlib; from mechlab_course.grading.submissions import collect\n"
        f"print(ascii([(l.name, len(l.answers), l.problems) for l in collect(pathlib.Path(sys.argv[1]), {STEMS})]))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "in")],
        env=os.environ | PLAIN,
        capture_output=True,
        encoding="ascii",
        cwd=ROOT,
    )
    assert ran.stdout.strip() == ascii([("Jörg", 1, [])]), ran.stderr


# --- encodings ---

OPENS = {"open", "read_text", "write_text", "fdopen", "TextIOWrapper", "NamedTemporaryFile", "TemporaryFile"}
RUNS = {"run", "Popen", "check_output", "check_call", "call", "getoutput"}


def without_encoding(source: str) -> list[int]:
    """Lines that open, read or write text, or talk to a process in text, in whatever encoding the machine has."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        owner = getattr(getattr(node.func, "value", None), "id", "")
        given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
        constants = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
        text = given.get("text") or given.get("universal_newlines")
        if (
            name in OPENS
            and owner not in ("archive", "webbrowser", "Image", "gzip", "tarfile")
            and "encoding" not in given
        ):
            mode = str(
                given.get("mode", next((c for c in constants if isinstance(c, str) and len(c) < 4), "r"))
            )
            low_level = owner == "os" and name == "open"
            if (
                "b" not in mode
                and not low_level
                and not (name in ("read_text", "write_text") and len(node.args) > 1)
            ):
                found.append(node.lineno)
        elif name in RUNS and text and "encoding" not in given:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    ("code", "bad"),
    {
        "open(p)": True,
        "open(p, 'w')": True,
        "open(p, 'rb')": False,
        "open(p, mode='wb')": False,
        "open(p, encoding='utf-8')": False,
        "p.open('a')": True,
        "p.read_text()": True,
        "p.read_text(errors='replace')": True,
        "p.write_text(x)": True,
        "p.read_text('utf-8')": True,
        "p.write_text(x, encoding='utf-8')": False,
        "subprocess.run(c, text=True)": True,
        "subprocess.run(c, text=True, encoding='utf-8')": False,
        "subprocess.run(c)": False,
        "os.open(p, flags)": False,
        "os.fdopen(h)": True,
        "os.fdopen(h, 'rb')": False,
    }.items(),
)
def test_the_lint_knows_text_without_an_encoding(code, bad):
    assert bool(without_encoding(code)) == bad


def test_all_text_of_the_course_names_its_encoding():
    files = [*(ROOT / "mechlab_course").rglob("*.py"), *ROOT.glob("course/*/checks.py")]
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in files
        for line in without_encoding(path.read_text(encoding="utf-8"))
    }
    assert files and not found
