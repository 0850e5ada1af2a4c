"""The circuit found in the course's default model.

It is data/reference/ioi_smollm2.json, made by data/make/ioi.py.
"""

import json
from functools import cache

from mechlab.circuits.circuits import Circuit, Edge, Head
from mechlab.reference import data_dir


@cache
def found_figures() -> dict:
    """Every figure about the circuit, with its interval: [value, 95 % low, 95 % high].

    docs/ioi_report.md explains them.
    """
    path = data_dir() / "reference" / "ioi_smollm2.json"
    return json.loads(path.read_text(encoding="utf-8"))


def found_circuit() -> Circuit:
    """The circuit of `smollm2`: 26 heads, their roles and positions, and the measured edges between them."""
    found = found_figures()
    edges = [
        Edge(tuple(sender), None if receiver is None else tuple(receiver), into, effect)
        for sender, receiver, into, effect, *_ in found["edges"]
    ]
    roles = {role: [head_of(word) for word in words] for role, words in found["circuit"].items()}
    return Circuit(roles, found["positions"], edges)


def head_of(word: str) -> Head:
    """ "23.3" as (23, 3)."""
    layer, head = word.split(".")
    return int(layer), int(head)
