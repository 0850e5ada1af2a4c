"""The pages of docs/ that are made from code and notebooks, so that they cannot go stale."""

import csv
import re
from collections.abc import Iterable
from pathlib import Path

from mechlab.runs.caching import BLOCK_HOOKS, OUTER_HOOKS
from mechlab_course.build.sources import Cell, read


def glossary_page(sources: Iterable[Path], words: Path) -> str:
    """docs/glossary.md: the words of data/words.csv, and what the notebooks' recap tables have besides."""
    with words.open(encoding="utf-8", newline="") as file:
        rows = [(row["word"], row["meaning"], row["notebook"]) for row in csv.DictReader(file)]
    known = {name for word, *_ in rows for name in names(word)}
    for path in sources:
        for word, meaning in (pair for cell in read(path) for pair in recap(cell)):
            if not names(word) & known:
                rows.append((word, meaning, path.parent.name[:2]))
                known |= names(word)
    rows.sort(key=lambda row: row[2])  # stable: within a notebook as they stand
    return (
        "<!-- Made by `mechlab build` from the recap tables and data/words.csv. -->\n\n"
        "# Glossary\n\n"
        "Short meanings, in the order in which the course needs them. "
        "The number is the notebook that explains the word.\n\n"
        "| word | meaning | notebook |\n|---|---|---|\n"
        + "".join(f"| {word} | {meaning} | {notebook} |\n" for word, meaning, notebook in rows)
    )


def recap(cell: Cell) -> list[tuple[str, str]]:
    """(word, meaning) of each row of a recap table, one whose first column is called "term"."""
    table = re.findall(r"^\|(.+)\|$", cell.source, re.MULTILINE) if cell.type == "markdown" else []
    rows = [[part.strip() for part in row.split("|")] for row in table]
    return [(row[0], row[1]) for row in rows[2:]] if rows and rows[0][0] == "term" else []


def names(words: str) -> set[str]:
    """The words of a row, apart, for comparison: "logit lens, tuned lens" are two."""
    return {name.strip().lower() for name in re.sub(r"\(.*?\)", "", words).split(",") if name.strip()}


def hook_map_page() -> str:
    """docs/hook_map.md: every hook of a layer, with its axes and meaning."""
    rows = lambda hooks, prefix: "".join(
        f"| `{prefix}{n}` | `{axes}` | {what} |\n" for n, (axes, what) in hooks.items()
    )
    head = "| hook | axes | what it is |\n|---|---|---|\n"
    return (
        "<!-- Made by `mechlab build` from mechlab/runs/caching.py. -->\n\n"
        "# Hook map\n\n"
        "What can be observed in a run, and what it is called. In a notebook, `ml.hook_map(model)` shows the "
        "same with shapes measured on the live model.\n\n"
        "## In each layer, in the order in which it happens (here layer 5)\n\n"
        + head
        + rows(BLOCK_HOOKS, "blocks.5.")
        + "\n## Around the layers\n\n"
        + head
        + rows(OUTER_HOOKS, "")
        + "\n## Off until asked for\n\n"
        "`hook_result` (each head's output after W_O) needs `model.set_use_attn_result(True)`; "
        "`hook_q_input`, "
        "`hook_k_input` and `hook_v_input` need `model.set_use_split_qkv_input(True)`; `hook_mlp_in` needs "
        "`model.set_use_hook_mlp_in(True)`. They cost memory, so turn them off again.\n\n"
        "In a model with grouped queries do not use `set_use_attn_in(True)`: its heads 0 to 2 stand for "
        "the three key heads, and the other query heads do not reach the keys at all.\n"
    )
