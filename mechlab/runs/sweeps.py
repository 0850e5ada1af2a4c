"""The same experiment many times, over prompts, templates, seeds or models: in this process, or on a cluster.

    def one(model, seed):
        ...
        return ml.activation_patching(model, base, source, metric, "z")

    results = ml.sweep(one, [{"seed": seed} for seed in range(20)], keep="results")

By default one after the other, here. With `backend` any of joblib's: "loky" for processes of this machine;
"dask" or "ray" for a cluster that is already connected. The model is not sent: each process loads it once, by
its name.
"""

import functools
import hashlib
import io
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from mechlab.runs.contents import digest, stamp
from mechlab.waiting import waiting

Task = Mapping[str, Any]
_NUMPY = {f"numpy._core.multiarray.{part}" for part in ("scalar", "_reconstruct")} | {
    "numpy.dtype",
    "numpy.ndarray",
}


def sweep(
    experiment: Callable[..., Any],
    tasks: Sequence[Task],
    *,
    model: "str | Callable[[], Any]" = "smollm2",
    backend: str | None = None,
    jobs: int = -1,
    keep: "str | Path | None" = None,
) -> list[Any]:
    """Results of `experiment(model, **task)` for each task, in the order of the tasks.

    model:   a name or folder for `mechlab.load`, or a function that makes one; loaded once in each process
    backend: None: one after the other, here; else a backend of joblib, with `jobs` tasks at once
    keep:    a folder, seen by all processes, where finished results are stored; a second call takes up where
             an interrupted one stopped. Results are plain values, tensors, numpy arrays, and what this
             library returns: to read them runs no code of whoever wrote the folder. They are found again by
             the content of their task, of the model (a folder's files; a function that makes one) and of the
             experiment: its code, defaults and closure, and the functions, classes and constants of your own
             modules that it uses. Once one of these is edited, it is run anew; libraries count by version

    A task that fails stops the sweep with an error that names it; finished ones are in `keep`. Raises a
    `TypeError` where with `keep` something has no content that can be compared (an open file, a lock), and a
    `ValueError` where an experiment leaves the model's weights changed: the next task would start from them.
    """
    import joblib

    if isinstance(tasks, Mapping) or not all(isinstance(task, Mapping) for task in tasks):
        raise TypeError('tasks is a list of keyword arguments, such as [{"seed": 0}, {"seed": 1}].')
    for name, given in (("experiment", experiment), ("model", model)):
        if hasattr(given, "parameters") or (name == "experiment" and not callable(given)):
            wanted = (
                "a function of the model and a task" if name == "experiment" else "its name, or a function"
            )
            kind = type(given).__name__
            raise TypeError(f"{name} is a {kind}; give {wanted}: each process makes the model itself.")
    source = _source(model, keep is not None)
    places: list[Path | None] = [None] * len(tasks)
    if keep is not None:
        folder = Path(keep).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        begin = digest(experiment, "With keep=, the experiment") + str(source)
        places = [folder / f"{_name_of(experiment)}-{_key(begin, task)}.pt" for task in tasks]
    calls = [
        joblib.delayed(_run)(experiment, dict(task), model, source, place)
        for task, place in zip(tasks, places, strict=True)
    ]
    if backend is None:
        results = []
        with waiting("sweep", len(calls)) as done:
            for _, given, _ in calls:
                results.append(_run(*given))
                done()
        return results
    with joblib.parallel_config(backend=backend, n_jobs=jobs):
        return joblib.Parallel(batch_size=1)(calls)


def _source(model: "str | Callable[[], Any]", needed: bool) -> str | None:
    """What the model is made from, so that none of another source is taken; None if that cannot be said."""
    if not callable(model):
        there = Path(model).is_dir()
        return digest((str(Path(model).resolve()), stamp(model)) if there else str(model), "The model")
    try:
        return digest(model, "With keep=, the model")
    except TypeError:
        if needed:
            raise
        return None


def _key(begin: str, task: Task) -> str:
    content = digest(dict(task), f"With keep=, the task {_short(task)}")
    return hashlib.sha256((begin + content).encode()).hexdigest()[:24]


