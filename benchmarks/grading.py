"""Grading a class: CPU seconds and wall time by the number of answers checked at once, and whether the tables agree.

`python -m benchmarks.grading [LEARNERS]`. Every answer of every learner differs, so that none is known already.
"""

import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from mechlab_course.grading.grader import Asked, grade
from tests.handed_in import HEADS, RIGHT, answer, notebook


def hand_in(folder: Path, learners: int) -> None:
    """Notebook 12 of each, right but for one in five, no two answers alike."""
    for number in range(learners):
        cells = ["import torch"]
        for place, id in enumerate(HEADS):
            body = RIGHT[id] if (number + place) % 5 else "return 0"
            cells.append(answer(id, f"# learner {number}\n{body}"))
        path = folder / f"learner{number:03}" / "12.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(notebook(*cells)))


def main(learners: int) -> bool:
    cores, tables = os.cpu_count() or 1, set()
    with tempfile.TemporaryDirectory() as scratch:
        hand_in(Path(scratch) / "in", learners)
        for jobs in sorted({1, 2, cores}):
            out, before, started = Path(scratch) / f"out{jobs}" / "grades.csv", os.times(), time.monotonic()
            grade(Path(scratch) / "in", out, Asked(jobs=jobs), say=lambda _: None)
            wall, after = time.monotonic() - started, os.times()
            cpu = sum(after[:4]) - sum(before[:4])
            tables.add(hashlib.sha256(out.read_bytes()).hexdigest())
            count = learners * len(HEADS)
            print(
                f"{jobs} at once: {count} answers, {cpu:.1f} CPU s ({cpu / count:.2f} each), {wall:.1f} s on {cores} cores"
            )
    print("The tables are the same." if len(tables) == 1 else "The tables differ.")
    return len(tables) == 1


if __name__ == "__main__":
    sys.exit(not main(int(sys.argv[1]) if len(sys.argv) > 1 else 40))
