"""The course machinery: checks, questions, progress, reference tables, working copies, sources and build."""

import json
import re
import sys
from contextlib import contextmanager

import pytest
import torch

from mechlab import reference
from mechlab.loading import models
from mechlab_course import check, claim, exercise, overview, predict, progress, questions, quiz, reveal
from mechlab_course.build import notebooks as build
from mechlab_course.build import workspace
from mechlab_course.build.folding import TITLE, parts
from mechlab_course.build.sources import Cell, SourceError, read
from mechlab_course.exercises import all_ids
from mechlab_course.questions import declared


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("MECHLAB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MECHLAB_STRICT", raising=False)
    return tmp_path / "home"


def answer(function):
    return exercise("00.1")(function)


RIGHT = lambda logits, answer, rival: logits[-1, answer] - logits[-1, rival]

# --- checks ---


def test_the_three_outcomes_and_no_traceback():
    def not_attempted(logits, answer, rival):
        raise NotImplementedError

    assert check(answer(RIGHT)).status == "correct"
    assert check(answer(lambda logits, answer, rival: logits[0, answer])).status == "not yet"
    assert check(answer(not_attempted)).status == "not attempted"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda logits, answer, rival: None, "returned None. Is the `return` missing?"),
        (lambda logits, answer, rival: logits[-1, 99], "stopped with IndexError"),
        (lambda logits: 0, "stopped with TypeError"),
        (lambda logits, answer, rival: undefined, "stopped with NameError: name 'undefined' is not defined"),
        (
            lambda logits, answer, rival: logits.add_(1)[-1, answer],
            "changes the tensor it was given, in place",
        ),
    ],
)
def test_a_learners_error_becomes_a_sentence(wrong, message):
    outcome = check(answer(wrong))
    assert outcome.status == "not yet" and message in outcome.message
    assert "mechlab" not in outcome.message


def test_an_error_names_the_learners_own_line():
    def broken(logits, answer, rival):
        row = logits[-1]
        return row[answer] - {}["rival"]

    message = check(answer(broken)).message
    assert "It happened in line 3 of the function" in message and '{}["rival"]' in message


def test_check_without_an_exercise_and_with_an_unknown_id():
    assert "Give `check` the function below the line `@exercise" in check(lambda: 0).message
    assert "There is no exercise of this number" in check(exercise("99.9")(lambda: 0)).message
    assert "Write `check(my_sentence, model=model)`" in check(exercise("00.2")(_named("my_sentence"))).message


def _named(name):
    def function():
        return None

    function.__name__ = name
    return function


def test_strict_raises_and_the_outcome_reads_well(monkeypatch):
    wrong = answer(lambda logits, answer, rival: logits[0, answer])
    outcome = check(wrong)
    assert repr(outcome).startswith("Exercise 00.1: not yet. ")
    assert "<strong>Exercise 00.1: not yet.</strong>" in outcome._repr_html_()
    monkeypatch.setenv("MECHLAB_STRICT", "1")
    with pytest.raises(AssertionError, match=r"Exercise 00\.1: not yet"):
        check(wrong)
    with pytest.raises(AssertionError, match=r"Question 00\.a: not attempted"):
        quiz("00.a")


def test_learners_html_cannot_break_the_page():
    def rude(logits, answer, rival):
        raise ValueError("<script>alert(1)</script>")

    assert "<script>" not in check(answer(rude))._repr_html_()


# --- questions ---


def test_a_quiz_explains_every_choice_and_accepts_sloppy_letters():
    assert quiz("00.a", " B ").status == "correct"
    assert "A chain breaks" in quiz("00.a", "a").message
    assert "There is no choice 'z'; the choices are a, b, c" in quiz("00.a", "z").message
    assert quiz("00.a").status == "not attempted"
    assert repr(quiz("00.a", "b")).startswith("Question 00.a: correct.")


def test_predict_then_reveal(monkeypatch):
    monkeypatch.setattr(questions, "_PREDICTIONS", {})
    assert "No prediction yet: write a whole number from 0 to 8" in repr(predict("00.p"))
    assert "You noted no prediction" in repr(reveal("00.p", 3))
    predict("00.p", 5)
    assert repr(reveal("00.p", 3)) == "You predicted: 5. Measured: 3."


