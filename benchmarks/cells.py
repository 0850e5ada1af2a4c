"""CPU seconds of each cell of a solution, and how long it says nothing: `python -m benchmarks.cells 22 [31 ...]`."""

import os
import sys
import tempfile
from dataclasses import dataclass

import psutil
from nbclient import NotebookClient
from nbformat import reads

from mechlab_course.build import notebooks as build
from mechlab_course.pulse import SLOW


@dataclass
class Cell:
    """What one cell took, in CPU seconds of the kernel, and its longest silence."""

    number: int
    source: str
    marks: list[float]  # the kernel's CPU seconds at the start, at each message, at the end

    @property
    def seconds(self) -> float:
        return self.marks[-1] - self.marks[0]

    @property
    def silence(self) -> float:
        return max(later - earlier for earlier, later in zip(self.marks, self.marks[1:], strict=False))


class Watched(NotebookClient):
    """A run that reads the kernel's clock at each message."""

    def clock(self) -> float:
        """The kernel's CPU seconds until now."""
        used = psutil.Process(self.km.provisioner.pid).cpu_times()
        return used.user + used.system

    def watch(self) -> list[Cell]:
        """Run it all; the cells of code, in order."""
        self.cells: list[Cell] = []
        self.on_cell_execute = self._started
        self.on_cell_executed = lambda **_: self.cells[-1].marks.append(self.clock())
        self.execute()
        return self.cells

    def _started(self, cell: dict, cell_index: int, **_: object) -> None:
        if cell["cell_type"] == "code":
            self.cells.append(Cell(cell_index, cell["source"], [self.clock()]))

    def process_message(self, msg: dict, cell: dict, cell_index: int) -> object:
        if msg["msg_type"] in ("stream", "display_data", "update_display_data"):
            self.cells[-1].marks.append(self.clock())
        return super().process_message(msg, cell, cell_index)


def timed(name: str) -> list[Cell]:
    """The cells of a solution, run from top to bottom with one thread."""
    path = build.sources()[name]
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"MECHLAB_HOME": home, "MECHLAB_STRICT": "1", "OMP_NUM_THREADS": "1"}
        notebook = reads(build.dump(build.solution_notebook(path)), as_version=4)
        where = {"metadata": {"path": build.ROOT / "solutions"}}
        return Watched(notebook, timeout=600, kernel_name="python3", resources=where).watch()


def main() -> None:
    """Print the cells over three CPU seconds, the longest silence of each, and the sum."""
    for name in build.sources():
        if sys.argv[1:] and name[:2] not in sys.argv[1:]:
            continue
        cells = timed(name)
        total = sum(cell.seconds for cell in cells)
        print(f"{name}: {total:.0f} CPU s, of which {cells[0].seconds:.0f} in the setup", flush=True)
        for cell in sorted(cells, key=lambda cell: -cell.seconds):
            if cell.seconds >= SLOW:
                first = cell.source.strip().splitlines()[0][:80]
                print(f"  {cell.seconds:5.1f} s, silent {cell.silence:5.1f} s  cell {cell.number:2}: {first}")


if __name__ == "__main__":
    main()
