"""Hand out, collect, grade: thirty submissions and more, a third of them hostile or broken, graded in one run."""

import csv
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mechlab_course import folders
from mechlab_course.build import notebooks as build
from mechlab_course.build.sources import exercises, read
from mechlab_course.cli import app
from mechlab_course.exercises import all_ids
from mechlab_course.grading import (
    confine,
    grader,
    grades,
    items,
    judge,
    report,
    results,
    submissions,
    summary,
)
from mechlab_course.grading.answers import find
from mechlab_course.grading.grader import Asked, course_ids, grade
from mechlab_course.grading.grades import GradingError, Rules
from mechlab_course.grading.sandbox import Sandbox
from mechlab_course.grading.submissions import Unreadable, cells, collect, owner
from mechlab_course.grading.suspicion import suspicious
from tests.handed_in import HEADS, HIDDEN, RIGHT, answer, hostile, make, notebook

run = CliRunner().invoke
STEMS = [*build.sources()]
RULES = Rules(seconds=3, memory=600_000_000)
linux = pytest.mark.skipif(not confine.LINUX, reason="the sandbox is Linux's")
ONE = answer("12.1", RIGHT["12.1"])


def retyped() -> dict[str, str | bytes]:
    """Right answers to 12.1 as learners and front ends leave them."""
    plain = notebook("import torch", ONE)
    colab = plain | {"metadata": {"colab": {"provenance": []}, "accelerator": "GPU"}}
    colab["cells"] = [
        c | {"metadata": {"id": "Xy1", "outputId": "ab", "colab": {"height": 35}}} for c in plain["cells"]
    ]
    code = plain | {
        "metadata": {"vscode": {"interpreter": {"hash": "0"}}, "language_info": {"name": "python"}}
    }
    code["cells"] = [c | {"metadata": {"vscode": {"languageId": "python"}}} for c in plain["cells"]]
    old = {"nbformat": 4, "nbformat_minor": 0, "metadata": {}}
    old["cells"] = [{k: v for k, v in c.items() if k != "id"} for c in plain["cells"]]
    older = [
        {"cell_type": "code", "input": c["source"], "language": "python", "outputs": []}
        for c in plain["cells"][1:]
    ]
    one_string = plain | {"cells": [c | {"source": "".join(c["source"])} for c in plain["cells"]]}
    text = json.dumps(plain)
    helper = "import math as m\nTWO = 2\ndef by(x, y):\n    return x / y * TWO / m.sqrt(4)\n"
    uses_helper = answer("12.1", "return by(written @ (W_U[:, answer] - W_U[:, rival]), scale)")
    uses_table = answer(
        "12.1", "return cfg.sign * TABLE[1] * written @ (W_U[:, answer] - W_U[:, rival]) / scale"
    )
    other = "@exercise('12.1')\ndef mine(a, b, c, d, e):\n    return a @ (b[:, c] - b[:, d]) / e"
    return {
        "colab": json.dumps(colab),
        "vs_code": json.dumps(code),
        "no_cell_ids": json.dumps(old),
        "nbformat_3": json.dumps(
            {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": older}]}
        ),
        "one_string": json.dumps(one_string),
        "windows": text.replace("\\n", "\\r\\n").replace("\n", "\r\n").encode(),
        "with_a_mark": b"\xef\xbb\xbf" + text.encode(),
        "utf_16": text.encode("utf-16"),
        "single_quotes_and_renamed": json.dumps(notebook(other)),
        "through_ml": json.dumps(
            notebook(ONE.replace("@exercise", "@ml.course.exercise").replace("(written", "(written "))
        ),
        "more_decorators": json.dumps(notebook(f"@torch.no_grad()\n{ONE}")),
        "a_lambda": json.dumps(
            notebook('f = exercise("12.1")(lambda a, b, c, d, e: a @ (b[:, c] - b[:, d]) / e)')
        ),
        "magics": json.dumps(
            notebook(
                "%matplotlib inline\n!pip list\nmodel?\nfiles = !ls",
                f"%%time\n{ONE}check({HEADS['12.1'][0]})",
            )
        ),
        "after_broken_code": json.dumps(notebook("def broken(:\n    pass", f"{ONE}\nundefined_call(1)")),
        "own_helper": json.dumps(notebook(helper, "model.run_with_cache('x')", uses_helper)),
        "helper_below": json.dumps(notebook(uses_helper, helper)),
        "tried_twice": json.dumps(notebook(ONE, answer("12.1", "return 0"), answer("12.1", "return 1"))),
        "built_by_statements": json.dumps(
            notebook(
                "try:\n    import nonsense as tool\nexcept ImportError:\n    import math as tool\nSIGN = 1\nSIGN *= 1",
                "class Settings: ...\ncfg = Settings()\ncfg.sign = SIGN\nTABLE = {}\n"
                "for n in range(3):\n    TABLE[n] = tool.sqrt(n * n)\n    model(n)",
                uses_table,
                "check(direct_effects)",
                "cfg.sign, TABLE = -5, None",
            )
        ),
        "inside_an_if": json.dumps(notebook("if True:\n" + textwrap.indent(ONE, "    "))),
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("class")


def tree(*folders: Path) -> dict[str, str]:
    files = [
        p
        for folder in folders
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "__pycache__" not in p.parts
    ]
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def graded(place):
    """(statuses wanted, what came out, what was said), of one run over everything."""
    outside = place / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    wanted = make(place / "in", outside, HIDDEN)
    for name, text in retyped().items():
        (place / "in" / name).mkdir()
        (place / "in" / name / "homework.ipynb").write_bytes(
            text if isinstance(text, bytes) else text.encode()
        )
        wanted[name] = {"12.1": "correct"}
    (place / "in" / "asked").mkdir()
    (place / "in" / "asked" / "12.ipynb").write_text(
        json.dumps(notebook('quiz("12.a", "a")', 'quiz("12.a", "b")', 'quiz("12.b", ...)'))
    )
    wanted["asked"] = {"12.a": "correct", "12.b": "not attempted"}
    before, said = tree(place, HIDDEN), []
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("A_TOKEN", "of-the-teacher")
        found = grade(
            place / "in", place / "out" / "grades.csv", Asked(hidden=HIDDEN), rules=RULES, say=said.append
        )
    assert tree(place / "in", outside, HIDDEN) == before
    return wanted, {learner.name: (learner, by_id) for learner, by_id in found}, said


def result(graded, name: str, id: str = "12.1") -> grades.Grade:
    return graded[1][name][1][id]


@linux
def test_everybody_gets_what_they_must_whoever_sits_beside_them(graded):
    wanted, found, _ = graded
    assert len(wanted) >= 50 and set(found) == set(wanted)
    off = {
        (name, id): (by_id[id], status)
        for name, (_, by_id) in found.items()
        for id, status in wanted[name].items()
        if by_id[id].status != status
    }
    assert not off


TOLD = {
    "loops_for_ever": "ran longer than 3 seconds",
    "catches_everything": "ran longer than 3 seconds",
    "forks": "it starts another process",
    "eats_memory": "can't allocate memory",
    "hoards": "MemoryError",
    "prints_a_gigabyte": "printed more than 10 MB",
    "reads_the_hidden_checks": "it reads a file that is not its own",
    "reads_quietly": "it reads a file that is not its own",
    "patches_equal": "it changes `torch.allclose`",
    "patches_the_checker": "imports `mechlab_course.exercises`",
    "patches_by_another_name": "it changes `w.changed`, which is not its own",
    "patches_by_stealth": "changes `mechlab_course.checks_12.close`",
    "writes_outside": "it writes to a file",
    "deletes_outside": "it changes files",
    "asks_the_network": "it opens a network connection",
    "runs_a_shell": "it starts another process",
    "leaves_at_once": "ended the process",
    "leaves_politely": "stopped with SystemExit",
    "kills_its_parent": "it sends a signal",
    "leaves_a_thread": "it leaves a thread running",
    "forges_a_verdict": "it writes into the grader's own channel",
    "looks_up_the_stack": "it looks into Python's frames",
    "makes_a_class_quietly": "it returns an object of its own class, `Yes`",
    "crashes": "process was killed",
    "ends_by_a_signal_without_a_name": "process was killed (signal 40)",
    "closes_everything": "ran longer",
    "holds_its_breath": "ran longer",
    "answers_comparisons": "it makes a class that answers comparisons itself",
}


@linux
@pytest.mark.parametrize("name", TOLD)
def test_what_was_tried_is_named_and_earns_nothing(graded, name):
    found = result(graded, name)
    assert TOLD[name] in found.message and found.points == 0


def test_every_trick_is_looked_at():
    assert set(hostile(Path(), Path())) == {*TOLD, "prints_the_environment"}


@linux
def test_what_it_printed_is_kept_and_holds_no_token_of_the_teacher(graded):
    printed = result(graded, "prints_the_environment").printed
    assert "OMP_NUM_THREADS" in printed and "A_TOKEN" not in printed


@linux
def test_files_that_cannot_be_read_cost_that_file_only(graded):
    problems = {name: learner.problems for name, (learner, _) in graded[1].items() if learner.problems}
    assert set(problems) == {"not_json", "cut_off", "a_link", "a_zip"}
    assert "not a notebook" in problems["not_json"][0] and "line 1" in problems["not_json"][0]
    assert "cut off" in problems["cut_off"][0]
    assert problems["a_link"] == ["12_passwd.ipynb: a link to somewhere else, which is not followed."]
    assert "leads out of the zip file" in problems["a_zip"][0]


@linux
def test_a_table_of_the_visible_cases_gets_the_share_and_the_hidden_message(graded):
    found = result(graded, "ivo", "12.2")
    assert (found.status, found.points) == ("partly", 0.5) and "A further one says" in found.message


@linux
def test_a_name_that_only_other_cells_define_is_explained(graded):
    assert "`undefined_helper`, which the notebook does not define" in result(graded, "jo", "12.7").message


@linux
def test_the_table_is_what_a_gradebook_reads(graded, place):
    data = (place / "out" / "grades.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbflearner,id,team,days late,total,out of,per cent,12.c points,")
    rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))
    by_name = {row["learner"]: row for row in rows}
    assert len(by_name) == len(rows) == len(graded[0])
    assert (
        by_name["ada"] | {"total": "5", "out of": "6", "12.1 points": "1", "12.1 status": "correct"}
        == by_name["ada"]
    )
    assert by_name["ivo"]["total"] == "4.5" and by_name["not_json"]["total"] == "0"


