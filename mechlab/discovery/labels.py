"""Labels of a dictionary's features: for each a program that was found by search, with its scores.

Made by data/make/labels.py, read beside the activity of the features. A label is an explanation on trial, not
a name: its correlation on held-out texts stands beside it, and that of the look-up table of tokens.
"""

import csv
import html
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.discovery.explaining import read_program
from mechlab.discovery.predicates import Reading

COLUMNS = ("feature", "program", "correlation", "lookup", "both", "f1", "lookup_f1")


@dataclass(frozen=True)
class Label:
    """What a feature is active at, as a program, and how well that predicts on held-out texts.

    correlation: of the program's prediction with the activation; lookup: of the look-up table's
    both:        of the table and a program for what it leaves over
    f1, lookup_f1: detection. All five are None for a feature that is never active on those texts
    """

    program: str
    correlation: float | None
    lookup: float | None
    both: float | None
    f1: float | None
    lookup_f1: float | None

    @property
    def words(self) -> str:
        """The program for people: 13.1 after 'and'; 4.15 two after 'and'."""
        _, terms = read_program(self.program)
        return "; ".join(f"{weight:.3g} {each.words}" for weight, each in terms)

    @property
    def scores(self) -> str:
        if self.correlation is None:
            return "never active on the held-out texts, so not scored"
        return (
            f"correlation on held-out texts {self.correlation:.2f}; look-up table of tokens "
            f"{self.lookup:.2f}; both together {self.both:.2f}"
        )

    def __repr__(self) -> str:
        return f"Program, found by search: {self.words.replace(chr(10), '↵')} ({self.scores})"

    def _repr_html_(self) -> str:
        words = html.escape(self.words.replace("\n", "↵"))
        return f"<details><summary>A program found by search</summary>{words}<br>{self.scores}</details>"


def read_labels(path: str | os.PathLike) -> dict[int, Label]:
    """Each feature's label. Raises a `ValueError` for a file with other columns."""
    number = lambda text: float(text) if text else None
    with Path(path).open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if tuple(rows.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path} holds no labels: its columns are {rows.fieldnames}, not {COLUMNS}.")
        return {
            int(row["feature"]): Label(row["program"], *(number(row[name]) for name in COLUMNS[2:]))
            for row in rows
        }


def write_labels(path: str | os.PathLike, labels: Mapping[int, Label]) -> None:
    """The reverse: one row a feature, scores with two digits."""
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for feature, label in labels.items():
            scores = [getattr(label, name) for name in COLUMNS[2:]]
            rows.writerow([feature, label.program, *("" if s is None else f"{s:.2f}" for s in scores)])


def simulate(labels: Mapping[int, Label], texts: Reading, d_sae: int) -> Float[Tensor, "text pos feature"]:
    """What the programs of all features predict together, for `splice`-like tests; below zero becomes 0.

    A feature without a label is predicted to be 0, and so is every feature where a reading skips.
    """
    found = torch.zeros(*texts.texts.shape, d_sae)
    terms = {feature: read_program(label.program) for feature, label in labels.items()}
    used = dict.fromkeys(each for _, listed in terms.values() for _, each in listed)
    true = dict(zip(used, torch.from_numpy(texts.columns(used)).float().T, strict=True))
    for feature, (base, listed) in terms.items():
        total = base + sum(weight * true[each] for weight, each in listed)
        found[:, texts.skip :, feature] = torch.as_tensor(total).relu().view(len(texts.texts), -1)
    return found
