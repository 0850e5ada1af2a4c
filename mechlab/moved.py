"""Old names of modules and functions, which keep working for one version and say their new name.

Copies of notebooks that learners already have use them. CHANGELOG.md has the whole table.
"""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MODULES = {
    **{
        f"mechlab.{name}": f"mechlab.loading.{name}"
        for name in ("models", "checkpoints", "conversion", "memory")
    },
    **{
        f"mechlab.{name}": f"mechlab.runs.{name}"
        for name in ("hooks", "caching", "matrices", "forward", "sweeps")
    },
    **{
        f"mechlab.{name}": f"mechlab.pictures.{name}"
        for name in ("plots", "patterns", "drawing", "widgets", "source", "graph")
    },
    **{
        f"mechlab.discovery.{name}": f"mechlab.circuits.{name}"
        for name in ("circuits", "knockouts", "criteria", "pruning", "attribution_patching")
    },
    "mechlab.resume": "mechlab.runs.fast",
    "mechlab.intervention.paths": "mechlab.circuits.paths",
    "mechlab.ioi": "mechlab.circuits.ioi",
}
NAMES = {"Resume": "run_of"}


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
        module.__spec__ = module.__spec__.loader_state  # importing has put the old name there


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
    if name not in NAMES:
        return name
    warnings.warn(f"ml.{name} is now ml.{NAMES[name]}.", FutureWarning, stacklevel=3)
    return NAMES[name]
