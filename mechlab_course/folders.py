"""Where the course lies: one folder a notebook, `course/NN_name/`, with source, checks and answers tried.

In a checkout it stands beside this package, with notebooks, docs and data. The wheel brings notebooks, pages
and checks inside the package, under the same names (pyproject.toml says so), and no tests, no solutions.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

PACKAGES = Path(__file__).parents[1]  # where `mechlab` and `mechlab_course` are
CHECKOUT = (PACKAGES / "pyproject.toml").is_file() and (PACKAGES / "course").is_dir()
ROOT = PACKAGES if CHECKOUT else Path(__file__).parent / "_course"


def folders() -> list[Path]:
    """The folder of each notebook, in the order of the course."""
    return sorted((ROOT / "course").glob("[0-9][0-9]_*/"))


def sources() -> dict[str, Path]:
    """The source of each notebook, by the notebook's name, such as "12_direct_logit_attribution"."""
    return {folder.name: folder / "notebook.py" for folder in folders() if (folder / "notebook.py").is_file()}


def tried() -> dict[str, Path]:
    """The answers that were tried on a notebook's checks, by the notebook's name, where there are any."""
    return {folder.name: folder / "tried.txt" for folder in folders() if (folder / "tried.txt").is_file()}


def checks(number: str) -> ModuleType | None:
    """The checks of notebook "12", imported once; None if there is no such notebook."""
    name = f"mechlab_course.checks_{number}"
    if name not in sys.modules:
        path = next((folder / "checks.py" for folder in folders() if folder.name[:2] == number), None)
        spec = path and spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            return None
        sys.modules[name] = module = module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
