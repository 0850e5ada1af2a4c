"""From `make lab` to an open notebook, and the time of each notebook from top to bottom."""

import json
import os
import subprocess
import tempfile
import time

from benchmarks.load import row
from mechlab_course.build import notebooks as build
from mechlab_course.build.execute import browser_page, run

PORT = 8941


def lab() -> bool:
    """Seconds from the command on a prepared machine until Chromium shows the first heading of notebook 00."""
    subprocess.run(["make", "-s", ".venv/lab"], cwd=build.ROOT, check=True)  # a prepared machine
    with tempfile.TemporaryDirectory() as work, browser_page() as page:
        options = f"--no-browser --work {work} --port={PORT} --IdentityProvider.token=t"
        started = time.monotonic()
        process = subprocess.Popen(
            ["make", "-s", "lab", f"ARGS={options}"],
            cwd=build.ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"MECHLAB_HOME": work, "JUPYTER_CONFIG_DIR": f"{work}/config"},
            start_new_session=True,
        )
        try:
            while True:
                try:
                    page.goto(f"http://localhost:{PORT}/lab/tree/notebooks/00_start_here.ipynb?token=t")
                    break
                except Exception:  # not listening yet
                    time.sleep(0.1)
            page.wait_for_selector(".jp-Notebook h1", timeout=60_000)
            seconds = time.monotonic() - started
        finally:
            os.killpg(process.pid, 15)
            process.wait(20)
    return row("`make lab` to an open notebook, seconds", f"{seconds:.1f}", "", "under 15", seconds < 15)


def notebooks() -> bool:
    """Seconds of each solution, kernel start and imports included."""
    results = []
    for name, path in build.sources().items():
        started = time.monotonic()
        run(json.loads(build.dump(build.solution_notebook(path))), build.ROOT / "solutions", strict=True)
        seconds = time.monotonic() - started
        results.append(row(f"notebook {name}, seconds", f"{seconds:.0f}", "", "at most 90", seconds <= 90))
    return all(results)


def main() -> bool:
    """Print the table; True when every target is met."""
    print("\nThe course\n")
    return all([lab(), notebooks()])
