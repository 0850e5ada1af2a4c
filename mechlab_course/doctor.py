"""What is wrong with this installation, and what to do about it."""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, distributions, version
from pathlib import Path

from mechlab.loading import checkpoints, memory
from mechlab.reference import data_dir
from mechlab_course.folders import ROOT

PACKAGES = {
    "torch": "2.13",
    "transformer-lens": "4.3",
    "transformers": "5.23",
    "plotly": "7",
    "circuitsvis": "1.43",
    "ipywidgets": "8",
    "jupyterlab": "4.6",
}
GIGABYTE = 1e9
INSTALL = 'Run `make lab` in a clone of the course, or else `pip install "mechlab-course[lab]"`.'


@dataclass(frozen=True)
class Finding:
    """One thing looked at: fine, worth knowing, or broken with a remedy."""

    what: str
    status: str  # "ok", "note" or "problem"
    detail: str


def examine(deep: bool = False) -> list[Finding]:
    """Look at Python, packages, memory, disk, the model, the kernel and write access. Changes nothing.

    deep: also read the whole model file and compare its sha256 (a few seconds).
    """
    return [finding for look in _LOOKS for finding in look(deep)]


def _python(_: bool) -> Iterator[Finding]:
    good = sys.version_info >= (3, 11)
    detail = f"{platform.python_version()} at {sys.executable}"
    yield Finding(
        "Python", "ok" if good else "problem", detail + ("" if good else ". mechlab needs 3.11 or newer.")
    )


def _packages(_: bool) -> Iterator[Finding]:
    for name, wanted in PACKAGES.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(name, "problem", f"missing. {INSTALL}")
            continue
        same = f"{found}.".startswith(f"{wanted}.")  # 7 is 7.1.0, and is not 70.1
        status = "ok" if same else "note"
        yield Finding(name, status, found if same else f"{found}; the course was written for {wanted}.")


def _tested(_: bool) -> Iterator[Finding]:
    """Which packages have another version than the one tested; most differences are harmless."""
    places = (ROOT / "constraints.txt", Path(sys.prefix) / "share" / "mechlab" / "constraints.txt")
    file = next((place for place in places if place.is_file()), None)
    lines = file.read_text(encoding="utf-8").split() if file else []
    pins = [line.split("==") for line in lines if "==" in line]
    found = {each.name.lower(): each.version.partition("+")[0] for each in distributions()}
    differing = [f"{name} {found[name]} for {pin}" for name, pin in pins if found.get(name, pin) != pin]
    if differing:
        some = ", ".join(differing[:5]) + (", ..." if len(differing) > 5 else "")
        remedy = (
            f'If something breaks: `"{sys.executable}" -m pip install -c "{file}" "mechlab-course[lab]"`.'
        )
        yield Finding("tested versions", "note", f"{len(differing)} packages differ: {some}. {remedy}")


def _course(_: bool) -> Iterator[Finding]:
    """Notebooks and data, and whether somebody else's `mechlab` is here too."""
    notebooks = list((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if notebooks:
        yield Finding("notebooks", "ok", f"{len(notebooks)} in {ROOT / 'notebooks'}")
    else:
        yield Finding("notebooks", "problem", f"none in {ROOT / 'notebooks'}. Install the course again.")
    try:
        yield Finding("data", "ok", f"{data_dir()}")
    except FileNotFoundError as error:
        yield Finding("data", "problem", str(error))
    try:
        other = distribution("mechlab")
    except PackageNotFoundError:
        return
    if not any(entry.value.startswith("mechlab_course") for entry in other.entry_points):
        yield Finding(
            "mechlab",
            "problem",
            f"the package `mechlab` {other.version} is here too, and is somebody else's: both write to one "
            "folder. Run `pip uninstall -y mechlab`, then "
            "`pip install --force-reinstall --no-deps mechlab-course`.",
        )


def _memory(_: bool) -> Iterator[Finding]:
    free = memory.free_ram()
    if free is None:
        return
    enough = free > 2 * GIGABYTE
    advice = "" if enough else " A notebook needs about 1.5 GB: close other programs or kernels."
    yield Finding("memory", "ok" if enough else "problem", f"{free / GIGABYTE:.1f} GB available.{advice}")


def _processor(_: bool) -> Iterator[Finding]:
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none (none is needed)"
    yield Finding(
        "processor", "ok", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads; GPU: {gpu}"
    )


def _model(deep: bool) -> Iterator[Finding]:
    folder = checkpoints.cache_dir() / "smollm2" / "folded"
    if checkpoints.is_complete(folder, deep=deep):
        yield Finding("model", "ok", f"ready in {folder}")
    elif folder.exists():
        yield Finding("model", "problem", f"{folder} is damaged. Run `mechlab pull`; it makes it again.")
    else:
        yield Finding("model", "note", "not fetched yet. Run `mechlab pull` (93 MB, once).")
    for partial in (checkpoints.cache_dir() / "smollm2").glob("partial-*"):
        yield Finding("model", "note", f"{partial} is left from a stopped run; it may be deleted.")


def _places(_: bool) -> Iterator[Finding]:
    from mechlab_course import progress

    for what, folder in (
        ("cache folder", checkpoints.cache_dir()),
        ("progress folder", progress.path().parent),
    ):
        existing = next(p for p in [folder, *folder.parents] if p.exists())
        if os.access(existing, os.W_OK):
            free = shutil.disk_usage(existing).free / GIGABYTE
            enough = free > 1 or what != "cache folder"
            advice = "" if enough else " The model needs 1 GB: free some, or set MECHLAB_CACHE."
            yield Finding(what, "ok" if enough else "problem", f"{folder}, {free:.0f} GB free.{advice}")
        else:
            variable = "MECHLAB_CACHE" if what == "cache folder" else "MECHLAB_HOME"
            yield Finding(
                what, "problem", f"{folder} cannot be written to. Set {variable} to another folder."
            )


def _kernel(_: bool) -> Iterator[Finding]:
    try:
        from jupyter_client.kernelspec import KernelSpecManager
    except ImportError:
        yield Finding("kernel", "problem", f"Jupyter is missing. {INSTALL}")
        return
    specs = KernelSpecManager().get_all_specs()
    if "python3" not in specs:
        yield Finding(
            "kernel", "problem", "no kernel named python3. Run `python -m ipykernel install --sys-prefix`."
        )
        return
    program = specs["python3"]["spec"]["argv"][0]
    same = Path(program).name.startswith("python") and (
        not os.path.isabs(program) or os.path.realpath(program) == os.path.realpath(sys.executable)
    )
    detail = (
        "python3 starts this Python" if same else f"python3 starts {program}, another Python than this one."
    )
    yield Finding("kernel", "ok" if same else "problem", detail)


_LOOKS: list[Callable[[bool], Iterator[Finding]]] = [
    _python,
    _packages,
    _tested,
    _course,
    _memory,
    _processor,
    _model,
    _places,
    _kernel,
]