def _run(
    experiment: Callable[..., Any],
    task: Task,
    model: "str | Callable[[], Any]",
    source: str | None,
    place: Path | None,
) -> Any:
    kept = None if place is None else _kept(place)
    if kept is not None:
        return kept[0]
    loaded = _loaded(model, source)
    before = _weights_of(loaded)
    try:
        result = experiment(loaded, **task)
    except Exception as error:
        error.add_note(f"In the task {_short(task)}.")
        raise
    finally:
        changed = _weights_of(loaded) != before
        if changed:  # the next task gets one that is as it was
            _loaded_once.cache_clear()
    if changed:
        raise ValueError(
            f"The task {_short(task)} left the model's weights changed, so others that run on it will differ "
            "by their order. Undo the edit at the end of the experiment (`with ml.orthogonalize(...)`)."
        )
    if place is not None:
        _keep(place, result, task)
    return result


def _short(task: Task) -> str:
    text = str(dict(task))
    return text if len(text) < 300 else f"{text[:300]} ..."


def _kept(place: Path) -> tuple[Any] | None:
    """A stored result, in a tuple; None where there is none, or only a part of one."""
    try:
        said, data = (whole := place.read_bytes())[:32], whole[32:]
        return (_read(data),) if hashlib.sha256(data).digest() == said else None
    except (OSError, TypeError):
        return None


def _keep(place: Path, result: Any, task: Task) -> None:
    """Store a whole file or none, also where two processes do it at once."""
    import torch

    try:
        torch.save(result, buffer := io.BytesIO())
        _read(data := buffer.getvalue())
    except Exception as error:
        raise TypeError(
            f"The result of the task {_short(task)} cannot be stored ({error}). Return plain values, "
            "tensors or `Scores`, or leave out keep=."
        ) from error
    part = place.with_suffix(f".{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        part.write_bytes(hashlib.sha256(data).digest() + data)
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)


def _read(data: bytes) -> Any:
    """A stored result, by PyTorch's reader that makes values only; of classes, numpy's and this library's."""
    import pickle

    import numpy as np
    import torch
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    try:
        names = get_unsafe_globals_in_checkpoint(io.BytesIO(data))
        with safe_globals(
            [*map(_known, names), *(type(np.dtype(code)) for code in np.typecodes["All"] if code != "O")]
        ):
            return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise TypeError(str(error).partition("\n")[0]) from None


def _known(name: str) -> Any:
    """A numpy array's parts, or a result of this library: the dataclasses that only hold values."""
    module, _, attribute = name.rpartition(".")
    found = None
    if name in _NUMPY or module.startswith("mechlab."):
        found = getattr(import_module(module), attribute, None)
    if found is None or (module.startswith("mechlab.") and not is_dataclass(found)):
        raise TypeError(f"it holds a {name}, which is no plain value")
    return found


def _weights_of(model: Any) -> list[tuple[int, int]] | None:
    """Where the weights are and how often each was written to: both change when they do."""
    parameters = getattr(model, "parameters", None)
    if not callable(parameters):
        return None
    return [(each.data_ptr(), 0 if each.is_inference() else each._version) for each in parameters()]


def _name_of(experiment: Callable[..., Any]) -> str:
    experiment = experiment.func if isinstance(experiment, functools.partial) else experiment
    return getattr(experiment, "__name__", "experiment").strip("<>")


def _loaded(model: "str | Callable[[], Any]", source: str | None) -> Any:
    """The model, made once in each process for as long as its source stays the same."""
    return _loaded_once(_Named(model, source))


class _Named:
    """A model's maker with what it makes it from: equal where that is equal."""

    def __init__(self, model: "str | Callable[[], Any]", source: str | None):
        self.model, self.source = model, source

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, _Named) and other.source == self.source
        return same and (self.source is not None or other.model is self.model)

    def __hash__(self) -> int:
        return hash(self.source)


@functools.lru_cache(maxsize=2)
def _loaded_once(named: _Named) -> Any:
    from mechlab.loading.models import load

    return named.model() if callable(named.model) else load(named.model, quiet=True)
