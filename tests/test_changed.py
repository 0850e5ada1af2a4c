"""`make check`: which files ask for which tests, and which files have changed."""

import subprocess

import pytest

from tests.__main__ import stages_for
from tests.changed import BY_STEM, changed_files, choose
from tests.imports import Import, circles, imports

ASKS = {  # a file: tests that it asks for at least
    "mechlab/circuits/paths.py": {"test_paths.py"},
    "mechlab/loading/memory.py": {"test_cli.py"},  # by import
    "mechlab_course/cells.py": {"test_cells.py", "test_learner.py"},
    "mechlab_course/grading/confine.py": {"test_grading.py"},
    "mechlab_course/site/site.css": {"test_site.py"},  # by its room
    "tests/test_hooks.py": {"test_hooks.py"},
    "tests/handed_in.py": {"test_grading.py"},
    "tests/imports.py": {"test_lints.py", "test_changed.py"},  # by import, and by a helper
    "constraints.txt": {"test_lints.py"},
    "docs/models.md": {"test_lints.py"},
    "docs/contributing.md": {"test_lints.py", "test_readme.py"},
}


@pytest.mark.parametrize("file", ASKS)
def test_a_file_asks_for_its_tests(file):
    chosen = choose([file])
    assert {f"tests/{name}" for name in ASKS[file]} <= set(chosen.tests)
    assert all(why == {file} for why in chosen.tests.values()) and not chosen.notebooks


def test_a_small_change_asks_for_few_tests():
    assert 1 <= len(choose(["mechlab/circuits/paths.py"]).tests) <= 5
    assert "tests/test_browser.py" not in choose(["mechlab/pictures/widgets.py"]).tests


@pytest.mark.parametrize(
    "file",
    [
        "course/24_ablation/notebook.py",
        "course/24_ablation/checks.py",
        "course/24_ablation/tried.txt",
        "notebooks/24_ablation.ipynb",
    ],
)
def test_a_notebook_asks_for_its_exercises_its_lints_and_its_cells(file, monkeypatch):
    chosen = choose([file])
    assert chosen.notebooks == {"24_ablation": {file}} and not chosen.tests and not chosen.left
    asked: list[tuple] = []
    monkeypatch.setattr("tests.__main__.tests", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr("tests.__main__.notebooks", lambda names: asked.append(tuple(names)))
    stages = stages_for(chosen)
    assert list(stages) == ["style", "exercises", "lints", "notebooks"]
    for name in ("exercises", "lints", "notebooks"):
        stages[name]()
    exercises, lints, cells = asked
    assert "tests/test_exercises.py" in exercises and exercises[-1] == "24. or 24_ablation"
    assert set(BY_STEM) <= set(lints) and lints[-1] == "24_ablation"
    assert cells == ("24_ablation.ipynb",)


def test_what_nobody_tests_or_only_everybody_is_left_and_said():
    chosen = choose(["LICENSE", "tests/conftest.py", "course/99_gone/notebook.py"])
    assert chosen.left == {"LICENSE", "tests/conftest.py"} and not chosen.tests and not chosen.notebooks
    assert (
        "mechlab_course/build/sources.py" in choose(["mechlab_course/build/sources.py"]).left
    )  # all exercises


def test_a_file_that_is_no_python_does_not_stop_the_choice(tmp_path):
    for name, text in {
        "mechlab/a.py": "def (:",
        "tests/test_a.py": "",
        "tests/test_b.py": "import mechlab.a",
        "tests/test_c.py": "import mechlab.a (",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert set(choose(["mechlab/a.py"], tmp_path).tests) == {"tests/test_a.py", "tests/test_b.py"}


def test_changed_files_are_those_of_the_working_tree_and_new_ones(tmp_path):
    git = lambda *words: subprocess.run(
        ["git", "-c", "user.name=x", "-c", "user.email=x@x", *words],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    git("init", "-q")
    for name in ("same", "edited", "gone", "é in a name"):
        (tmp_path / name).write_text("1")
    (tmp_path / ".gitignore").write_text("ignored\n")
    git("add", ".")
    git("commit", "-q", "-m", "x")
    assert changed_files(root=tmp_path) == []
    (tmp_path / "edited").write_text("2")
    (tmp_path / "é in a name").write_text("2")
    (tmp_path / "gone").unlink()
    (tmp_path / "new").write_text("1")
    (tmp_path / "ignored").write_text("1")
    assert changed_files(root=tmp_path) == ["edited", "gone", "new", "é in a name"]
    git("add", ".")
    git("commit", "-q", "-m", "y")
    assert changed_files(root=tmp_path) == []
    assert changed_files("HEAD~1", tmp_path) == ["edited", "gone", "new", "é in a name"]
    with pytest.raises(ValueError, match="git knows no nowhere"):
        changed_files("nowhere", tmp_path)


def test_imports_are_read_wherever_they_stand(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("""
from typing import TYPE_CHECKING
import mechlab as ml, os
from mechlab.runs import hooks
if TYPE_CHECKING:
    from mechlab.results import Scores
try:
    import mechlab.metrics
except ImportError:
    pass
def f():
    from mechlab.runs.hooks import only
    return lambda: only
""")
    known = ["mechlab", "mechlab.runs", "mechlab.runs.hooks", "mechlab.results", "mechlab.metrics"]
    assert imports(path, known) == [
        Import("mechlab", 3),
        Import("mechlab.runs.hooks", 4),
        Import("mechlab.results", 6, for_types=True),
        Import("mechlab.metrics", 8),
        Import("mechlab.runs.hooks", 12, inside=True),
    ]


def test_circles_are_found():
    arrows = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e"}}
    assert circles(arrows) == [{"b", "c"}]
