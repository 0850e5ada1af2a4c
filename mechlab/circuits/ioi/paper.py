"""What Wang et al. 2022 found in GPT-2 small.

"Interpretability in the wild", arXiv 2211.00593. Its figures: data/reference/paper.csv.
"""

from mechlab.circuits.circuits import Circuit

PAPER_CIRCUIT = Circuit(
    roles={
        "previous token": ((2, 2), (4, 11)),
        "duplicate token": ((0, 1), (0, 10), (3, 0)),
        "induction": ((5, 5), (5, 8), (5, 9), (6, 9)),
        "S-inhibition": ((7, 3), (7, 9), (8, 6), (8, 10)),
        "name mover": ((9, 6), (9, 9), (10, 0)),
        "backup name mover": ((9, 0), (9, 7), (10, 1), (10, 2), (10, 6), (10, 10), (11, 2), (11, 9)),
        "negative name mover": ((10, 7), (11, 10)),
    },
    at={
        "previous token": ("S1+1",),
        "duplicate token": ("S2",),
        "induction": ("S2",),
        "S-inhibition": ("end",),
        "name mover": ("end",),
        "backup name mover": ("end",),
        "negative name mover": ("end",),
    },
)
