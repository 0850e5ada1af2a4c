"""The paper's number beside the learner's, in one table, with its source.

`data/reference/paper.csv` holds published figures with source and confidence; `data/reference/smollm2.csv`
holds what was measured on the model of the course, with the command that measured it;
`data/reference/bibliography.csv` where each paper that the course cites can be read.
"""

import csv
import html
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, SupportsFloat

if TYPE_CHECKING:
    import pandas as pd

# Read in the paper, in a replication, or quoted with its place; never from memory.
PRINTABLE = ("P", "R", "S")
COLUMNS = ("quantity", "paper", "SmolLM2, stored", "yours", "source")


def data_dir() -> Path:
    """The course's data folder: `MECHLAB_DATA`, beside or inside this package, or one above the notebook."""
    parents = [*Path(__file__).parents[1::-1], Path.cwd(), *Path.cwd().parents]
    candidates = [folder / "data" for folder in parents]
    if os.environ.get("MECHLAB_DATA"):
        candidates.insert(0, Path(os.environ["MECHLAB_DATA"]))
    for folder in candidates:
        if (folder / "reference" / "paper.csv").exists():
            return folder
    raise FileNotFoundError(
        "The course's data folder was not found. Install the course again, start Jupyter inside the "
        "repository, or set MECHLAB_DATA to its data/ folder."
    )


def table(notebook: str, yours: Mapping[str, SupportsFloat] | None = None) -> "pd.DataFrame":
    """Rows of one notebook: quantity, the paper's figure and model, SmolLM2 as stored, and yours.

    Further published figures of the same quantity have a row each, with the quantity left blank. As HTML the
    sources lead to the papers.

    `yours` maps quantities to the numbers you measured. An unknown one is an error that lists those known.
    """
    import pandas as pd

    paper = pd.read_csv(data_dir() / "reference" / "paper.csv", dtype=str).fillna("")
    ours = pd.read_csv(data_dir() / "reference" / "smollm2.csv", dtype=str).fillna("")
    paper, ours = (frame[frame.notebook == notebook] for frame in (paper, ours))
    quantities = list(dict.fromkeys([*paper.quantity, *ours.quantity]))
    unknown = set(yours or {}) - set(quantities)
    if unknown:
        raise KeyError(f"Notebook {notebook} has no reference for {sorted(unknown)}. Known: {quantities}.")
    rows = []
    for quantity in quantities:
        published = paper[(paper.quantity == quantity) & paper.confidence.isin(PRINTABLE)]
        stored = next(iter(ours[ours.quantity == quantity].value), "")
        mine = (yours or {}).get(quantity)
        figures = [(f"{r.value} ({r.model})", r.source) for r in published.itertuples()] or [("", "")]
        for n, (figure, source) in enumerate(figures):
            first = (quantity, stored, "" if mine is None else _like(stored, float(mine)))
            name, *measured = ("", "", "") if n else first
            rows.append(dict(zip(COLUMNS, (name, figure, *measured, source), strict=True)))
    made = pd.DataFrame(rows).set_index("quantity")
    plain, sources = made._repr_html_, {row["source"] for row in rows}
    setattr(made, "_repr_html_", lambda: linked(plain() or "", sources))  # noqa: B010 (asked before its class)
    return made


def addresses() -> dict[str, str]:
    """Where each paper that the course cites can be read, by its citation, such as "Wang et al. 2022"."""
    path = data_dir() / "reference" / "bibliography.csv"
    if not path.exists():  # data of an earlier version
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["citation"]: row["address"] for row in csv.DictReader(file) if row["address"]}


def linked(page: str, sources: Iterable[str]) -> str:
    """The HTML of a table, with a link in each cell that is one of the sources and cites a known paper."""
    known = addresses()
    for source in sources:
        citation = max((each for each in known if source.startswith(each)), key=len, default="")
        if citation:
            cell = html.escape(source, quote=False)
            page = page.replace(f"<td>{cell}</td>", f'<td><a href="{known[citation]}">{cell}</a></td>')
    return page


def _like(stored: str, value: float) -> str:
    """A number with as many places after the point as the stored one beside it; 3 digits where none is."""
    number = stored.strip().lstrip("-−").replace(".", "", 1)
    return f"{value:.{len(stored.partition('.')[2])}f}" if number.isdecimal() else f"{value:.3g}"