@pytest.mark.parametrize(
    ("id", "guess", "form"),
    [
        *(
            ("00.p", guess, "a whole number from 0 to 8")
            for guess in ("many", 12, -1, 2.5, True, [3], None, "")
        ),
        *(("13.p", guess, "a number from 0 to 1") for guess in (1.2, float("nan"), "größer 0", (0.1, 0.2))),
        *(("31.q", guess, "a list of 4 numbers from 0 to 1") for guess in (0, [0, 1], [0, 1, 1, "x"])),
        *(("23.p", guess, "one of 'a', 'b', 'c'") for guess in ("d", 2, "a or b", torch.ones(3))),
        ("42.q", "zero", "one of 'above zero', 'below zero', 'about zero'"),
    ],
)
def test_a_guess_of_another_form_is_not_noted(id, guess, form):
    said = repr(predict(id, guess))
    assert said.startswith("Not noted: ") and f"Write {form}, then run the cell again." in said
    assert progress.entries() == []


@pytest.mark.parametrize(
    ("id", "guess", "noted"),
    [
        ("00.p", 8, "8"),
        ("00.p", " 3", " 3"),
        ("13.p", torch.tensor(0.25), "0.25"),
        ("03.p", "10 %", "10 %"),
        ("23.p", "B", "b"),
        ("11.p", "lime", "LIME"),
        ("42.q", "Above", "above zero"),
        ("31.q", [0, 1, 1, 0], "[0, 1, 1, 0]"),
    ],
)
def test_a_guess_of_the_right_form_is_found_after_a_restart(id, guess, noted, monkeypatch):
    assert "Noted: " in repr(predict(id, guess))
    monkeypatch.setattr(questions, "_PREDICTIONS", {})
    assert noted in repr(reveal(id, "x"))


def test_a_guess_with_a_comma_is_no_python_error():
    assert "a number has a point, such as 1.5" in repr(predict("13.p", 0, 5))
    assert progress.entries() == []
    assert "Noted: (0, 1, 1, 0)" in repr(predict("31.q", 0, 1, 1, 0))  # a list without its brackets


def test_ids_that_nothing_has_get_a_sentence():
    assert "There is no question '00.z'. Those of notebook 00: 00.a." in repr(quiz("00.z", "a"))
    assert "There is no prediction '00.q'. Those of notebook 00: 00.p." in repr(predict("00.q", 3))
    for said in (quiz("x", "a"), quiz(12, "a"), predict("99.p", 1), predict(None, 1), quiz("12.p", "a")):
        assert "There is no " in repr(said)
    assert progress.entries() == []


class Model:
    def __init__(self, name):
        self.cfg = type("cfg", (), {"model_name": name})


def test_a_claim_must_hold_on_the_model_of_the_course_only(capsys):
    claim(Model("smollm2"), "share", torch.tensor(0.592), says=0.59, within=0.01)
    assert capsys.readouterr().out == "share: 0.592, as the text says (0.59)\n"
    for value, says, within, told in (
        (70_640.0, 70_600, 2_000, "70,640, as the text says (70,600)"),
        (3.9e-05, 0, 0.01, "0.000, as the text says (0)"),
        (torch.tensor(0.33333, requires_grad=True), 1 / 3, 0.01, "0.333, as the text says (0.3333)"),
    ):
        claim(
            Model("smollm2"), "x", value, says=says, within=within
        )  # no power of ten, no ten digits, no warning
        assert capsys.readouterr().out == f"x: {told}\n"
    with pytest.raises(AssertionError, match=r"the text says 0\.7 \(± 0\.01\), and here it is 0\.592"):
        claim(Model("smollm2"), "share", 0.592, says=0.7, within=0.01)
    with pytest.raises(AssertionError):
        claim(Model("smollm2"), "share", float("nan"), says=0.7, within=0.01)
    claim(Model("gpt2"), "share", 0.3, says=0.7, within=0.01)
    assert "0.300 here; the text says 0.7, for SmolLM2" in capsys.readouterr().out


# --- progress ---


def test_progress_counts_the_best_and_survives_a_damaged_file(home):
    assert "0 of 3" in repr(overview.table())
    check(answer(lambda logits, answer, rival: 0))
    check(answer(RIGHT))
    check(answer(lambda logits, answer, rival: 0))  # a later failure takes nothing away
    with progress.path().open("a") as file:
        file.write('half a line\n{"id": 3}\n[]\n\n')
    assert re.search(r"\n00  Start here +1 of 3 +0 of 1 +0 of 1\n", repr(overview.table()))
    assert "Next: go on with notebook 00, Start here." in repr(overview.table())
    assert 'aria-label="Start here: 1 of 3 exercises"' in overview.table()._repr_html_()
    assert "<th></th>" not in overview.table()._repr_html_()  # read aloud as a heading that says nothing


