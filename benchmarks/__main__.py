"""Measure the budgets of the course, each beside the plain way of doing it, in one run: `python -m benchmarks`."""

import sys

from benchmarks import attribution, circuits, course, gpu, load, patching, threads

BENCHMARKS = {
    "load": load.main,
    "threads": threads.main,
    "attribution": attribution.main,
    "patching": patching.main,
    "circuits": circuits.main,
    "course": course.main,
    "gpu": gpu.main,
}


def main(names: list[str]) -> int:
    unknown = set(names) - set(BENCHMARKS)
    if unknown:
        print(f"There is no benchmark {sorted(unknown)}. Benchmarks: {', '.join(BENCHMARKS)}.")
        return 2
    met = [BENCHMARKS[name]() for name in names or BENCHMARKS]
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
