"""What happens to a learner's work by accident: merged cells, broken files, restarts, other terminals."""

import ast
import errno
import http.server
import io
import json
import linecache
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import unicodedata
import warnings
import zipfile
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import NoSuchKernel
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError
from typer.testing import CliRunner

from mechlab_course import check, cli, exercise, predict, progress, questions, restarted, reveal
from mechlab_course.answers import solved
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
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))  # no JupyterLab but the tests' own
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
    assert refresh(released, work) == {"01_x.ipynb": "changed by you", "02_y.ipynb": "followed"}
    assert not (copies / "01_x.ipynb").exists()  # no blank one beside theirs
    copied, renamed = workspace.remarks(released, work)
    assert "02_y-Copy1.ipynb: left alone, a copy of 02_y.ipynb under another name" in copied
    assert "my notebook.ipynb is your copy of 01_x.ipynb under another name" in renamed
    (line,) = update(released, work)
    assert line.startswith("my notebook.ipynb: updated, 1 of your cells kept")  # not those of the old course
    texts = [c["source"] for c in json.loads((copies / "my notebook.ipynb").read_text())["cells"]]
    assert done(1) in texts and "# Title" not in texts and "# Another title" in texts
    assert update(released, work) == []


def test_two_copies_under_other_names_are_both_left_alone_and_said(course):
    released, work, copies = course
    theirs = named(mine(("a", [cell(done(1), "a")])), "01_x")
    (copies / "01_x.ipynb").unlink()
    for name in ("first", "second"):
        put(copies / f"{name}.ipynb", theirs)
    put(copies / "no mark.ipynb", theirs | {"metadata": {}})  # of the front ends that throw it away
    put(copies / "own.ipynb", notebook(cell("1 + 1", "z")))
    assert refresh(released, work)["01_x.ipynb"] == "new"
    said = [
        line.partition(".ipynb: left alone, a copy of 01_x.ipynb")[0]
        for line in workspace.remarks(*course[:2])
    ]
    assert said == ["first", "no mark", "second"]
    assert all(json.loads((copies / f"{name}.ipynb").read_text()) == theirs for name in ("first", "second"))


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
    elsewhere("from mechlab_course import predict; predict('12.p', 4); predict('12.p', 2)", tmp_path / "h")
    ask = "from mechlab.course import reveal; print(reveal('12.p', 40), reveal('12.q', 1))"
    said = elsewhere(ask, tmp_path / "h")
    assert said == "You predicted: 2. Measured: 40. Measured: 1. (You noted no prediction.)"


@pytest.mark.parametrize("guess", [0, -1, 0.25, "0.25"])
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
    predict("12.q", 5)  # on a line of its own, not at the end of what was cut off
    monkeypatch.setattr(questions, "_PREDICTIONS", {})
    assert repr(reveal("12.q", 3)) == "You predicted: 5. Measured: 3."


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


# --- deleted, open, unwritable ---


def texts_of(path):
    return [workspace.text_of(c) for c in json.loads(path.read_text(encoding="utf-8"))["cells"]]


def test_a_deleted_exercise_is_missed_and_comes_back(course):
    released, work, copies = course
    own = cell("mine = 1", "n")
    put(copies / "01_x.ipynb", named(mine(("a", []), ("b", [cell(done(2), "b"), own])), "01_x"))
    assert refresh(released, work)["01_x.ipynb"] == "same" and update(released, work) == []
    (line,) = workspace.remarks(released, work)
    assert line.startswith("01_x.ipynb: exercise 01.1 is missing. `mechlab update --restore 01`")
    (line,) = update(released, work, restore="99")
    assert line == "There is no notebook 99. Say its two figures, such as 12."
    (line,) = update(released, work, restore="1")
    assert "updated, 2 of your cells kept; the old file is backup" in line
    texts = texts_of(copies / "01_x.ipynb")
    assert task(1) in texts and done(2) in texts and "mine = 1" in texts and task(2) not in texts
    assert list(workspace.remarks(released, work)) == []


def test_an_exercise_that_is_half_written_or_in_another_cell_is_not_missing(course):
    released, work, copies = course
    half = cell('@exercise("01.1")\ndef f1():\n    return (1', "a")
    put(copies / "01_x.ipynb", named(mine(("a", [half]), ("b", []), ("x", [cell(done(2), "x")])), "01_x"))
    assert list(workspace.remarks(released, work)) == []
    as_text = cell(task(1), "a", "markdown")
    put(copies / "01_x.ipynb", named(mine(("a", [as_text]), ("b", [])), "01_x"))
    (line,) = workspace.remarks(released, work)
    assert "exercise 01.1 and exercise 01.2 are missing" in line


