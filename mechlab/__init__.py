"""mechlab: open up a language model, by doing it.

The listing of this package is a table of contents: one technique, one file.

loading/       the model: found, fetched, converted once, loaded
prompts.py     pairs of prompts
metrics.py     from logits to one number for each prompt
results.py     what every technique returns
statistics.py  intervals over clusters, and what chance gives
runs/          what a run is, what can be observed in it, and how to change it
attribution/   which inputs, parts and neurons made the model answer as it did
discovery/     what is going on inside: lenses, probes, attention, ablation, superposition, autoencoders
intervention/  can it be changed: patching, tracing, steering, removed directions, edited facts
circuits/      which few parts do the work, and is that all of it; the IOI task
pictures/      results as figures, and as things to touch

Importing it is cheap: torch comes with the first name you use. `__init__.pyi` lists the public names. Small
helpers: arguments.py checks what is given, text.py has the model's own texts, reference.py the papers'
figures, moved.py old names.
"""

import ast
import sys
from importlib import import_module
from pathlib import Path

from mechlab import moved

__version__ = "0.1.0"


def _listed() -> dict[str, str]:
    """Each public name and the module that has it, as `__init__.pyi` says."""
    lines = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    imports = [line for line in lines if isinstance(line, ast.ImportFrom)]
    return {name.name: str(line.module) for line in imports for name in line.names}


_PUBLIC = _listed()
__all__ = [*_PUBLIC]
moved.install()


def __getattr__(name: str):
    if name == "Resume":  # of earlier versions, as is the next
        return import_module("mechlab.runs.engines").resume
    if name == "course":
        return import_module("mechlab.course")
    name = moved.public_name(name)
    if name not in _PUBLIC:
        raise AttributeError(f"mechlab has no {name!r}. Names: {', '.join(__all__)}.")
    home = import_module(_PUBLIC[name])
    part = home is sys.modules[__name__] or not hasattr(home, name)  # a module, not something in it
    return import_module(f"{home.__name__}.{name}") if part else getattr(home, name)


def __dir__() -> list[str]:
    return __all__
