"""Everything that `make test` runs, stage by stage: `python -m tests [style|unit|notebooks|browser ...]`.

A stage that fails does not stop the others; the last line counts stages. `python -m tests check [COMMIT]` runs what
the files that changed since a commit ask for (`make check`).
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cells import unsolved_and_solved
from tests.changed import BY_STEM, Chosen, changed_files, choose

ROOT = Path(__file__).parents[1]
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `mechlab lab` does
NBVAL = [
    sys.executable,
    *["-m", "pytest", "-q", "-c", "pyproject.toml", "-p", "tests.nbval_plugin", "--nbval-lax"],
]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-n", "2"]


def run(*command: str, **extra: str) -> bool:
    print("$", " ".join(command).replace(sys.executable, "python"), flush=True)
    return subprocess.run(command, cwd=ROOT, env=os.environ | extra).returncode == 0


def style() -> bool:
    ruff, python = shutil.which("ruff") or "ruff", sys.executable
    return all(
        [
            run(ruff, "check", "."),
            run(ruff, "format", "--check", "."),
            run(python, "-m", "ty", "check", "--python", sys.prefix),
            run(python, "-m", "codespell_lib"),
            run(python, "-m", "mechlab_course.cli", "build", "--check"),
        ]
    )


def tests(*arguments: str) -> bool:
    """Two at a time, one thread each: two cores do more for two small models than for one."""
    return run(*PYTEST, *arguments, OMP_NUM_THREADS="1", TQDM_DISABLE="1")


def unit() -> bool:
    return tests("--dist", "loadgroup", "-m", "not browser", "tests", "--durations=10")


def notebooks(names: list[str] | None = None) -> bool:
    """Every cell of every notebook, unsolved and solved, with the network off and every attempt an error.

    A learner's notebook and its solution share one session, so that what both have is run once. Two at a time, one
    thread each: two cores do more for two notebooks than for one.
    """
    known = {path.name for folder in ("notebooks", "solutions") for path in ROOT.glob(f"{folder}/*.ipynb")}
    names = sorted(known) if names is None else names
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as two:
        log = Path(scratch) / "network"
        passed = all(
            list(two.map(lambda name: nbval(name, log), reversed(names)))
        )  # the longest are late in the course
        if log.exists():
            print("Somebody asked for the network:", sorted(set(log.read_text().split())))
            passed = False
    return passed


def nbval(name: str, log: Path) -> bool:
    """One notebook; `log` is where a request for the network is noted."""
    file = log.parent / name
    try:
        both = [json.loads((ROOT / folder / name).read_text()) for folder in ("notebooks", "solutions")]
        file.write_text(json.dumps(unsolved_and_solved(*both)))
    except (OSError, ValueError) as error:
        print(
            f"{name}: the solution is stale ({error}). Run: make build ARGS='--only {name[:2]}'", flush=True
        )
        return False
    environment = {
        "PYTHONPATH": str(ROOT / "tests" / "netguard"),
        "MECHLAB_NETGUARD_LOG": str(log),
        "MECHLAB_HOME": str(file.with_suffix("")),
        "MECHLAB_STRICT": "1",
        "TQDM_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [*NBVAL, str(file)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    print(f"{name}: {lines[-1] if lines else done.stderr}", flush=True)
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", flush=True)
    return done.returncode == 0


def browser() -> bool:
    """Two browsers, each with its JupyterLab: one alone mostly waits."""
    command = [*PYTEST, "--dist", "loadgroup", "-m", "browser", "tests", "--durations=5"]
    return run(*command, OMP_NUM_THREADS="1")


STAGES: dict[str, Callable[[], bool]]
STAGES = {"style": style, "unit": unit, "notebooks": notebooks, "browser": browser}


def stages_for(chosen: Chosen) -> dict[str, Callable[[], bool]]:
    """The stages of `make check`: style, the tests chosen, and of each notebook its exercises, lints and cells."""
    found: dict[str, Callable[[], bool]] = {"style": style}
    if chosen.tests:
        found["unit"] = lambda: tests("--dist", "loadfile", "-m", "not browser", *sorted(chosen.tests))
    if stems := sorted(chosen.notebooks):
        numbers = " or ".join(f"{stem[:2]}. or {stem}" for stem in stems)
        found["exercises"] = lambda: tests("--dist", "load", "tests/test_exercises.py", "-k", numbers)
        lints = [file for file in BY_STEM if file not in chosen.tests]
        if lints:
            found["lints"] = lambda: tests("--dist", "load", *lints, "-k", " or ".join(stems))
        found["notebooks"] = lambda: notebooks([f"{stem}.ipynb" for stem in stems])
    return found


def check(base: str = "HEAD") -> int:
    """What changed since a commit asks for, said first and then run."""
    try:
        files = changed_files(base)
    except ValueError as error:
        print(error)
        return 2
    chosen = choose(files)
    print(f"{len(files)} files differ from {base}. Style, and:")
    for name, why in [*sorted(chosen.tests.items()), *sorted(chosen.notebooks.items())]:
        some = ", ".join(sorted(why)[:3]) + (f" and {len(why) - 3} more" if len(why) > 3 else "")
        print(f"  {name}, because of {some}")
    print("Left to `make test`: all other tests and notebooks, and the browser.")
    for file in sorted(chosen.left):
        print(f"  {file} is used by tests that are not run here, or by none")
    return stage_by_stage(stages_for(chosen))


def stage_by_stage(stages: dict[str, Callable[[], bool]]) -> int:
    results = {}
    for name, stage in stages.items():
        started = time.monotonic()
        print(f"\n=== {name}", flush=True)
        results[name] = (stage(), time.monotonic() - started)
    print()
    for name, (passed, seconds) in results.items():
        print(f"{name:10} {'passed' if passed else 'FAILED'} in {seconds:.0f} s")
    failed = sum(not passed for passed, _ in results.values())
    print(f"stages: {len(results) - failed} passed, {failed} failed")
    return min(failed, 1)


def main(names: list[str]) -> int:
    if names[:1] == ["check"] and len(names) < 3:
        return check(*names[1:])
    unknown = set(names) - set(STAGES)
    if unknown:
        print(
            f"There is no stage {sorted(unknown)}. Stages: {', '.join(STAGES)}; or check, alone or with a commit."
        )
        return 2
    return stage_by_stage({name: STAGES[name] for name in names or STAGES})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