class Server(http.server.BaseHTTPRequestHandler):
    """What JupyterLab says of the notebooks that have a kernel."""

    def do_GET(self):
        self.send_response(200 if "token=secret" in self.path else 403)
        self.end_headers()
        self.wfile.write(json.dumps([{"path": "notebooks/01_x.ipynb"}]).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def jupyter(course, tmp_path):
    """01_x.ipynb is open, and files of servers that are gone lie about."""
    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "runtime").mkdir()
    about = {"url": f"http://127.0.0.1:{server.server_port}/", "token": "secret", "root_dir": str(course[1])}
    others = {
        "1": "{",
        "2": "[]",
        "3": json.dumps(about | {"url": "http://127.0.0.1:1/"}),
        "9": json.dumps(about),
    }
    others["4"] = json.dumps(about | {"token": "wrong"})
    for number, text in others.items():
        (tmp_path / "runtime" / f"jpserver-{number}.json").write_text(text, encoding="utf-8")
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("edited", [True, False])
def test_a_notebook_that_is_open_in_jupyterlab_is_left_alone(course, jupyter, edited):
    released, work, copies = course
    if edited:
        put(copies / "01_x.ipynb", named(mine(("a", [cell(done(1), "a")])), "01_x"))
    for name in ("01_x", "02_y"):
        put(released / f"{name}.ipynb", named(NEW, name))
    before = (copies / "01_x.ipynb").read_bytes()
    lines = update(released, work)
    assert "01_x.ipynb: left alone, it is open in JupyterLab. There: File > Close and Shut Down" in lines[0]
    assert "02_y.ipynb: brought up to date" in lines[1]
    assert (copies / "01_x.ipynb").read_bytes() == before