def finish(number):
    for id in [id for id in all_ids() if id.startswith(number)] + list(declared(number, questions.Quiz)):
        progress.record(id, "correct")


def test_the_next_notebook_is_the_one_in_hand_or_the_one_after_it(monkeypatch):
    assert "Next: notebook 00, Start here." in repr(overview.table())
    finish("12")
    finish("31")
    assert repr(overview.table()).endswith("Next: notebook 32, Steering.")  # not 01
    predict("13.p", 0.5)
    assert repr(overview.table()).endswith("Next: go on with notebook 13, Neurons.")
    progress.record("24.1", "not attempted")  # a check that was run beneath a stub begins nothing
    finish("32")
    with progress.path().open("a") as file:  # the clock of this machine counts in seconds
        file.write('{"id": "32.1", "status": "correct", "time": "2999"}\n')
    assert repr(overview.table()).endswith(
        "Next: notebook 33, Matrix orthogonalization. Begun and not finished: 13."
    )


def test_the_table_has_questions_and_predictions_in_straight_columns():
    quiz("31.a", "z")
    predict("31.p", 0.5)
    head, *rows, _ = repr(overview.table()).splitlines()
    ends = [match.end() for match in re.finditer(r"\w+", head)]
    assert len(rows) == 25
    for row in rows:
        assert {match.end() for match in re.finditer(r"\d+ of \d+", row)} <= set(ends), row
    (row,) = (row for row in overview.table().rows if row.number == "31")
    assert row.done == (0, 0, 1) and row.begun and not row.finished