@linux
def test_pages_are_plain_escaped_and_complete(graded, place):
    pages = {path.stem: path.read_text() for path in (place / "out" / "feedback").glob("*.html")}
    assert set(pages) == set(graded[0])
    for text in [*pages.values(), (place / "out" / "summary.html").read_text()]:
        assert '<html lang="en">' in text and "<script" not in text and "<title>" in text
        assert str(place) not in text.replace(str(place / "outside"), "").replace("/class0/", "")
    assert "Your function stopped with NameError" in pages["jo"]
    summary = (place / "out" / "summary.html").read_text()
    assert "To look at by hand" in summary and "Files that were not read" in summary
    assert 'href="feedback/forks.html"' in summary


@linux
def test_a_second_run_asks_nobody_and_gives_the_same_bytes(graded, place, monkeypatch):
    before = tree(place / "out")

    def nobody(*_):
        raise AssertionError("everything is known already")

    monkeypatch.setattr(results, "Sandbox", nobody)
    said = []
    grade(place / "in", place / "out" / "grades.csv", Asked(hidden=HIDDEN), rules=RULES, say=said.append)
    assert tree(place / "out") == before and "0 of them new" in said[2]


@linux
def test_the_command_prints_the_class_by_exercise(graded, place, monkeypatch):
    monkeypatch.setattr(results, "Sandbox", None)  # all is known, and nobody is asked
    command = [
        "grade",
        str(place / "in"),
        "--out",
        str(place / "out" / "grades.csv"),
        "--hidden",
        str(HIDDEN),
    ]
    done = run(app, [*command, "--seconds", "3", "--memory", "0.6"])
    assert done.exit_code == 0, done.stdout
    (row,) = [line.split() for line in done.stdout.splitlines() if line.startswith("12.2 ")]
    assert row[2] == "1"  # partly
    assert "4 files with a problem" in done.stdout and "summary.html" in done.stdout