def failing(monkeypatch, error=errno.ENOSPC, only=""):
    """Every write of bytes is cut off half-way: the disk is full."""
    whole = Path.write_bytes

    def write(path, data):
        if only in path.name:
            whole(path, data[: len(data) // 2])
            raise OSError(error, os.strerror(error), str(path))
        return whole(path, data)

    monkeypatch.setattr(Path, "write_bytes", write)


@pytest.mark.parametrize("only", ["", "01_x-", ".01_x.ipynb.new"], ids=["any", "the backup", "the copy"])
@pytest.mark.parametrize("edited", [True, False])
def test_a_full_disk_leaves_every_copy_as_it_was(course, monkeypatch, edited, only):
    released, work, copies = course
    if edited:
        put(copies / "01_x.ipynb", named(mine(("a", [cell(done(1), "a")])), "01_x"))
    before = (copies / "01_x.ipynb").read_bytes()
    put(released / "01_x.ipynb", named(NEW, "01_x"))
    with monkeypatch.context() as patch:
        failing(patch, only=only)
        line = next((line for line in update(released, work) if line.startswith("01_x")), "")
    if edited or only != "01_x-":
        assert "left alone" in line and (copies / "01_x.ipynb").read_bytes() == before
    assert not [path for path in work.rglob("*") if path.name.endswith(".new")]
    update(released, work)
    texts = texts_of(copies / "01_x.ipynb")
    assert "# Another title" in texts and (done(1) in texts) == edited


def test_a_read_only_copy_stays_as_it_is(course):
    released, work, copies = course
    put(copies / "01_x.ipynb", named(mine(("a", [cell(done(1), "a")])), "01_x"))
    for name in ("01_x", "02_y"):
        (copies / f"{name}.ipynb").chmod(0o444)
        put(released / f"{name}.ipynb", named(NEW, name))
    before = {path.name: path.read_bytes() for path in copies.iterdir()}
    lines = update(released, work)
    assert "01_x.ipynb: left alone, it could not be written (it is read-only)" in lines[0]
    assert "02_y.ipynb: left alone" in lines[1]
    assert {path.name: path.read_bytes() for path in copies.iterdir()} == before


def test_a_link_is_followed_and_stays_a_link(course, tmp_path):
    released, work, copies = course
    elsewhere = tmp_path / "drive"
    copies.rename(elsewhere)
    copies.symlink_to(elsewhere)
    put(elsewhere / "real.txt", named(mine(("a", [cell(done(1), "a")])), "01_x"))
    (elsewhere / "01_x.ipynb").unlink()
    (elsewhere / "01_x.ipynb").symlink_to(elsewhere / "real.txt")
    put(released / "01_x.ipynb", named(NEW, "01_x"))
    assert "updated" in update(released, work)[0]
    assert copies.is_symlink() and (elsewhere / "01_x.ipynb").is_symlink()
    assert done(1) in texts_of(elsewhere / "real.txt")


def test_learners_get_no_pages_for_authors(course):
    released, work, _ = course
    for name in ("contributing.md", "teaching.md", "make_picture.py"):
        (released.parent / "docs" / name).write_text("for others", encoding="utf-8")
    refresh(released, work)
    assert sorted(path.name for path in (work / "docs").iterdir()) == ["glossary.md", "more"]


def anything(chance, cells, n):
    """The cells after one thing that a learner may do to them."""
    at, wrote = chance.randrange(len(cells)), f"# by me, {n}"
    here = cells[at]
    answer = cell(f"{done(chance.choice([1, 2]), n)}  {wrote}", f"n{n}")
    changes = {
        "add": [here, cell(wrote, f"n{n}")],
        "edit": [here | {"source": f"{workspace.text_of(here)}\n{wrote}"}],
        "answer": [answer],
        "answer below": [here, answer],
        "delete": [],
        "twice": [here, here],
        "windows": [here | {"source": workspace.text_of(here).replace("\n", "\r\n")}],
        "text": [cell(workspace.text_of(here), here["id"], "markdown")],
        "merge": [
            here | {"source": f"{workspace.text_of(here)}\n\n{workspace.text_of(cells[at - 1])}\n{wrote}"}
        ],
    }
    return [*cells[:at], *chance.choice([*changes.values()]), *cells[at + 1 :]] or [here]


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_done_to_a_copy_no_command_loses_what_was_written(course, seed):
    """Edits, renaming, copies, new courses and every command in any order: each text is in a copy or a backup."""
    released, work, copies = course
    chance, course_now = random.Random(seed), BASE
    for n in range(25):
        one, do = chance.choice(sorted(copies.glob("*.ipynb"))), chance.randrange(8)
        if do < 4:
            cells = anything(chance, json.loads(one.read_text(encoding="utf-8"))["cells"], n)
            put(one, named(notebook(*cells), "01_x" if chance.random() < 0.9 else "?"))
        elif do == 4:
            to = copies / chance.choice(["01_x.ipynb", "02_y.ipynb", "mine.ipynb", "a copy.ipynb"])
            if not to.exists():
                chance.choice([one.rename, lambda to, one=one: shutil.copyfile(one, to)])(to)
        elif do == 5:
            course_now = NEW if course_now is BASE else BASE
            for name in ("01_x", "02_y"):
                put(released / f"{name}.ipynb", named(course_now, name))
        else:
            before = written(work)
            update(released, work, chance.choice(["", "01", "02"])) if do == 6 else refresh(released, work)
            assert before <= written(work), f"step {n}"
        list(workspace.remarks(released, work))


def written(work):
    """What the learner has written, in the copies and in the backups."""
    files = [*(work / "notebooks").glob("*.ipynb"), *(work / "backup").glob("*")]
    return {mark for path in files for mark in re.findall(r"# by me, \d+", path.read_text(encoding="utf-8"))}


# --- the folder of last time ---


@pytest.fixture
def at_home(released, monkeypatch, tmp_path):
    """A learner in an empty folder; JupyterLab only notes what it is started with."""
    started = []

    def start(_, command):
        started.append(command)
        raise SystemExit(0)

    monkeypatch.setattr(cli, "pull", lambda *_: None)
    monkeypatch.setattr(cli.os, "execv", start)
    monkeypatch.setattr(cli.subprocess, "run", lambda command: start("", command))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    return tmp_path, started


def opened(started):
    return next(each for each in started[-1] if "root_dir" in each).partition("=")[2]


def test_lab_opens_the_folder_of_last_time_from_anywhere_and_names_it(at_home, monkeypatch):
    folder, started = at_home
    said = run(app, ["lab", "--no-browser"]).stdout
    assert opened(started) == str(folder / "a" / "work") and f"Your copies of the notebooks: {folder}" in said
    monkeypatch.chdir(folder / "b")
    said = run(app, ["lab", "--no-browser"]).stdout
    assert (
        opened(started) == str(folder / "a" / "work") and "the one of last time. For another: --work" in said
    )
    assert not (folder / "b" / "work").exists()
    assert str(folder / "a" / "work") in run(app, ["update"]).stdout
    run(app, ["lab", "--no-browser", "--work", "other"])
    assert opened(started) == str(folder / "b" / "other")
    monkeypatch.chdir(folder / "a")  # its own copies count before those of last time
    said = run(app, ["lab", "--no-browser"]).stdout
    assert (
        opened(started) == str(folder / "a" / "work")
        and f"Last time it was {folder / 'b' / 'other'}." in said
    )


def test_lab_opens_the_first_notebook_also_under_another_name(at_home, course):
    put(course[0] / "00_start_here.ipynb", named(BASE, "00_start_here"))
    run(app, ["lab", "--no-browser"])
    copies = at_home[0] / "a" / "work" / "notebooks"
    (copies / "00_start_here.ipynb").rename(copies / "my 00.ipynb")
    assert "my 00.ipynb is your copy of 00_start_here.ipynb" in run(app, ["lab", "--no-browser"]).stdout
    assert "--LabApp.default_url=/lab/tree/notebooks/my%2000.ipynb" in at_home[1][-1]


def test_a_work_folder_that_was_moved_is_asked_for(at_home):
    folder, started = at_home
    run(app, ["lab", "--no-browser"])
    (folder / "a" / "work").rename(folder / "a" / "moved")
    (folder / "a" / "work").mkdir()
    run(app, ["lab", "--no-browser", "--work", str(folder / "b" / "w")])
    (folder / "b" / "w").rename(folder / "b" / "v")
    said = run(app, ["update"]).stdout
    assert f"Your copies were in {folder / 'b' / 'w'} last time, and are not there now." in said
    assert "--work FOLDER" in said and "`mechlab answers`" in said
    run(app, ["lab", "--no-browser", "--work", str(folder / "b" / "v")])
    assert opened(started) == str(folder / "b" / "v")


@pytest.mark.parametrize("note", [b"", b"\xff\xfe", b"\x00\n", b"nowhere\n"])
def test_a_damaged_note_of_the_folder_costs_nothing(at_home, note, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "work_folder.txt").write_bytes(note)
    assert run(app, ["lab", "--no-browser"]).exit_code == 0
    assert opened(at_home[1]) == str(at_home[0] / "a" / "work")


def test_a_home_that_cannot_be_written_to_stops_nothing(at_home, monkeypatch):
    (at_home[0] / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("MECHLAB_HOME", str(at_home[0] / "file" / "home"))
    assert run(app, ["lab", "--no-browser"]).exit_code == 0 and len(at_home[1]) == 1


# --- correct answers are kept ---

STUB = '@exercise("00.1")\ndef f(logits, answer, rival):\n    raise NotImplementedError'
RIGHT = '@exercise("00.1")\ndef f(logits, answer, rival):\n    return logits[-1, answer] - logits[-1, rival]'
WRONG = RIGHT.replace("-1", "0")


def in_cell(code, name="/tmp/ipykernel_1/2.py"):
    """Run code as the kernel does: its lines can be read, and no file of this name is there."""
    name = name.replace("2", str(abs(hash(code))))
    linecache.cache[name] = (len(code), None, code.splitlines(True), name)
    names = {"exercise": exercise}
    exec(compile(code, name, "exec"), names)
    return check(names["f"])


def kept(id="00.1"):
    return [each.source for each in solved(id)]


def test_each_different_correct_answer_is_kept_once_with_its_whole_cell():
    other = "import torch\n\ndef last(x):\n    return x[-1]\n\n" + RIGHT.replace(
        "logits[-1, answer]", "last(logits)[answer]"
    )
    for code in (WRONG, RIGHT, RIGHT, other, RIGHT, WRONG, STUB):
        in_cell(code)
    noted = progress.path().read_text(encoding="utf-8")
    assert kept() == [RIGHT, other] and (noted.count('"correct"'), noted.count('"source"')) == (4, 2)
    with progress.path().open("a", encoding="utf-8") as file:
        file.write('{"id": "00.1", "status": "correct", "source": 3, "time": 4}\n[]\n{"id": "00.1", "sou')
    assert sorted(kept()) == sorted([RIGHT, other, "3"])


def test_a_cell_with_a_magic_line_is_kept_as_it_was_typed(monkeypatch):
    from IPython.core.interactiveshell import InteractiveShell

    shell, typed = InteractiveShell(), f"%precision 3\n\n{RIGHT}"
    monkeypatch.setattr("mechlab.waiting.kernel_shell", lambda: shell)
    shell.history_manager.input_hist_raw += [typed, "check(f)"]
    with monkeypatch.context() as patch:
        patch.setattr("builtins.get_ipython", lambda: shell, raising=False)
        in_cell(shell.transform_cell(typed))
    assert kept() == [typed]


def test_too_long_a_cell_is_not_kept_and_said_so():
    in_cell(RIGHT + "\n# " + "x" * 20_000)
    assert kept() == [""]
    assert "# 00.1, correct on 20" in (said := run(app, ["answers", "00"]).stdout) and "was not kept" in said


def test_of_a_function_in_a_file_the_function_is_kept():
    @exercise("00.1")
    def f(logits, answer, rival):
        return logits[-1, answer] - logits[-1, rival]

    assert check(f).status == "correct" and len(kept()) == 1 and "def f(" in kept()[0]


@pytest.fixture
def solved_00(at_home, course):
    """Solved and never saved: the copy still holds the task."""
    released, work, copies = course
    put(
        released / "00_start.ipynb",
        named(notebook(cell("# T", "t", "markdown"), cell(STUB, "s")), "00_start"),
    )
    run(app, ["lab", "--no-browser", "--work", str(work)])
    in_cell(WRONG)
    in_cell(RIGHT)
    return work, copies / "00_start.ipynb"


def test_an_answer_lost_with_its_tab_is_said_printed_and_put_back(solved_00):
    work, copy = solved_00
    said = run(app, ["progress"]).stdout
    assert "00.1: solved on 20" in said and "your saved file does not have the answer" in said
    assert RIGHT in run(app, ["answers", "00.1"]).stdout and RIGHT in run(app, ["answers"]).stdout
    assert "No exercise of 12 is solved yet." in run(app, ["answers", "12"]).stdout
    assert RIGHT in run(app, ["answers", "0"]).stdout and RIGHT in run(app, ["answers", "0.1"]).stdout
    said = run(app, ["answers", "00", "--restore"]).stdout
    assert (
        "00.1: put back into 00_start.ipynb, as it was correct on 20" in said
        and "The old file is backup" in said
    )
    assert texts_of(copy) == ["# T", RIGHT]
    assert "00.1: your copy holds it already." in run(app, ["answers", "--restore"]).stdout
    assert "00.1" not in run(app, ["progress"]).stdout
    assert len(list((work / "backup").iterdir())) == 1


def test_another_answer_is_never_replaced_unasked(solved_00):
    work, copy = solved_00
    newer = notebook(cell("# T", "t", "markdown"), cell(WRONG, "s"))
    put(copy, newer)
    assert "00.1: solved on 20" in (said := run(app, ["progress"]).stdout) and "has another answer" in said
    for typed in ("", "n\n"):
        said = run(app, ["answers", "--restore"], input=typed).stdout
        assert "your copy has another answer, and keeps it" in said and texts_of(copy)[1] == WRONG
    run(app, ["answers", "--restore"], input="y\n")
    assert texts_of(copy)[1] == RIGHT
    (backup,) = (work / "backup").iterdir()
    assert json.loads(backup.read_text()) == newer


def test_line_ends_of_windows_and_blank_ones_are_no_other_answer(solved_00):
    _, copy = solved_00
    put(copy, notebook(cell(RIGHT.replace("\n", "\r\n") + "\r\n\r\n", "s")))
    assert "00.1" not in run(app, ["progress"]).stdout


def test_putting_back_says_what_is_missing_and_spares_what_cannot_be_written(solved_00, monkeypatch):
    _, copy = solved_00
    put(copy, notebook(cell("1", "s")))
    assert (
        "its cell is missing. First `mechlab update --restore 00`"
        in run(app, ["answers", "--restore"]).stdout
    )
    run(app, ["update", "--restore", "00"])
    before = copy.read_bytes()
    with monkeypatch.context() as patch:
        failing(patch)
        said = run(app, ["answers", "--restore"]).stdout
    assert "00_start.ipynb: left alone, it cannot be read or written" in said and copy.read_bytes() == before
    monkeypatch.setattr("mechlab_course.build.copies.is_open", lambda _: True)
    assert "left alone, it is open in JupyterLab" in run(app, ["answers", "--restore"]).stdout
    assert copy.read_bytes() == before


def test_check_says_what_was_solved_before(solved_00):
    _, copy = solved_00
    put(
        copy,
        notebook(
            cell("from mechlab_course import check, exercise", "i"), cell(WRONG, "s"), cell("check(f)", "c")
        ),
    )
    said = run(app, ["check", str(copy)]).stdout
    assert "Exercise 00.1: not yet." in said
    assert (
        "(00.1 was solved on 20" in said
        and "this file has another answer. See `mechlab answers 00.1`" in said
    )


def test_update_says_what_to_do_with_an_open_tab(released, monkeypatch):
    notebooks, work, _ = released
    assert "Overwrite" not in run(app, ["update", "--work", str(work)]).stdout
    put(notebooks / "01_x.ipynb", named(NEW, "01_x"))
    said = run(app, ["update", "--work", str(work)]).stdout
    assert "Reload Notebook from Disk" in said and "Overwrite would undo the update" in said


# --- after a restart ---

TEXTS = [
    "import mechlab as ml\nmodel = ml.load()",
    "with a as b:\n    c = [x for x in b]",
    "%time d = 1\nprint(c)",
    "e = d",
]


@pytest.mark.parametrize(
    ("name", "this", "where"),
    [
        ("model", TEXTS[2], "further up"),
        ("ml", TEXTS[1], "further up"),
        ("c", f"{TEXTS[2]}\n", "further up"),
        ("b", TEXTS[3], "further up"),
        ("x", TEXTS[3], ""),  # of a comprehension: no name of the notebook
        ("e", TEXTS[2], ""),  # made further down
        ("print", TEXTS[3], ""),
        ("c", "changed(c), and not saved", "of this notebook"),
    ],
)
def test_a_name_that_a_cell_above_makes_is_explained(name, this, where):
    said = restarted.advice_for(name, this, [TEXTS])
    assert bool(said) == bool(where)
    if where:
        assert f"`{name}` is made by a cell {where} that has not run" in said
        assert "Run > Run All Above Selected Cell.\nYour answers and your progress stay." in said


def test_an_answer_without_quotes_is_told_so():
    assert restarted.unquoted("b", 'quiz("12.a", b)') == 'Write the answer in quotes: quiz("12.a", "b").'
    assert "quotes" in restarted.unquoted("pattern", "x = 1\npredict('31.p', pattern )")
    assert not restarted.unquoted("b", 'quiz("12.a", b + c)') and not restarted.unquoted("b", "check(b)")


def test_where_the_file_is_not_known_the_cell_tells_the_notebook():
    assert "`model` is made" in restarted.advice_for("model", TEXTS[1], [["other"], TEXTS])
    assert restarted.advice_for("model", "nowhere", [["other"], TEXTS]) == ""


@pytest.mark.parametrize("startup", [True, False], ids=["mechlab lab", "another front end"])
def test_a_name_error_after_a_restart_says_what_to_do(tmp_path, monkeypatch, startup):
    """A real kernel, at once after its start: with the hook of `mechlab lab`, or after the import of the course."""
    cells = [
        "from mechlab_course import check\nother_cache = 3",
        "def f():\n    return other_cache + 1",
        "nosuch",
        "f()",
    ]
    put(tmp_path / "n.ipynb", notebook(*(cell(text, f"c{n}") for n, text in enumerate(cells))))
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "n.ipynb"))
    monkeypatch.delenv("PYTHONSTARTUP", raising=False)
    if startup:
        monkeypatch.setenv("PYTHONSTARTUP", cli.KERNELS["PYTHONSTARTUP"])
    first = [] if startup else [cell("import mechlab_course", "i")]
    ran = notebook(*first, *(cell(text, f"c{n}") for n, text in enumerate(cells[1:])), cell("dir()", "d"))
    node = nbformat.from_dict(ran)
    NotebookClient(node, kernel_name="python3", allow_errors=True, timeout=60).execute()
    errors = [each for c in node.cells for each in c.outputs if each.output_type == "error"]
    assert [each.evalue for each in errors] == [
        "name 'nosuch' is not defined",
        "name 'other_cache' is not defined",
    ]
    said = ["\n".join(each.traceback) for each in errors]
    assert "restart" not in said[0] and "`other_cache` is made by a cell further up" in said[1]
    assert "Run All Above Selected Cell" in said[1] and "Traceback" in said[1]
    assert "restarted" not in node.cells[-1].outputs[0]["data"]["text/plain"]  # no name of ours is left


def test_startup_is_silent_where_the_course_cannot_be_imported(tmp_path):
    ran = subprocess.run([sys.executable, "-S", "-c", f"exec(open({cli.KERNELS['PYTHONSTARTUP']!r}).read())"], cwd=tmp_path, capture_output=True)  # fmt: skip
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")


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
