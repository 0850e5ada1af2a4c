"""Old names of modules and functions, which keep working for one version and say their new name.

Copies of notebooks that learners already have use them. CHANGELOG.md has the whole table.
"""

import sys
import warnings
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from inspect import signature
from types import ModuleType
from typing import Any

NEW_HOMES = {
    "mechlab.loading": "models checkpoints conversion memory",
    "mechlab.runs": "hooks caching matrices forward sweeps",
    "mechlab.pictures": "plots patterns drawing widgets source graph",
}
MODULES = {
    **{f"mechlab.{name}": f"{home}.{name}" for home, names in NEW_HOMES.items() for name in names.split()},
    "mechlab.discovery.circuits": "mechlab.circuits.circuits",
    "mechlab.discovery.knockouts": "mechlab.circuits.knockouts",
    "mechlab.discovery.criteria": "mechlab.circuits.criteria",
    "mechlab.discovery.pruning": "mechlab.circuits.pruning",
    "mechlab.discovery.attribution_patching": "mechlab.circuits.attribution_patching",
    "mechlab.intervention.paths": "mechlab.circuits.paths",
    "mechlab.resume": "mechlab.runs.fast",
    "mechlab.ioi": "mechlab.circuits.ioi",
}
# Public names, and names of modules, that are called something else now.
NAMES = {
    "Knockouts": "CircuitRuns",
    "knock_out": "ablate_neurons",
    "replaced": "baseline_tokens",
    "TunedLens": "AffineLens",
}


class _Finder(MetaPathFinder, Loader):
    """Finds a module under its old name, and gives the module itself, not a second copy."""

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if _new(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        warnings.warn(f"{spec.name} is now {_new(spec.name)}.", FutureWarning, stacklevel=2)
        module = import_module(_new(spec.name))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:  # importing has put the old name there
            module.__spec__ = module.__spec__.loader_state


def _new(fullname: str) -> str:
    """The new name of a module, or of one inside a folder that moved; "" if it has not moved."""
    for old, new in MODULES.items():
        if fullname == old or fullname.startswith(f"{old}."):
            return new + fullname.removeprefix(old)
    return ""


def install() -> None:
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())  # first: else parts of a folder that moved are found a second time


def public_name(name: str) -> str:
    """The name of today for one that `ml.` had before."""
    if name in NAMES:
        say(f"ml.{name} is now ml.{NAMES[name]}.", 4)
    return NAMES.get(name, name)


def old_name(module: str, name: str, names: dict[str, str]) -> Any:
    """What a module called `name` before; for its `__getattr__`."""
    if name not in names:
        raise AttributeError(f"{module} has no {name!r}.")
    say(f"{module}.{name} is now {names[name]}.", 4)
    return getattr(import_module(module), names[name])


def was(
    *positions: str, when: Callable[[tuple], bool] | None = None, **keywords: str
) -> Callable[[Callable], Callable]:
    """A decorator: calls in an old form are understood for one version, with a warning that says the new one.

    positions: the names, as they are called today, of the positional arguments in their old order, which is
               taken where `when(args)` says that the call is an old one
    keywords:  old name of a keyword = the name of today
    """

    def decorate(function: Callable) -> Callable:
        @wraps(function)
        def called(*args, **given):
            name = getattr(function, "__name__", "this")
            if when is not None and when(args):
                say(f"{name} is now called as {name}{signature(function)}.", 3)
                given |= dict(zip(positions, args, strict=False))
                args = ()
            for old in [name for name in given if name in keywords]:
                say(f"{name}({old}=...) is now {keywords[old]}=...", 3)
                given[keywords[old]] = given.pop(old)
            return function(*args, **given)

        return called

    return decorate


def say(text: str, level: int) -> None:
    warnings.warn(text, FutureWarning, stacklevel=level)
