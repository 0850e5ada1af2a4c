"""Everything that `make test` runs, stage by stage: `python -m tests [style|unit|notebooks|browser ...]`.

A stage that fails does not stop the others; the last line counts stages.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cells import unsolved_and_solved

ROOT = Path(__file__).parents[1]
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `mechlab lab` does
NBVAL = [
    sys.executable,
    *["-m", "pytest", "-q", "-c", "pyproject.toml", "-p", "tests.nbval_plugin", "--nbval-lax"],
]


def run(*command: str, **extra: str) -> bool:
    print("$", " ".join(command).replace(sys.executable, "python"), flush=True)
    return subprocess.run(command, cwd=ROOT, env=os.environ | extra).returncode == 0


def style() -> bool:
    ruff, python = shutil.which("ruff") or "ruff", sys.executable
    return all(
        [
            run(ruff, "check", "."),
            run(ruff, "format", "--check", "."),
            run(python, "-m", "codespell_lib"),
            run(python, "-m", "mechlab_course.cli", "build", "--check"),
        ]
    )


def unit() -> bool:
    """Two files at a time, one thread each: two cores do more for two small models than for one."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not browser", "tests", "--durations=10"]
    return run(*command, "-n", "2", "--dist", "loadfile", OMP_NUM_THREADS="1", TQDM_DISABLE="1")


def notebooks() -> bool:
    """Every cell of every notebook, unsolved and solved, with the network off and every attempt an error.

    A learner's notebook and its solution share one session, so that what both have is run once. Two at a time, one
    thread each: two cores do more for two notebooks than for one.
    """
    names = sorted({p.name for folder in ("notebooks", "solutions") for p in ROOT.glob(f"{folder}/*.ipynb")})
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as two:
        log = Path(scratch) / "network"

        def nbval(name: str) -> bool:
            both = (json.loads((ROOT / folder / name).read_text()) for folder in ("notebooks", "solutions"))
            file = Path(scratch) / name
            file.write_text(json.dumps(unsolved_and_solved(*both)))
            done = subprocess.run(
                [*NBVAL, str(file)],
                cwd=ROOT,
                env=os.environ
                | {
                    "PYTHONPATH": str(ROOT / "tests" / "netguard"),
                    "MECHLAB_NETGUARD_LOG": str(log),
                    "MECHLAB_HOME": f"{scratch}/{file.stem}",
                    "MECHLAB_STRICT": "1",
                    "TQDM_DISABLE": "1",
                    "OMP_NUM_THREADS": "1",
                },
                capture_output=True,
                text=True,
            )
            lines = done.stdout.strip().splitlines()
            print(f"{name}: {lines[-1] if lines else done.stderr}", flush=True)
            if done.returncode:
                print(done.stdout, done.stderr, sep="\n", flush=True)
            return done.returncode == 0

        passed = all(list(two.map(nbval, reversed(names))))  # the longest are late in the course
        if log.exists():
            print("Somebody asked for the network:", sorted(set(log.read_text().split())))
            passed = False
    return passed


def browser() -> bool:
    """Two browsers, each with its JupyterLab: one alone mostly waits."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "browser", "tests", "--durations=5"]
    return run(*command, "-n", "2", "--dist", "loadgroup", OMP_NUM_THREADS="1")


STAGES = {"style": style, "unit": unit, "notebooks": notebooks, "browser": browser}


def main(names: list[str]) -> int:
    unknown = set(names) - set(STAGES)
    if unknown:
        print(f"There is no stage {sorted(unknown)}. Stages: {', '.join(STAGES)}.")
        return 2
    results = {}
    for name in names or STAGES:
        started = time.monotonic()
        print(f"\n=== {name}", flush=True)
        results[name] = (STAGES[name](), time.monotonic() - started)
    print()
    for name, (passed, seconds) in results.items():
        print(f"{name:10} {'passed' if passed else 'FAILED'} in {seconds:.0f} s")
    failed = sum(not passed for passed, _ in results.values())
    print(f"stages: {len(results) - failed} passed, {failed} failed")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
