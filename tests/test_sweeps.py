"""One experiment many times: here, on several processes, on a cluster that loses a worker, and after an interruption."""

import functools
import hashlib
import io
import os
import pickle
import signal
import sys
import threading
import time
import types
from pathlib import Path

import distributed
import numpy as np
import pytest
import torch

import mechlab as ml
from mechlab.results import Scores
from mechlab.runs.contents import digest

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
    assert len(list(kept.glob("*.pt"))) == 3
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
    count = len(list(tmp_path.glob("*.pt")))
    assert runs(lambda model, seed: seed + 1) == [1, 2] and len(list(tmp_path.glob("*.pt"))) == count
    assert [runs(Experiment(by)) for by in (1, 9)] == [[0, 1], [0, 9]]


def scaled(model, seed, by):
    return seed * by


def closing(by):
    return lambda model, seed: seed * by


class Experiment:
    def __init__(self, by):
        self.by = by

    def __call__(self, model, seed):
        return self.by * seed

    def named(self, model, seed):
        return self.by * seed


def twice(function):
    @functools.wraps(function)
    def run(model, seed):
        return 2 * function(model, seed)

    return run


def thrice(function):
    @functools.wraps(function)
    def run(model, seed):
        return 3 * function(model, seed)

    return run


def plainly(model, seed):
    return seed


FACTOR = 1


def by_a_constant(model, seed):
    return FACTOR * seed


def counting(model, seed, **task):
    CALLS.append(seed)
    return len(CALLS)


CALLS: list[int] = []
MODULE = """
import functools
BY = {by}
class Times:
    def by(self, seed):
        return {by} * seed
def helper(seed):
    return BY * seed
@functools.lru_cache
def stored(seed):
    return {by} * seed
"""


def own_module(name, by):
    module = types.ModuleType(name)
    exec(MODULE.format(by=by), vars(module))
    return module


@pytest.mark.parametrize(
    "change",
    [
        lambda by: closing(torch.tensor([by])[0]),
        lambda by: closing(np.full(2, by)[0]),
        lambda by: Experiment(by).named,
        lambda by: functools.partial(scaled, by=torch.tensor(by)),
        lambda by: {2: twice, 3: thrice}[by](plainly),
        lambda by: functools.partial({2: twice, 3: thrice}[by](plainly)),
        lambda by: lambda model, seed, by={"x": [by]}: by["x"][0] * seed,
        lambda by: lambda model, seed, *, by=by: by * seed,
        lambda by: from_text("def one(model, seed): return own.helper(seed)", by),
        lambda by: from_text("def one(model, seed): return own.BY * seed", by),
        lambda by: from_text("def one(model, seed): return own.Times().by(seed)", by),
        lambda by: from_text("def one(model, seed): return own.stored(seed)", by),
        lambda by: from_text("def one(model, seed): return inner(seed)", by),
        lambda by: from_text("def one(model, seed): return (lambda x: BY * x)(seed)", by),
        lambda by: from_text(
            f"def one(model, seed):\n  try: return seed.x\n  except AttributeError: return {by} * seed", 0
        ),
    ],
)
def test_whatever_an_experiment_reads_makes_it_another_one(tmp_path, change):
    """Tensors, arrays, objects, decorators, defaults, constants, modules, classes; the same again is found again."""
    runs = lambda by: [int(x) for x in ml.sweep(change(by), SEEDS[:3], model=doubled, keep=tmp_path)]
    assert runs(2) == [0, 2, 4] and runs(3) == [0, 3, 6]
    count = len(list(tmp_path.glob("*.pt")))
    assert count == 6 and runs(2) == [0, 2, 4] and len(list(tmp_path.glob("*.pt"))) == count


def from_text(text, by):
    own = own_module("own", by)
    names = {"own": own, "BY": by, "inner": own.helper, "__name__": "page"}
    exec(text, names)
    return names["one"]


def test_a_constant_of_the_module_that_changed_is_seen(tmp_path, monkeypatch):
    runs = lambda: ml.sweep(by_a_constant, SEEDS[:2], model=doubled, keep=tmp_path)
    assert runs() == [0, 1]
    monkeypatch.setitem(by_a_constant.__globals__, "FACTOR", 7)
    assert runs() == [0, 7]


def test_a_model_made_of_something_that_changed_is_made_anew(tmp_path, monkeypatch):
    """A function that reads a constant, and a folder whose files changed: also without `keep`."""
    weight = lambda model, seed: model.W_E[5, 5].item()
    monkeypatch.setitem(drawn.__globals__, "SEED", 0)
    for given in ({}, {"keep": tmp_path / "kept"}):
        found = []
        for seed in (0, 1):
            monkeypatch.setitem(drawn.__globals__, "SEED", seed)
            found += ml.sweep(weight, SEEDS[:1], model=drawn, **given)
        assert found == [ml.tiny(seed=seed).W_E[5, 5].item() for seed in (0, 1)]
    found = []
    for seed in (0, 1):
        ml.save_model(ml.tiny(seed=seed), tmp_path / "model")
        found += ml.sweep(weight, SEEDS[:1], model=str(tmp_path / "model"), keep=tmp_path / "kept")
    assert found[0] != found[1]


SEED = 0


def drawn():
    return ml.tiny(seed=SEED)


def test_a_class_is_the_same_before_and_after_it_was_first_stored():
    class Fresh:
        def run(self, model, seed):
            return seed

    before = digest(Fresh().run, "x")
    assert digest(Fresh().run, "x") == before