@linux
def test_an_interrupted_run_goes_on_where_it_stopped(graded, place, monkeypatch):
    """The last line of the kept results was cut off: only that answer is checked again."""
    asked, before = [], (place / "out" / "grades.csv").read_bytes()
    kept = place / "out" / ".mechlab-grading.jsonl"
    lines = kept.read_text().splitlines(True)
    last = json.loads(lines[-1])["result"]
    kept.write_text("".join(lines[:-1]) + lines[-1][:40])

    class Known:
        def __init__(self, *_): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def ask(self, job):
            asked.append(job["id"])
            return last

    monkeypatch.setattr(results, "Sandbox", Known)
    grade(place / "in", place / "out" / "grades.csv", Asked(hidden=HIDDEN), rules=RULES, say=lambda _: None)
    assert len(asked) == 1 and (place / "out" / "grades.csv").read_bytes() == before


# What holds without the parts that an answer might get around


@linux
@pytest.mark.skipif(len(confine.protections()) < 3, reason="this kernel has no Landlock or no seccomp")
def test_the_kernel_alone_holds(tmp_path):
    """No audit hook, no look at the code: a confined process by itself."""
    (tmp_path / "secret").write_text("secret")
    code = """
    import ctypes, os, signal, socket, sys, threading
    from pathlib import Path
    from mechlab_course.grading.confine import confine
    place, parent = Path(sys.argv[1]), os.getppid()
    confine(20, 300_000_000, [Path("/usr/lib"), Path("/lib")])
    libc = ctypes.CDLL(None)
    def refused(what, *args):
        try:
            what(*args)
        except OSError as error:
            return error.errno in (1, 13, 27)
        except MemoryError:
            return True
    print([
        refused(open, place / "secret"), refused(open, place / "new", "w"), refused(os.remove, place / "secret"),
        refused(os.listdir, place), refused(os.rename, place / "secret", place / "x"), refused(os.chmod, place, 0),
        refused(os.mkdir, place / "folder"), refused(os.symlink, "a", place / "link"),
        refused(socket.socket), refused(os.fork), refused(os.execv, "/bin/sh", ["sh"]), refused(os.posix_spawn, "/bin/sh", ["sh"], {}),
        refused(os.kill, parent, 0), refused(os.kill, -1, 0), refused(bytearray, 10**9), refused(os.setpriority, 0, parent, 5),
        libc.fork() == -1, libc.unshare(0x10000000) == -1, libc.ptrace(16, parent, 0, 0) == -1,
        refused(open, f"/proc/{parent}/mem", "rb"), refused(open, f"/proc/{parent}/environ"),
    ])
    thread = threading.Thread(target=print, args=("threads work",)); thread.start(); thread.join()
    os.kill(os.getpid(), signal.SIGTERM)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=build.ROOT,
    )
    assert "False" not in done.stdout and "None" not in done.stdout, done.stdout
    assert done.stdout.count("True") == 21 and "threads work" in done.stdout, done.stderr
    assert done.returncode == -15
    assert [p.name for p in tmp_path.iterdir()] == ["secret"]


def test_without_a_fork_each_answer_gets_a_process_of_its_own(tmp_path):
    """As on macOS and Windows: slower, and with fewer protections, but no answer harms another."""
    job = {
        "kind": "exercise",
        "id": "12.4",
        "name": HEADS["12.4"][0],
        "seconds": 15.0,
        "memory": 10**9,
        "hidden": [],
    }
    with Sandbox(["12.4"], False, [], [tmp_path], forks=False) as sandbox:
        right = sandbox.ask(job | {"code": answer("12.4", RIGHT["12.4"])})
    assert right["status"] == "correct" and right["flags"] == []


@linux
def test_a_hidden_check_that_cannot_be_loaded_is_named():
    with pytest.raises(ValueError, match=r"a hidden check cannot be loaded \(NameError: name 'oops'"):
        judge.hidden_ids(["oops"])
    assert judge.hidden_ids([(HIDDEN / "nb12.py").read_text()]) == ["12.2"]


def test_hidden_checks_come_from_the_folder_and_from_the_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "ROOT", tmp_path)
    (tmp_path / "course" / "12_x").mkdir(parents=True)
    cell = (
        '# %% kind="hidden" id="12.1"\n@checker("12.1")\ndef further(attempt): ...\n\n# %%\nprint("shown")\n'
    )
    (tmp_path / "course" / "12_x" / "notebook.py").write_text(f"# %% [markdown]\n# # 12\n\n{cell}")
    (tmp_path / "nb12.py").write_text("of the folder")
    first, second = grader.hidden_sources("12", tmp_path)
    assert first == "of the folder" and "def further" in second and "shown" not in second
    assert grader.hidden_sources("11", tmp_path) == []


# Finding and reading


def test_whose_file_it_is():
    for file, name in {
        "anna__12_direct_logit_attribution.ipynb": "anna",
        "anna_b_12_direct_logit_attribution.ipynb": "anna_b",
        "doejane_LATE_123_456_11_input_attribution-1.ipynb": "doejane",
        "doejane_123_456_11_input_attribution.ipynb": "doejane",
        "Jörg Müller.ipynb": "Jörg Müller",
        "12_direct_logit_attribution.ipynb": "12_direct_logit_attribution",
    }.items():
        assert owner(file, STEMS)[0] == name


def test_folders_of_moodle_files_of_canvas_and_zip_files(tmp_path):
    def put(name: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(notebook(ONE)))

    put("doe_jane_12345_assignsubmission_file/12.ipynb")
    put("Li Na_1_assignsubmission_file_/a/b/whatever.ipynb")
    put("Li Na_2_assignsubmission_file_/.ipynb_checkpoints/x.ipynb")
    put("roe_12_direct_logit_attribution.ipynb")
    (tmp_path / "roe.py").write_text(f"# %%\nimport torch\n# %%\n{ONE}")
    (tmp_path / "list of names.txt").write_text("no submission")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "essay.pdf").write_bytes(b"%PDF")
    with zipfile.ZipFile(tmp_path / "kim.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("deep/12.ipynb", json.dumps(notebook(ONE)))
        archive.writestr("__MACOSX/deep/._12.ipynb", "junk")
        archive.writestr("inner.zip", b"PK")
    found = {
        learner.name: (len(learner.answers), len(learner.problems)) for learner in collect(tmp_path, STEMS)
    }
    assert found == {
        "doe_jane": (1, 0),
        "Li Na (1)": (1, 0),
        "Li Na (2)": (0, 1),
        "roe": (2, 0),
        "empty": (0, 1),
        "kim": (1, 1),
    }


def test_a_zip_bomb_and_a_damaged_zip_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(submissions, "LARGEST", 1_000_000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("12.ipynb", b" " * 5_000_000)
    whole = (tmp_path / "bomb.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "big.ipynb").write_bytes(b" " * 1_000_001)
    problems = {learner.name: learner.problems[0] for learner in collect(tmp_path, STEMS)}
    assert "unpacks to more than 1 MB" in problems["bomb"]
    assert "not a readable zip file" in problems["cut"] and "larger than 1 MB" in problems["big"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files here")
def test_a_file_that_never_ends_is_not_opened_for_ever(tmp_path):
    os.mkfifo(tmp_path / "pipe.ipynb")
    (learner,) = collect(tmp_path, STEMS)
    assert learner.problems == ["pipe.ipynb: not a plain file."]


@pytest.mark.parametrize(
    ("data", "says"),
    {
        b"": "empty",
        b"\xff\xfa\x00": "UTF-8",
        b"[1, 2]": "no list of cells",
        b'{"cells": 3}': "no list of cells",
        b'{"cells": [3]}': "no list of cells",
        b'{"cells": [{"cell_type": "code", "source": [1]}]}': "no list of cells",
        b"[" * 100_000: "nested too deeply",
        b"%PDF-1.4": "no valid JSON",
    }.items(),
)
def test_what_is_no_notebook_is_told_so(data, says):
    with pytest.raises(Unreadable, match=says):
        cells(data)


def test_an_answer_brings_what_it_needs_and_nothing_that_runs():
    (found,) = find(
        [
            "import numpy as np, math\nfrom math import sqrt",
            "EPS = 1e-5; OTHER = [1, 2]\nlogits = model(tokens)\nprint('never')\nbig = expensive()",
            "def norm(x):\n    return sqrt(x) + helper(x) + EPS\n\nclass Unused: ...",
            "for i in range(3):\n    norm(i)\nhelper = lambda x: np.abs(x)",
            '@exercise("12.1")\ndef f(x) -> Float[Tensor, "a"]:\n    return norm(x) + logits.mean()',
            "check(f)",
            "def norm(x):\n    return 'another, later'",
        ],
        "a.ipynb",
    )
    assert found.where == "a.ipynb, code cell 5" and found.name == "f"
    for wanted in (
        "import numpy as np",
        "from math import sqrt",
        "EPS = 1e-05",
        "def norm",
        "helper = lambda",
    ):
        assert wanted in found.code
    for unwanted in ("print", "model(", "expensive", "Unused", "OTHER", "another, later", "for i"):
        assert unwanted not in found.code
    assert (
        len(found.missing) == 1
        and "`logits`, which code cell 2 makes by running something" in found.missing[0]
    )


def test_a_cell_that_is_not_python_tells_its_line_and_the_others_count():
    broken, whole = find(
        ['@exercise("12.1")\ndef f(x):\n    return (x', '@exercise("12.2")\ndef g(x):\n    return x'],
        "a.ipynb",
    )
    assert broken.id == "12.1" and "not Python in line 3" in broken.problem
    assert whole.id == "12.2" and not whole.problem and "def g" in whole.code


@pytest.mark.parametrize(
    "text", ["(" * 5000, "-" * 100_000 + "1", "x = " + "[" * 300, "\x00", "\ud800", "a" * 300_000]
)
def test_code_that_is_made_to_break_a_reader(text):
    assert [a.id for a in find([f"{text}\n# exercise('12.1')", ONE], "a.ipynb") if not a.problem] == ["12.1"]


def test_many_copies_of_an_exercise_are_not_all_run(tmp_path):
    learner = submissions.Learner(
        "x", answers=find([answer("12.1", f"return {n}") for n in range(40)], "a.ipynb")
    )
    tried = grader._tried(learner, ["12.1"])
    assert len(tried) == grader.COPIES and "return 39" in tried[-1].code
    assert "40 different answers" in learner.problems[0]


def test_every_exercise_and_question_of_the_course_is_known():
    listed = [id for ids in course_ids().values() for id in ids]
    assert sorted(id for id in listed if id[3].isdigit()) == all_ids()
    assert "12.a" in listed


def test_no_solution_looks_suspicious():
    for stem, path in build.sources().items():
        for id, cell, *_ in exercises(read(path)):
            (found,) = find([cell.solved()], stem)
            assert suspicious(found.code) == [] and not found.missing, id
            (stub,) = find([cell.stub()], stem)
            assert stub.stub, id


@linux
@pytest.mark.model
def test_a_solution_of_every_notebook_passes_in_the_sandbox():
    answers = []
    for stem, path in build.sources().items():
        _, cell, *_ = next(exercises(read(path)))
        answers += find([cell.solved()], stem)
    with Sandbox([a.id for a in answers], False, [], []) as sandbox:
        for a in answers:
            job = {
                "kind": "exercise",
                "id": a.id,
                "code": a.code,
                "name": a.name,
                "seconds": 60.0,
                "memory": 2 * 10**9,
                "hidden": [],
            }
            found = sandbox.ask(job)
            assert (found["status"], found["flags"]) == ("correct", []), (a.id, found)


# What comes out


def test_names_and_messages_cannot_do_harm_in_a_table_or_a_page(tmp_path):
    names = [
        "=HYPERLINK(1)",
        "+1",
        "-1",
        "@x",
        " =1",
        "<script>x</script>",
        "a/b",
        "a\\b",
        "\x1b[31mred",
        "con\ud800",
        "..",
        "A",
        "a",
    ]
    grade_ = grades.Grade("12.1", "not yet", 0.0, "<img onerror=x> `code`", "f<x>.ipynb", "<b>\x1b[0m" * 3)
    out = tmp_path / "o" / "grades.csv"
    out.parent.mkdir()
    graded = [(submissions.Learner(name), {"12.1": grade_}) for name in names]
    book = grades.Gradebook(graded, ["12.1"], RULES)
    report.write(book, out)
    summary.write(book, out)
    rows = list(csv.reader(io.StringIO(out.read_text(encoding="utf-8-sig"))))
    assert [row[0] for row in rows[1:6]] == ["'=HYPERLINK(1)", "'+1", "'-1", "'@x", "' =1"]
    pages = list((tmp_path / "o" / "feedback").iterdir())
    assert len(pages) == len(names) and len({page.name.casefold() for page in pages}) == len(names)
    for page in [*pages, tmp_path / "o" / "summary.html"]:
        text = page.read_text(encoding="utf-8")
        assert "<script" not in text and "<img" not in text and "\x1b" not in text and "<b>" not in text
    assert "<code>code</code>" in pages[0].read_text(encoding="utf-8")


def test_messages_that_differ_in_numbers_count_as_one():
    told = [f"At [{n}] the result should be {n}.5, and yours is -0.{n}." for n in range(3)] + ["Another."]
    graded = [
        (submissions.Learner(str(n)), {"1.1": grades.Grade("1.1", "not yet", 0, text)})
        for n, text in enumerate(told)
    ]
    (item,) = items.items(grades.Gradebook(graded, ["1.1"], RULES), lambda text: re.sub(r"\d+", "#", text))
    assert item.common == [(3, told[0]), (1, "Another.")] and item.status["not yet"] == 4


def test_the_command_says_what_is_wrong_in_one_sentence(tmp_path):
    assert "There is no folder" in run(app, ["grade", str(tmp_path / "nowhere")]).stdout
    (tmp_path / "in").mkdir()
    empty = run(app, ["grade", str(tmp_path / "in"), "--out", str(tmp_path / "grades.csv")])
    assert empty.exit_code == 1 and "holds no answer" in empty.stdout
    inside = run(app, ["grade", str(tmp_path / "in"), "--out", str(tmp_path / "in" / "grades.csv")])
    assert inside.exit_code == 1 and "outside" in inside.stdout
    with pytest.raises(GradingError, match="answers may read"):
        grade(build.ROOT / "data", tmp_path / "grades.csv")