def test_progress_that_cannot_be_saved_costs_nothing_else(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MECHLAB_HOME", str(tmp_path / "file"))
    assert check(answer(RIGHT)).status == "correct"
    assert "Progress could not be saved" in capsys.readouterr().out


def test_progress_moves_between_machines_without_doubling(home, tmp_path):
    progress.record("00.1", "correct")
    copy = tmp_path / "copy.jsonl"
    copy.write_text(progress.path().read_text() + '{"id": "00.2", "status": "correct", "time": "x"}\n')
    assert progress.merge(copy) == 1
    assert progress.merge(copy) == 0
    assert "2 of 3" in repr(overview.table())


# --- reference ---


def test_the_table_shows_paper_stored_and_yours():
    table = reference.table("00", {"mean probability of the answer": torch.tensor(0.4781)})
    row = table.loc["mean probability of the answer"]
    assert row["paper"].startswith("0.49 (GPT-2 small") and row["yours"] == "0.478"
    assert table.loc["mean logit difference (logits)", "yours"] == ""
    table = reference.table("00", {"share of prompts with the answer above its rival": torch.tensor(1.0)})
    row = table.loc["share of prompts with the answer above its rival"]
    assert row["yours"] == row["SmolLM2, stored"] == "1.00"  # not "1": columns to be compared


def csv_notebooks() -> set[str]:
    lines = (reference.data_dir() / "reference" / "paper.csv").read_text(encoding="utf-8").splitlines()[1:]
    return {line.split(",")[0] for line in lines}


def test_every_published_figure_has_a_row_of_its_own_that_fits():
    table = reference.table("43")
    assert (
        list(table.index).count("") == 3 and (table.loc[""][["SmolLM2, stored", "yours"]] == "").all().all()
    )
    for notebook in csv_notebooks():  # pandas cuts what is longer than 50 characters
        assert reference.table(notebook)[["paper", "source"]].map(len).max().max() <= 50, notebook


def test_an_unknown_quantity_lists_the_known_ones():
    with pytest.raises(KeyError, match="mean probability of the answer"):
        reference.table("00", {"mean chance": 1.0})


def test_figures_from_memory_are_never_printed(monkeypatch, tmp_path):
    folder = tmp_path / "data" / "reference"
    folder.mkdir(parents=True)
    (folder / "paper.csv").write_text(
        "notebook,quantity,model,value,source,confidence\n77,x,m,1,s,M\n77,x,n,2,t,P\n"
    )
    (folder / "smollm2.csv").write_text("notebook,quantity,value,how\n77,x,3,z\n")
    monkeypatch.setenv("MECHLAB_DATA", str(tmp_path / "data"))
    assert reference.table("77").loc["x", "paper"] == "2 (n)"


def test_every_reference_row_has_source_and_confidence():
    import pandas as pd

    paper = pd.read_csv(reference.data_dir() / "reference" / "paper.csv")
    assert paper.notna().all().all() and set(paper.confidence) <= {"P", "R", "S"}
    assert pd.read_csv(reference.data_dir() / "reference" / "smollm2.csv").notna().all().all()


# --- working copies ---


def notebook(*cells):
    made = [{"cell_type": kind, "id": id, "source": [text], "metadata": {}} for kind, id, text in cells]
    return {"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


TASK = '@exercise("12.1")\ndef f(x):\n    """Task."""\n    {}'
OLD = notebook(
    ("markdown", "a", "# Old"),
    ("code", "b", TASK.format("raise NotImplementedError")),
    ("code", "c", 'quiz("12.a", ...)'),
)
NEW = notebook(
    ("markdown", "a2", "# New"),
    ("code", "b2", TASK.format("raise NotImplementedError  # new")),
    ("code", "c2", 'quiz("12.a", ...)'),
)


@pytest.fixture
def course(tmp_path):
    released, work = tmp_path / "notebooks", tmp_path / "work"
    released.mkdir()
    write = lambda path, content: path.write_text(json.dumps(content))
    write(released / "12_x.ipynb", OLD)
    workspace.refresh(released, work)
    return released, work, write, work / "notebooks" / "12_x.ipynb"


def test_a_new_notebook_is_copied_and_an_untouched_one_follows(course):
    released, work, write, mine = course
    assert workspace.refresh(released, work) == {"12_x.ipynb": "same"}
    run = json.loads(mine.read_text())
    run["cells"][1]["outputs"], run["cells"][1]["execution_count"] = ["something"], 3
    write(mine, run)  # opened and run, but not edited
    write(released / "12_x.ipynb", NEW)
    assert workspace.refresh(released, work) == {"12_x.ipynb": "followed"}
    assert "# New" in mine.read_text()


def test_an_edited_notebook_is_never_overwritten_by_refresh(course):
    released, work, write, mine = course
    edited = mine.read_text().replace("raise NotImplementedError", "return 7")
    mine.write_text(edited)
    write(released / "12_x.ipynb", NEW)
    assert workspace.refresh(released, work) == {"12_x.ipynb": "changed by you"}
    assert mine.read_text() == edited


def test_update_carries_answers_over_by_exercise_id_and_keeps_a_backup(course):
    released, work, write, mine = course
    edited = notebook(
        ("markdown", "a", "# Old"),
        ("code", "z", TASK.format("return 7")),  # retyped in a new cell
        ("code", "own", "my_experiment = 1"),
        ("code", "c", 'quiz("12.a", "b")'),
    )
    write(mine, edited)
    write(released / "12_x.ipynb", NEW)
    (line,) = workspace.update(released, work)
    assert "updated, 3 of your cells kept; the old file is backup" in line
    texts = ["".join(c["source"]) for c in json.loads(mine.read_text())["cells"]]
    assert texts[0] == "# New" and TASK.format("return 7") in texts
    assert 'quiz("12.a", "b")' in texts and "my_experiment = 1" in texts
    assert len(texts) == 4
    (backup,) = (work / "backup").iterdir()
    assert json.loads(backup.read_text()) == edited
    assert workspace.update(released, work) == []  # nothing more to do


def test_update_leaves_a_broken_notebook_alone(course):
    released, work, write, mine = course
    mine.write_text("not json")
    write(released / "12_x.ipynb", NEW)
    (line,) = workspace.update(released, work)
    assert "left alone, it is not a readable notebook" in line
    assert mine.read_text() == "not json"


@pytest.mark.model
def test_loading_says_so_before_it_is_slow(monkeypatch, capsys):
    shown = []

    @contextmanager
    def meanwhile(text):
        shown.append((text, capsys.readouterr().out))
        yield

    monkeypatch.setattr(models, "meanwhile", meanwhile)
    models.load()
    assert shown[0][0].startswith("loading smollm2") and shown[0][1] == ""
    assert capsys.readouterr().out.count("\n") == 1
    models.load(quiet=True)
    assert len(shown) == 1


# --- sources and build ---

GOOD = '''# %% [markdown]
# # Title

# %% kind="setup"
# setup

# %% kind="exercise" id="12.1"
@exercise("12.1")
def f(x):
    """Task."""
    # >>> solution
    return x + 1
    # <<< solution

# %% kind="check"
check(f)
'''
WRONG = '\n# %% kind="wrong" id="12.1" expects="no"\n@exercise("12.1")\ndef f(x):\n    return x\n'


def source(tmp_path, text):
    path = tmp_path / "12_x" / "notebook.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_learner_and_solution_differ_only_inside_the_exercise(tmp_path):
    path = source(tmp_path, GOOD + WRONG * 3 + '\n# %% kind="quiz"\nquiz("12.a", "b")\n')
    learner, solution = build.learner_notebook(path), build.solution_notebook(path)
    assert build.dump(learner) == build.dump(build.learner_notebook(path))  # to the byte
    pairs = list(zip(learner["cells"], solution["cells"], strict=True))
    assert [a["id"] for a, _ in pairs] == [b["id"] for _, b in pairs]
    different = [("".join(a["source"]), "".join(b["source"])) for a, b in pairs if a["source"] != b["source"]]
    assert len(different) == 2
    assert different[0][0].endswith("raise NotImplementedError  # your code here")
    assert different[0][1].endswith("    return x + 1") and "solution" not in different[0][1]
    assert different[1] == ('quiz("12.a", ...)', 'quiz("12.a", "b")')
    everything = build.dump(learner) + build.dump(solution)
    assert "wrong" not in everything
    assert build.setup_cell().splitlines()[0] in build.dump(learner)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('id="12.1"\n@', 'id="12.2"\n@'), r'cell 2: the header says id="12\.2", the decorator "12\.1"'),
        (("    # >>> solution\n", ""), "exactly one region"),
        (('    """Task."""\n', ""), "needs a docstring"),
        (('kind="check"', 'kind="oops"'), 'unknown kind "oops"'),
        (("def f(x):", "def f(x)"), "12_x, cell 2"),
        (("check(f)", "check(g)"), r"no check cell calls check\(f\)"),
        (("# setup", "# >>> solution\n1\n# <<< solution"), "a solution region outside an exercise cell"),
    ],
)
def test_rules_of_a_source_are_enforced(tmp_path, change, message):
    path = source(tmp_path, GOOD.replace(*change) + WRONG * 3)
    with pytest.raises(SourceError, match=message):
        build.learner_notebook(path)