def test_tasks_are_told_apart_by_their_content(tmp_path):
    CALLS.clear()
    tensor = torch.ones(2)
    tasks = [
        {"seed": 1},
        {"seed": 1.0},
        {"seed": True},
        {"seed": 1, "x": tensor},
        {"seed": 1, "x": 2 * tensor},
    ]
    tasks += [{"seed": 1, "x": {3: [4]}}, {"seed": 1, "x": {3: (4,)}}, {"seed": 1, "x": lambda: 3}]
    found = ml.sweep(counting, tasks, model=doubled, keep=tmp_path)
    assert found != ml.sweep(
        counting, [*tasks], model=doubled, keep=tmp_path
    )  # it reads CALLS, which changed
    count = lambda model, seed, **task: torch.rand(1).item()
    found = ml.sweep(count, tasks, model=doubled, keep=tmp_path)
    assert len({*found}) == len(tasks)
    again = [{"x": {3: [4]}, "seed": 1}, {"x": tensor.clone(), "seed": 1}]  # in another order, equal content
    assert ml.sweep(count, again, model=doubled, keep=tmp_path) == [found[5], found[3]]


def test_a_damaged_result_is_computed_again_and_two_processes_do_not_meet(tmp_path):
    experiment = lambda model, seed: [seed, torch.rand(1).item()]
    (first,) = ml.sweep(experiment, SEEDS[3:4], model=doubled, keep=tmp_path)
    (path,) = tmp_path.glob("*.pt")
    whole = path.read_bytes()
    for damaged in (whole[:-3], b"", b"x" * len(whole), whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(damaged)
        (again,) = ml.sweep(experiment, SEEDS[3:4], model=doubled, keep=tmp_path)
        assert again[0] == first[0] and again != first
        assert ml.sweep(experiment, SEEDS[3:4], model=doubled, keep=tmp_path) == [again]
    found = ml.sweep(scored, SEEDS * 2, model=doubled, keep=tmp_path, backend="loky", jobs=2)
    assert same(found[:6], found[6:]) and not list(tmp_path.glob("*.part"))


def test_a_kept_folder_runs_no_code_of_whoever_wrote_it(tmp_path):
    """A pickle that would make a file, with the right checksum, in the place of a result."""
    experiment = lambda model, seed: {
        "n": seed,
        "array": np.arange(3.0),
        "scalar": np.float32(2),
        "of": torch.ones(2),
    }
    (first,) = ml.sweep(experiment, SEEDS[3:4], model=doubled, keep=tmp_path)
    (path,) = tmp_path.glob("*.pt")
    assert str(ml.sweep(experiment, SEEDS[3:4], model=doubled, keep=tmp_path)) == str([first])

    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"n": Hostile()}, buffer := io.BytesIO())
    for data in (pickle.dumps(Hostile()), buffer.getvalue()):
        path.write_bytes(hashlib.sha256(data).digest() + data)
        assert str(ml.sweep(experiment, SEEDS[3:4], model=doubled, keep=tmp_path)) == str([first])
        assert not (tmp_path / "ran").exists()
    with pytest.raises(TypeError, match=r"cannot be stored .it holds a pathlib.* which is no plain value"):
        ml.sweep(lambda model, seed: Path("x"), SEEDS[:1], model=doubled, keep=tmp_path)


@pytest.mark.parametrize("what", [threading.Lock(), sys.stdout.buffer, (n for n in range(3))], ids=type)
def test_what_cannot_be_compared_is_refused_with_its_name(tmp_path, what):
    kind = type(what).__name__
    with pytest.raises(TypeError, match=rf"the experiment uses a {kind} \(what\), whose content cannot"):
        ml.sweep(lambda model, seed: what, SEEDS[:1], model=doubled, keep=tmp_path)
    with pytest.raises(TypeError, match=rf"the task .* uses a {kind}"):
        ml.sweep(plainly, [{"seed": what}], model=doubled, keep=tmp_path)
    with pytest.raises(TypeError, match=rf"the model uses a {kind}"):
        ml.sweep(plainly, SEEDS[:1], model=lambda: what, keep=tmp_path)
    assert ml.sweep(plainly, SEEDS[:1], model=lambda: what) == [0]
    with pytest.raises(TypeError, match=r"The result of the task .* cannot be stored"):
        ml.sweep(lambda model, seed: threading.Lock(), SEEDS[:1], model=doubled, keep=tmp_path)


def test_an_experiment_that_leaves_the_model_changed_is_stopped():
    def undone(model, seed):
        with ml.orthogonalize(model, torch.randn(32, generator=torch.Generator().manual_seed(seed))):
            return model(torch.tensor([[1, 2]]))[0, 0, 0].item()

    def kept(model, seed):
        ml.orthogonalize(model, torch.randn(32))

    def trained(model, seed):
        with torch.no_grad():
            model.W_E.mul_(2)

    assert ml.sweep(undone, SEEDS[:2] * 2, model=TINY)[:2] == ml.sweep(undone, SEEDS[:2], model=TINY)
    for bad in (kept, trained):
        with pytest.raises(ValueError, match="left the model's weights changed"):
            ml.sweep(bad, SEEDS, model=TINY)
    assert torch.equal(ml.sweep(lambda model, seed: model.W_E, SEEDS[:1], model=TINY)[0], ml.tiny("gqa").W_E)
    with pytest.raises(TypeError, match="model is a TransformerBridge; give its name, or a function"):
        ml.sweep(plainly, SEEDS, model=ml.tiny())
    with pytest.raises(TypeError, match="experiment is a int; give a function of the model"):
        ml.sweep(3, SEEDS, model=TINY)


@pytest.mark.model
def test_the_page_about_sweeps_says_what_happens(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[1] / "docs" / "sweeps.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "page"}
    exec(text.partition("```python\n")[2].partition("```")[0], names)
    low, high = map(float, capsys.readouterr().out.split())
    assert 0.3 < low < high < 1.2 and len(list((tmp_path / "results").iterdir())) == 4
