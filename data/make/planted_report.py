"""Write docs/methods_on_trial.md from its text (planted_report.txt) and data/reference/planted.csv.

    python data/make/planted_report.py

What stands in braces in the text is filled in as in ioi_report.py, here from `figures` below. Three models a cell are too
few for an interval, and they differ less than tasks do: a cell is the worst of its tasks and seeds.
"""

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

from ioi_report import ROOT, filled, table

TEXT = Path(__file__).with_name("planted_report.txt")
TABLE = ROOT / "data" / "reference" / "planted.csv"
TRAINED = ROOT / "data" / "reference" / "planted_trained.csv"
REPORT = ROOT / "docs" / "methods_on_trial.md"
CUT = 0.1  # of the largest score: what is above it is usually taken into the circuit
ELSEWHERE = "attribution of q and k"  # asks for a part of what heads do: in the counts alone
TASKS = {"ioi": "two names", "induction": "induction", "sum": "sum"}

Row = dict[str, str]


def read(path: Path = TABLE) -> list[Row]:
    with path.open(encoding="utf-8") as file:
        return [*csv.DictReader(file)]


def grouped(rows: Iterable[Row], *names: str) -> dict:
    """Rows by the values of some columns, in the order of the table: {level: {method: {trap: rows}}}."""
    found: dict = {}
    for row in rows:
        place = found
        for name in names[:-1]:
            place = place.setdefault(row[name], {})
        place.setdefault(row[names[-1]], []).append(row)
    return found


def worst(rows: list[Row], column: str, of: Callable) -> dict[str, dict[str, float]]:
    """Method -> trap -> the smallest or largest of a column. Who says 0 of every place misses all that is true."""
    return {
        method: {trap: of(float(row[column] or 0) for row in some) for trap, some in traps.items()}
        for method, traps in grouped(rows, "method", "trap").items()
    }


def figures(rows: list[Row]) -> dict:
    """What the text says: question -> method -> trap -> the worst of some tasks and seeds; and counts."""
    judged = [row for row in rows if row["level"] != "model"]
    chains, sums = ([row for row in judged if (row["task"] == "sum") is isit] for isit in (False, True))
    nodes = [row for row in judged if row["level"] == "nodes"]
    told = [row for row in nodes if row["auroc"]]
    sure = [row for row in told if float(row["auroc"]) == 1]
    kinds = {
        level: {row["method"] for row in judged if row["level"] == level} for level in ("nodes", "edges")
    }
    return {
        "true": worst(chains, "weakest true", min),
        "false": worst(chains, "strongest false", max),
        "true in sum": worst(sums, "weakest true", min),
        "false in sum": worst(sums, "strongest false", max),
        "two names": worst([row for row in chains if row["task"] == "ioi"], "weakest true", min),
        "models": len({(row["task"], row["trap"], row["seed"]) for row in rows}),
        "seeds": len({row["seed"] for row in rows}),
        "methods": {level: len(some) for level, some in kinds.items()},
        "minutes": round(sum(float(row["cpu seconds"]) for row in judged) / 60),
        "told": len(told),
        "sure": len(sure),
        "sure and missed": sum(float(row["weakest true"]) < CUT for row in sure),
        "sure and faint": sum(float(row["weakest true"]) < 3 * CUT for row in sure),
        "sure, least": min(float(row["weakest true"]) for row in sure),
        "four": four(nodes),
        "seconds": {
            method: median(float(row["cpu seconds"]) for row in some)
            for method, some in grouped(judged, "method").items()
        },
    }


def four(nodes: list[Row]) -> dict[str, float]:
    """Trap -> what the weakest true node has in the better of the four patchings, in the worst model."""
    patched = [
        row for row in nodes if row["method"].startswith("patching") and "by prompt" not in row["method"]
    ]
    return {
        trap: min(max(float(row["weakest true"]) for row in some) for some in models.values())
        for trap, models in grouped(
            ({**row, "model": row["task"] + row["seed"]} for row in patched), "trap", "model"
        ).items()
    }


