"""Notebooks that learners have from before the package was split in two go on working, with a word about new names."""

import ast
import inspect
import warnings
from importlib import import_module

import pytest

import mechlab as ml
from mechlab_course.exercises import NOT_ATTEMPTED
from tests.cells import shown
from tests.old_notebooks import FOLDER, KEPT, cells, names

ASKED = (FOLDER / "names.txt").read_text(encoding="utf-8").splitlines()
ignore_new_names = pytest.mark.filterwarnings("ignore::FutureWarning")


def resolved(asked: str):
    """What an import or a name after `ml.` gives today."""
    word, _, rest = asked.partition(" ")
    if word == "import":
        return import_module(rest)
    if word == "from":
        module, _, name = rest.partition(" import ")
        home = import_module(module)
        return getattr(home, name) if hasattr(home, name) else import_module(f"{module}.{name}")
    found = ml
    for name in asked.split(".")[1:]:
        found = getattr(found, name)
    return found


@ignore_new_names
@pytest.mark.parametrize("asked", ASKED)
def test_every_name_they_use_is_there(asked):
    assert resolved(asked) is not None


@ignore_new_names
@pytest.mark.parametrize("stem", KEPT)
def test_functions_take_the_arguments_that_they_give_by_name(stem):
    for code in cells(stem):
        for call in (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            called = resolved(name) if name in ASKED else None
            if inspect.isfunction(called) or inspect.isclass(called):
                given = {each.arg: None for each in call.keywords if each.arg}
                inspect.signature(called).bind_partial(**given)  # a TypeError names the one it does not know


def test_the_names_of_the_kept_cells_are_in_the_list():
    collected = set().union(*(names(code) for stem in KEPT for code in cells(stem)))
    assert collected <= set(ASKED) and len(collected) > 20


@pytest.mark.model
@ignore_new_names
def test_the_first_of_them_runs_from_top_to_bottom(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MECHLAB_HOME", str(tmp_path))
    monkeypatch.delenv("MECHLAB_STRICT", raising=False)
    session: dict = {"__name__": "__main__"}
    gave = [shown(code, session) for code in cells("00_start_here")]
    assert [each.status for each in gave if hasattr(each, "status")] == [NOT_ATTEMPTED] * 3
    assert "Start here" in repr(gave[-1]) and "predictions" in repr(gave[-1])  # the progress table
    assert "as the text says" in capsys.readouterr().out
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert session["check"] is ml.course.check
