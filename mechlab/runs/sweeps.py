"""The same experiment many times, over prompts, templates, seeds or models: in this process, or on a cluster.

    def one(model, seed):
        ...
        return ml.activation_patching(model, base, source, metric, "z")

    results = ml.sweep(one, [{"seed": seed} for seed in range(20)], keep="results")

By default one after the other, here. With `backend` any of joblib's: "loky" for processes of this machine; "dask" or
"ray" for a cluster that is already connected. The model is not sent: each process loads it once, by its name.
"""

import functools
import hashlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Task = Mapping[str, Any]


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
    keep:    a folder, seen by all processes, where finished results are stored; a second call takes up where an
             interrupted one stopped. Results must be picklable; they are found again by the content of their task

    A task that fails stops the sweep with an error that names it; finished ones are in `keep`.
    """
    import joblib

    if isinstance(tasks, Mapping) or not all(isinstance(task, Mapping) for task in tasks):
        raise TypeError('tasks is a list of keyword arguments, such as [{"seed": 0}, {"seed": 1}].')
    folder = None if keep is None else Path(keep).resolve()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    calls = [joblib.delayed(_run)(experiment, dict(task), model, folder) for task in tasks]
    if backend is None:
        from tqdm.auto import tqdm

        return [_run(*call[1]) for call in tqdm(calls, desc="sweep", delay=3, leave=False)]
    with joblib.parallel_config(backend=backend, n_jobs=jobs):
        return joblib.Parallel(batch_size=1)(calls)


def _run(experiment, task: dict, model, folder: Path | None):
    place = None
    if folder is not None:
        name = f"{getattr(experiment, '__name__', 'experiment')}-{hashlib.sha256(pickle.dumps((model, task))).hexdigest()[:16]}"
        place = folder / f"{name}.pkl"
        if place.exists():
            return pickle.loads(place.read_bytes())
    try:
        result = experiment(_loaded(model), **task)
    except Exception as error:
        error.add_note(f"In the task {task}.")
        raise
    if place is not None:  # a whole file or none
        part = place.with_suffix(f".{id(result)}.part")
        part.write_bytes(pickle.dumps(result))
        part.replace(place)
    return result


@functools.lru_cache(maxsize=2)
def _loaded(model: "str | Callable[[], Any]"):
    from mechlab.loading.models import load

    return model() if callable(model) else load(model, quiet=True)