def cell(true: float, false: float) -> str:
    """The weakest true part, bold where it is missed, and the strongest false one where it is taken in."""
    said = f"{true:.2f}" if true >= CUT else f"**{true:.2f}**"
    return said + (f" (✗ {false:.2f})" if false >= CUT else "")


def board(found: dict, rows: list[Row], level: str, tasks: str = "") -> str:
    """Methods and traps: the worst of the two chains, or of the sum (tasks=" in sum")."""
    true, false = found[f"true{tasks}"], found[f"false{tasks}"]
    whole = [row for row in rows if row["trap"] == "gated"]  # no other has all methods
    methods = dict.fromkeys(row["method"] for row in whole if row["level"] == level and row["method"] in true)
    methods = [name for name in methods if not name.startswith(ELSEWHERE)]
    traps = [trap for trap in dict.fromkeys(row["trap"] for row in rows) if trap in true[methods[0]]]
    said = lambda method, trap: cell(true[method][trap], false[method][trap]) if trap in true[method] else "–"
    return table(
        ["method (CPU s)", *traps],
        [
            [f"{name} ({found['seconds'][name]:.2f})", *(said(name, trap) for trap in traps)]
            for name in methods
        ],
    )


def counts(found: dict, rows: list[Row]) -> str:
    """In how many models each method misses a true node, or takes in a false one, beside its AUROC."""
    lines = []
    for method, some in grouped([row for row in rows if row["level"] == "nodes"], "method").items():
        if len(some) < found["models"]:
            continue
        areas = [float(row["auroc"] or 0.5) for row in some]
        missed = sum(float(row["weakest true"] or 0) < CUT for row in some)
        accused = sum(float(row["strongest false"] or 0) >= CUT for row in some)
        lines.append([method, f"{median(areas):.2f}", f"{min(areas):.2f}", f"{missed} of {len(some)}", f"{accused} of {len(some)}"])  # fmt: skip
    lines.sort(key=lambda line: sum(int(each.split()[0]) for each in line[3:]))
    return table(
        ["method", "AUROC, median", "AUROC, worst", "misses a true node in", "takes in a false one in"], lines
    )


def behaviour(rows: list[Row]) -> str:
    """Of the whole models: the logit difference and how often the answer is right, mean over seeds."""
    cells = grouped([row for row in rows if row["level"] == "model"], "trap", "task")

    def told(some: list[Row]) -> str:
        mean = lambda column: sum(float(row[column]) for row in some) / len(some)
        return f"{mean('auroc'):.1f}, {mean('average precision'):.2f}" if some else "–"

    return table(
        ["trap", *TASKS.values()],
        [[trap, *(told(tasks.get(task, [])) for task in TASKS)] for trap, tasks in cells.items()],
    )


def trained(rows: list[Row]) -> str:
    """Models that were trained to have the circuit beside those it was written into: the worst seed of each."""
    lines, some = (
        [],
        [row for row in rows if row["level"] == "nodes" and not row["method"].startswith(ELSEWHERE)],
    )
    for method, models in grouped(some, "method", "model").items():
        line = [method]
        for column, of in (("weakest true", min), ("strongest false", max), ("CMD", max)):
            both = [
                [float(row[column]) for row in models[kind] if row[column]] for kind in ("trained", "planted")
            ]
            line.append(" / ".join(f"{of(each):.2f}" if each else "–" for each in both))
        lines.append(line)
    return table(["trained / planted", "weakest true", "strongest false", "CMD"], lines)


def report() -> str:
    rows = read()
    found = figures(rows)
    drawn = {
        level + tasks: board(found, rows, level, tasks)
        for level in ("nodes", "edges")
        for tasks in ("", " in sum")
    }
    drawn |= {"counts": counts(found, rows), "behaviour": behaviour(rows), "trained": trained(read(TRAINED))}
    return filled(TEXT.read_text(encoding="utf-8"), found, drawn)


if __name__ == "__main__":
    REPORT.write_text(report(), encoding="utf-8")
    print(REPORT.relative_to(ROOT))
