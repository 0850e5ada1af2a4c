"""One experiment many times: here, on several processes, on a cluster that loses a worker, and after an interruption."""

import functools
import os
import signal
import time
from pathlib import Path

import distributed
import pytest
import torch

import mechlab as ml
from mechlab.results import Scores

TINY = functools.partial(ml.tiny, "gqa")  # one object: a process loads it once
SEEDS = [{"seed": seed} for seed in range(6)]


def patched(model, seed):
    """Activation patching between two random prompts."""
    base, source = torch.randint(5, 60, (2, 2, 6), generator=torch.Generator().manual_seed(seed))
    return ml.activation_patching(model, base, source, ml.logit_difference(7, 9), "z", normalized=False)


def counted(model, seed, folder):
    (folder / f"{seed}-{time.monotonic_ns()}").touch()
    if seed == 3 and (folder / "fail").exists():
        raise ValueError("The power went.")
    return seed * 10


@pytest.fixture(scope="module")
def expected():
    return ml.sweep(patched, SEEDS, model=TINY)


def same(found, expected):
    return len(found) == len(expected) and all(
        torch.allclose(one.per_prompt, other.per_prompt, atol=1e-5)
        for one, other in zip(found, expected, strict=True)
    )


def test_results_come_in_the_order_of_the_tasks(expected):
    model = TINY()
    assert same(expected, [patched(model, **task) for task in SEEDS])
    assert not torch.equal(expected[0].values, expected[1].values)


def doubled():
    """A model that every process has at once: what is tried is the cluster, and TransformerLens takes seconds to come."""
    return lambda x: 2 * x


def scored(model, seed):
    time.sleep(0.3)
    drawn = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
    return Scores.over_prompts(model(drawn), ("layer",), "doubled")


def killed_over_it(folder):
    """The process that asks first for the model is killed, as if memory had run out."""
    try:
        with (folder / "killed").open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return doubled()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_of_a_cluster_is_killed_and_nothing_is_lost(tmp_path):
    """Two processes reached over TCP; one is killed while it works; its tasks are done by others."""
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, protocol="tcp://", dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert cluster.scheduler_address.startswith("tcp://")
        before = {*client.run(os.getpid).values()}
        model = functools.partial(killed_over_it, tmp_path)
        found = ml.sweep(scored, SEEDS, model=model, backend="dask")
        killed = int((tmp_path / "killed").read_text())
        assert len(before) == 2 and killed in before
        assert killed not in client.run(os.getpid).values()
    assert same(found, ml.sweep(scored, SEEDS, model=doubled))
    assert not torch.equal(found[0].values, found[1].values)


def test_an_interrupted_sweep_is_taken_up_again(tmp_path):
    calls, kept = tmp_path / "calls", tmp_path / "kept"
    calls.mkdir()
    (calls / "fail").touch()
    tasks = [{"seed": seed, "folder": calls} for seed in range(6)]
    with pytest.raises(ValueError, match="The power went") as caught:
        ml.sweep(counted, tasks, model=TINY, keep=kept)
    assert "In the task {'seed': 3" in "".join(caught.value.__notes__)
    assert len(list(kept.glob("*.pkl"))) == 3
    (calls / "fail").unlink()
    assert ml.sweep(counted, tasks, model=TINY, keep=kept) == [0, 10, 20, 30, 40, 50]
    runs = [path.name.split("-")[0] for path in calls.iterdir()]
    assert sorted(runs) == ["0", "1", "2", "3", "3", "4", "5"]  # the first three were not run again
    assert not list(kept.glob("*.part"))


def test_bad_input_is_named():
    with pytest.raises(TypeError, match="a list of keyword arguments"):
        ml.sweep(patched, {"seed": 1}, model=TINY)
    with pytest.raises(TypeError, match="a list of keyword arguments"):
        ml.sweep(patched, [1, 2], model=TINY)
    assert ml.sweep(patched, [], model=TINY) == []


def _half(model, seed):
    return helper(seed)


def helper(seed):
    return seed / 2


def test_an_edited_experiment_is_run_anew(tmp_path, monkeypatch):
    """Its own code, a partial's arguments, a lambda's body, a closure, and a function of its module that it calls."""
    runs = lambda experiment: ml.sweep(experiment, SEEDS[:2], model=TINY, keep=tmp_path)
    assert runs(lambda model, seed: seed) == [0, 1]
    assert runs(lambda model, seed: seed + 1) == [1, 2]
    assert runs(functools.partial(scaled, by=2)) == [0, 2] and runs(functools.partial(scaled, by=3)) == [0, 3]
    for by in (5, 7):
        assert runs(lambda model, seed, by=by: seed * by) == [0, by]
    assert [runs(closing(by)) for by in (4, 6)] == [[0, 4], [0, 6]]
    assert runs(_half) == [0, 0.5]
    monkeypatch.setitem(globals(), "helper", lambda seed: seed / 4)
    _half.__globals__["helper"].__module__ = _half.__module__
    assert runs(_half) == [0, 0.25]
    count = len(list(tmp_path.glob("*.pkl")))
    assert runs(lambda model, seed: seed + 1) == [1, 2] and len(list(tmp_path.glob("*.pkl"))) == count
    with pytest.raises(TypeError, match="give a function"):
        runs(Experiment())


def scaled(model, seed, by):
    return seed * by


def closing(by):
    return lambda model, seed: seed * by


class Experiment:
    def __call__(self, model, seed):
        return seed


@pytest.mark.model
def test_the_page_about_sweeps_says_what_happens(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[1] / "docs" / "sweeps.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "page"}
    exec(text.partition("```python\n")[2].partition("```")[0], names)
    low, high = map(float, capsys.readouterr().out.split())
    assert 0.3 < low < high < 1.2 and len(list((tmp_path / "results").iterdir())) == 4