MIXED = """effect = measure()
for name, says in (("a", 1.0), ("b", 2.0)):
    claim(model, name, effect[name], says=says, within=0.1)
reveal("12.p", effect["a"])
# the table
assert effect["a"] > 0
effect"""


def test_claims_and_reveals_get_cells_of_their_own(tmp_path):
    path = source(tmp_path, GOOD + WRONG * 3 + f"\n# %%\n{MIXED}\n")
    for made in (build.learner_notebook(path), build.solution_notebook(path)):
        measured, shown, checked = made["cells"][-4:-1]
        assert "".join(measured["source"]) == "effect = measure()\neffect" and not measured["metadata"]
        assert "".join(shown["source"]) == 'reveal("12.p", effect["a"])'
        assert shown["metadata"] == {"mechlab": {"kind": "reveal"}}
        assert "".join(checked["source"]).splitlines()[0] == TITLE
        assert {"claim(", "# the table", "assert "} <= set(
            re.findall(r"claim\(|# the table|assert ", "".join(checked["source"]))
        )
        assert checked["metadata"]["jupyter"] == {"source_hidden": True}  # JupyterLab
        assert checked["metadata"]["cellView"] == "form"  # Colab
        assert checked["metadata"]["_kg_hide-input"] is True  # Kaggle
        assert checked["metadata"]["tags"] == ["hide-input"]  # Jupyter Book


@pytest.mark.parametrize(
    ("code", "kind", "kinds"),
    [
        ("x = 1\nassert x == 1", "", [""]),  # a check of the lesson's own stays
        ("claim(model, 'x', x, says=1, within=0)", "assert", ["assert"]),
        ("y = 1\nreveal('12.p', x)\nclaim(model, 'x', y, says=1, within=0)", "assert", ["reveal", "assert"]),
        ("x = 1\nx", "compare", ["compare"]),
        ("reveal('12.p', x)", "compare", ["compare"]),
        ("if x:\n    claim(model, 'x', x, says=1, within=0)", "", [""]),
    ],
)
def test_what_is_taken_out_of_a_cell(code, kind, kinds):
    assert [part.kind for part in parts(Cell("code", code, {"kind": kind} if kind else {}))] == kinds


