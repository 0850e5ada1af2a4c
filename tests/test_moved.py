"""What was called something else before works for one version, and says its new name."""

from pathlib import Path

import pytest
import torch

import mechlab as ml
from mechlab import moved

BASE = torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(0))
METRIC = ml.logit_difference([7, 8, 9], [10, 11, 12])


@pytest.mark.parametrize("name", moved.NAMES)
def test_old_public_names(name):
    with pytest.warns(FutureWarning, match=f"ml.{name} is now ml.{moved.NAMES[name]}"):
        assert getattr(ml, name) is getattr(ml, moved.NAMES[name])
    assert name not in ml.__all__


@pytest.mark.parametrize("old", moved.MODULES)
def test_old_modules_are_the_new_ones_and_no_copies(old):
    import importlib
    import sys

    sys.modules.pop(old, None)
    with pytest.warns(FutureWarning, match=f"{old} is now {moved.MODULES[old]}"):
        found = importlib.import_module(old)
    assert found is importlib.import_module(moved.MODULES[old])
    assert found.__spec__.name == moved.MODULES[old]


def test_a_module_inside_a_folder_that_moved():
    with pytest.warns(FutureWarning, match=r"mechlab\.ioi\.words is now mechlab\.circuits\.ioi\.words"):
        from mechlab.ioi.words import NAMES
    assert NAMES is ml.ioi.NAMES


def test_a_kept_run_is_asked_in_the_old_way(gqa):
    with pytest.warns(FutureWarning, match=r"ml\.Resume is now ml\.run_of"):
        run = ml.Resume(gqa, BASE)
    assert torch.equal(run.base, BASE) and torch.equal(run.ends(METRIC), run.value(METRIC))
    assert torch.equal(run.pattern(1), run.at("pattern", 1).transpose(1, 2))


CALLS = {  # what is called in the old way; what that is today
    "metric": (
        lambda model: ml.logit_difference(7, wrong=9, end=2)(model(BASE)),
        lambda model: ml.logit_difference(7, 9, pos=2)(model(BASE)),
    ),
    "probability": (
        lambda model: ml.probability(7, end=3)(model(BASE)),
        lambda model: ml.probability(7, pos=3)(model(BASE)),
    ),
    "pair": (
        lambda model: ml.prompt_pair(model, "John went", "Mary went", " Mary", wrong=" John").wrong,
        lambda model: ml.prompt_pair(model, "John went", "Mary went", " Mary", " John").incorrect,
    ),
    "tracing": (
        lambda model: ml.causal_tracing(model, BASE[:1], [2], ml.log_prob(7), samples=2).values,
        lambda model: ml.causal_tracing(model, BASE[:1], ml.log_prob(7), subject=[2], samples=2).values,
    ),
    "covariance": (
        lambda model: ml.key_covariance(model, 1, BASE),
        lambda model: ml.key_covariance(model, BASE, layer=1),
    ),
    "covariance by name": (
        lambda model: ml.key_covariance(model, layer=1, texts=BASE),
        lambda model: ml.key_covariance(model, BASE, layer=1),
    ),
    "ablation": (
        lambda model: ml.ablation_effects(model, BASE, METRIC, [(1, 2)], reference=BASE + 1).values,
        lambda model: ml.ablation_effects(model, BASE, METRIC, [(1, 2)], source=BASE + 1).values,
    ),
    "neurons": (
        lambda model: ml.ablate_neurons(model, BASE, METRIC, [(1, 2)], position=-1, draws=1).after,
        lambda model: ml.ablate_neurons(model, BASE, METRIC, [(1, 2)], pos=-1, draws=1).after,
    ),
    "steering": (
        lambda model: swept(
            model, lambda vectors, **given: ml.steering_sweep(model, vectors, BASE, METRIC, **given)
        ),
        lambda model: swept(
            model, lambda vectors, **given: ml.steering_sweep(model, BASE, METRIC, vectors=vectors, **given)
        ),
    ),
}


def swept(model, call):
    vectors = ml.contrast_vectors(model, ["John went", "Mary went"], ["John gave", "Mary gave"])
    return call(vectors, layers=[1], strengths=[0.5], text=BASE).effect.values


@pytest.mark.parametrize("name", CALLS)
@torch.no_grad()
def test_old_calls_give_the_same_and_say_the_new_form(gqa, name):
    old, new = CALLS[name]
    with pytest.warns(FutureWarning, match=r"is now"):
        found = old(gqa)
    assert torch.equal(found, new(gqa))


def test_new_calls_say_nothing(gqa, recwarn):
    with torch.no_grad():
        for _, new in CALLS.values():
            new(gqa)
    assert not [each for each in recwarn if each.category is FutureWarning]


def test_the_changelog_names_what_is_old():
    text = (Path(__file__).parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
    for old, new in moved.NAMES.items():
        assert f"`ml.{old}`" in text and f"`ml.{new}`" in text
    assert [old for old in moved.MODULES if old.rsplit(".", 1)[1] not in text] == []


def test_the_script_that_old_setup_cells_run_in_colab_is_found(monkeypatch):
    import runpy

    seen = []
    monkeypatch.setattr(runpy, "run_path", lambda path, run_name: seen.append((path, run_name)))
    source = (moved.__file__).replace("moved.py", "course/colab.py")
    exec(
        compile(Path(source).read_text(encoding="utf-8"), source, "exec"),
        {"__name__": "__main__", "__file__": source},
    )
    assert seen[0][0].endswith("mechlab_course/build/colab.py") and seen[0][1] == "__main__"
