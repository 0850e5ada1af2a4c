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
import inspect
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType
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
    keep:    a folder, seen by all processes, where finished results are stored; a second call takes up where
             an interrupted one stopped. Results must be picklable; they are found again by the content of
             their task and by the code of the experiment: once that is edited, it is run anew

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


def _run(
    experiment: Callable[..., Any], task: Task, model: "str | Callable[[], Any]", folder: Path | None
) -> Any:
    place = None
    if folder is not None:
        asked = pickle.dumps((_code_of(experiment), _code_of(model) if callable(model) else model, task))
        place = folder / f"{_name_of(experiment)}-{hashlib.sha256(asked).hexdigest()[:16]}.pkl"
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


def _name_of(experiment: Callable[..., Any]) -> str:
    experiment = experiment.func if isinstance(experiment, functools.partial) else experiment
    return getattr(experiment, "__name__", "experiment").strip("<>")


def _code_of(function: Any, seen: frozenset = frozenset()) -> Any:
    """What a function does, as plain values.

    These are its code, defaults and closure, and the functions of its module that it calls.

    So that an edited function is another one, and two lambdas are not the same. Raises a `TypeError` for what
    has no code.
    """
    if isinstance(function, functools.partial):
        return "partial", _code_of(function.func), function.args, sorted(function.keywords.items())
    function = inspect.unwrap(function)
    if not isinstance(function, FunctionType):
        raise TypeError(
            f"With keep=, give a function (or a partial of one), not a {type(function).__name__}."
        )
    code, seen = function.__code__, seen | {function.__qualname__}
    used = (function.__globals__.get(name) for name in sorted(_names_in(code)))
    mates = [f for f in used if isinstance(f, FunctionType) and f.__module__ == function.__module__]
    called = [_code_of(f, seen) for f in mates if f.__qualname__ not in seen]
    closed = [cell.cell_contents for cell in function.__closure__ or ()]
    closed = [_code_of(value, seen) if isinstance(value, FunctionType) else value for value in closed]
    return _plain(code), function.__defaults__, function.__kwdefaults__, closed, called


def _plain(code: CodeType) -> tuple:
    """Code without where it stands."""
    kinds = {
        CodeType: _plain,
        frozenset: lambda each: sorted(map(repr, each)),  # a set has no order of its own
    }
    constants = tuple(kinds.get(type(each), lambda same: same)(each) for each in code.co_consts)
    return code.co_code, constants, code.co_names, code.co_varnames


def _names_in(code: CodeType) -> set[str]:
    inner = (_names_in(each) for each in code.co_consts if isinstance(each, CodeType))
    return {*code.co_names}.union(*inner)


@functools.lru_cache(maxsize=2)
def _loaded(model: "str | Callable[[], Any]"):
    from mechlab.loading.models import load

    return model() if callable(model) else load(model, quiet=True)