@pytest.mark.parametrize(
    ("code", "kind"),
    [("claim(model, 'x', x, says=1, within=0)\nx = 2", ""), ("x = 2\nreveal('12.p', x)", "assert")],
)
def test_a_statement_that_would_read_something_else_cannot_move(code, kind):
    with pytest.raises(SourceError, match=r"cannot move: \['x'\] is set on its way"):
        parts(Cell("code", code, {"kind": kind}))


def test_three_wrong_variants_are_required_and_each_must_expect_something(tmp_path):
    new = (GOOD + WRONG * 2).replace("12.1", "99.1")  # an exercise of which no mistakes are declared
    with pytest.raises(SourceError, match=r"exercise 99\.1 has 2 wrong variants; it needs 3"):
        build.learner_notebook(source(tmp_path, new))
    with pytest.raises(SourceError, match="a wrong variant needs expects="):
        read(source(tmp_path, GOOD + WRONG.replace(' expects="no"', "")))


def test_a_hidden_check_reaches_neither_notebook(tmp_path):
    path = source(tmp_path, GOOD + WRONG * 3 + '\n# %% kind="hidden"\nsecret = 1\n')
    assert "secret" not in build.dump(build.learner_notebook(path)) + build.dump(
        build.solution_notebook(path)
    )


def test_the_link_to_colab_waits_for_an_address(tmp_path, monkeypatch):
    path = source(tmp_path, GOOD + WRONG * 3)
    assert "Open in Colab" not in build.dump(build.learner_notebook(path))
    monkeypatch.setattr("mechlab_course.build.links.address", lambda: "https://github.com/somebody/mechlab")
    page = "https://colab.research.google.com/github/somebody/mechlab/blob/main/notebooks/12_x.ipynb"
    assert f"[Open in Colab]({page})" in build.dump(build.learner_notebook(path))


def test_no_page_for_learners_says_how_it_is_made():
    for name, text in build.pages().items():
        assert "mechlab build" not in re.sub(r"<!--.*?-->", "", text), name


def test_a_stale_solution_is_noticed(tmp_path):
    path = source(tmp_path, GOOD + WRONG * 3)
    expected = build.solution_notebook(path)
    target = tmp_path / "12_x.ipynb"
    assert not build._is_fresh(target, expected)
    target.write_text(build.dump(expected))
    assert not build._is_fresh(target, expected)  # never executed
    executed = json.loads(build.dump(expected))
    for cell in executed["cells"]:
        if cell["cell_type"] == "code":
            cell["execution_count"] = 1
    target.write_text(build.dump(executed))
    assert build._is_fresh(target, expected)
    changed = build.solution_notebook(source(tmp_path, GOOD.replace("x + 1", "x + 2") + WRONG * 3))
    assert not build._is_fresh(target, changed)


@pytest.mark.parametrize("where", ["colab", "kaggle", "here", "nowhere"])
def test_the_setup_cell_acts_where_it_must(where, monkeypatch):
    """Hosted notebooks fetch the course; at home nothing happens; a kernel without the course is told so."""
    called = []
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    monkeypatch.setattr("os.system", lambda command: called.append(command) or 0)
    monkeypatch.setattr("runpy.run_path", lambda path, run_name: called.append(path))
    if where == "colab":
        monkeypatch.setitem(sys.modules, "google.colab", object())
    if where == "kaggle":
        monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    if where == "nowhere":
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    first = build.setup_cell().split("import torch")[0]
    if where == "nowhere":
        with pytest.raises(
            SystemExit, match=r'does not have the course.*pip install "mechlab-course\[lab\]"'
        ):
            exec(first, {})
    else:
        exec(first, {})
    script = "/tmp/mechlab/mechlab_course/build/colab.py"
    wanted = [f"git clone -q --depth 1 {build.address()} /tmp/mechlab", script]
    assert called == (wanted if where in ("colab", "kaggle") else [])
    assert (build.ROOT / script.removeprefix("/tmp/mechlab/")).is_file()
