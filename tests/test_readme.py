"""What the README promises: its code prints what its comments say, its make targets exist and explain themselves."""

import contextlib
import io
import math
import os
import re
import shutil
import subprocess
import textwrap
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.model
def test_the_ten_lines_print_the_numbers_in_their_comments():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.strip().splitlines()) <= 12
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "<README>", "exec"), {})
    lines = printed.getvalue().splitlines()
    assert lines[0].startswith("smollm2: 30 layers × 9 heads, 135 M parameters, float32 on ")
    promised = re.findall(r"# tensor\(\[([\d.]+)\]\)", code)
    found = re.findall(r"tensor\(\[([\d.]+)", printed.getvalue())
    assert len(promised) == 2
    assert [float(p) for p in promised] == pytest.approx([float(f) for f in found], abs=0.01)


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    command = ["make", "-s", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | environment)


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_make_lab_says_what_is_missing(tmp_path):
    done = make(tmp_path, "lab", "PYTHON=no-such-python")
    assert (
        done.returncode != 0 and "no-such-python was not found. Install Python 3.11 or newer." in done.stdout
    )
    old = script(tmp_path / "old", 'case "$2" in *version_info*) exit 1;; esac')
    done = make(tmp_path, "lab", f"PYTHON={old}")
    assert done.returncode != 0 and "Python 3.11 or newer is needed" in done.stdout
    bare = script(tmp_path / "bare", 'case "$2" in *ensurepip*) exit 1;; esac')
    done = make(tmp_path, "lab", f"PYTHON={bare}")
    assert done.returncode != 0 and "apt install python3-venv python3-pip" in done.stdout
    assert not (tmp_path / ".venv").exists()


def test_the_readme_names_real_targets_commands_and_variables():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make (\w+)", README)) | {"lab", "test"} <= targets
    code = "\n".join(path.read_text() for path in ROOT.glob("mechlab*/**/*.py"))
    for variable in set(re.findall(r"`(MECHLAB_\w+)`", README)):
        assert f'"{variable}"' in code, variable
    for command in set(re.findall(r"mechlab (pull|doctor|update|progress|lab|build)\b", README)):
        assert f"def {command}(" in code


def test_colab_installs_only_what_is_missing_and_keeps_what_is_loaded(monkeypatch, tmp_path):
    from mechlab_course.build import colab

    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(colab.sys, "path", [])
    monkeypatch.delitem(colab.sys.modules, "transformers", raising=False)
    calls = []
    monkeypatch.setattr(colab.subprocess, "run", lambda command, check: calls.append(command))
    have = {"torch": "2.9.0+cu126", "numpy": "2.0.2", "pandas": "2.2.2"}
    monkeypatch.setattr(colab, "installed", lambda name: have.get(name))
    colab.main(tmp_path)
    (command,) = calls
    assert "transformer-lens" in " ".join(command) and not any(
        c.startswith(("torch", "numpy")) for c in command
    )
    kept = Path(command[command.index("-c") + 1]).read_text()
    assert kept == "torch==2.9.0+cu126\nnumpy==2.0.2\npandas==2.2.2\n"
    assert colab.sys.path == [str(tmp_path)] and Path.cwd() == tmp_path / "notebooks"
    monkeypatch.setattr(colab, "installed", lambda name: "1")
    colab.main(tmp_path)
    assert len(calls) == 1  # nothing missing, nothing installed


def test_colab_asks_for_a_restart_before_anything_is_downloaded(monkeypatch, tmp_path):
    from mechlab_course.build import colab

    monkeypatch.setitem(colab.sys.modules, "transformers", object())
    monkeypatch.setattr(colab, "installed", lambda name: None)
    monkeypatch.setattr(colab.subprocess, "run", lambda *_, **__: pytest.fail("installed something"))
    with pytest.raises(SystemExit, match=r"Restart first.*Nothing has been downloaded"):
        colab.main(tmp_path)


def test_the_citation_agrees_with_the_package():
    import yaml

    from mechlab_course.build.notebooks import address

    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (cited["repository-code"], cited["version"]) == (address(), project["version"])
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_exercise_that_the_contributors_guide_adds_works(tmp_path, monkeypatch):
    """The cells and the check of the guide, word by word: solution and stub, and each mistake with its message."""
    from mechlab_course import exercises
    from mechlab_course.build import sources

    guide = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    cells, check = re.findall(r"^   (`{3,})python\n(.*?)^   \1$", guide, re.DOTALL | re.MULTILINE)
    path = tmp_path / "12_example.py"
    path.write_text(f"# %% [markdown]\n# # 12\n\n{textwrap.dedent(cells[1])}", encoding="utf-8")
    monkeypatch.setattr(exercises, "_CHECKERS", {})
    session = {name: getattr(exercises, name) for name in ("checker", "exercise", "Attempt", "NotYet")}
    exec("import torch\nfrom jaxtyping import Float, Int\nfrom torch import Tensor", session)
    exec(textwrap.dedent(check[1]), session)
    ((id, cell, _, wrong),) = sources.exercises(sources.read(path))
    for code, status, says in [
        (cell.solved(), exercises.CORRECT, "right heads"),
        (cell.stub(), exercises.NOT_ATTEMPTED, "NotImplementedError"),
        *((each.source, exercises.NOT_YET, each.meta["expects"]) for each in wrong),
    ]:
        exec(code, session)
        outcome = exercises.run_checker(id, session["strongest"], (), {})
        assert outcome.status == status and says in outcome.message, outcome


def left_out(told: str) -> set[str]:
    """The exercises that "02.5 to 02.7, 03.4" names."""
    found = set(re.findall(r"\d\d\.\d+", told))
    for notebook, first, last in re.findall(r"(\d\d)\.(\d+) to \1\.(\d+)", told):
        found |= {f"{notebook}.{n}" for n in range(int(first), int(last) + 1)}
    return found


def test_the_timetables_hold_what_the_notebooks_need():
    """A notebook stands with its header's minutes, or with what is left of them without some exercises.

    A quarter more than all of them fits into the hours.
    """
    minutes, exercise = {}, {}
    for path in (ROOT / "course").glob("*/notebook.py"):
        text = path.read_text(encoding="utf-8")
        minutes[path.parent.name[:2]] = int(re.search(r"^# Time: (\d+) minutes", text, re.MULTILINE)[1])
        asked = re.findall(r"### Exercise (\d\d\.\d+) .*\n#\n# Difficulty \d of 5 · (\d+) minutes", text)
        exercise |= {id: int(taken) for id, taken in asked}
    guide = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
    assert f"whole course is about {round(sum(minutes.values()) / 60)} hours" in guide
    rows = re.findall(r"^\| (\d+) \| (\d\d \(.*?) \| (\d+) \| (\d+) \| (.*?) \|", guide, re.MULTILINE)
    assert [hours for hours, *_ in rows] == ["4", "8", "16"]
    for hours, notebooks, together, with_slack, told in rows:
        parts = re.findall(r"(\d\d) \((\d+)(?: of (\d+))?\)", notebooks)
        assert sum(int(taken) for _, taken, _ in parts) == int(together)
        assert math.ceil(1.25 * int(together)) == int(with_slack) <= 60 * int(hours)
        for number, taken, whole in parts:
            out = [exercise[id] for id in left_out(told) if id.startswith(number) and id in exercise]
            assert minutes[number] == int(whole or taken) and bool(whole) == bool(out)
            assert minutes[number] - sum(out) <= int(taken) <= minutes[number], number
