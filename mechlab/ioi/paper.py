"""What Wang et al. 2022 found in GPT-2 small ("Interpretability in the wild", arXiv 2211.00593): heads and figures."""

from mechlab.discovery.circuits import Circuit

PAPER_CIRCUIT = Circuit(
    roles={
        "previous token": ((2, 2), (4, 11)),
        "duplicate token": ((0, 1), (0, 10), (3, 0)),
        "induction": ((5, 5), (5, 8), (5, 9), (6, 9)),
        "S-inhibition": ((7, 3), (7, 9), (8, 6), (8, 10)),
        "name mover": ((9, 6), (9, 9), (10, 0)),
        "backup name mover": (
            (9, 0), (9, 7), (10, 1), (10, 2), (10, 6), (10, 10), (11, 2), (11, 9),
        ),
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
)  # fmt: skip

# figure -> value, with the place in the paper; templates of the paper, no BOS, mean ablation over its ABC prompts
PAPER = {
    "logit difference": 3.56,  # section 2, 100,000 prompts
    "accuracy": 0.993,  # section 2
    "probability of IO": 0.49,  # section 2
    "logit difference of the circuit": 3.10,  # section 4
    "faithfulness": 0.87,  # section 4
    "largest completeness gap": 3.09,  # section 4, greedy
    "attention of name movers to IO": 0.59,  # section 3.1
    "copy score of name movers": 0.95,  # section 3.1: above this
    "copy score of the average head": 0.20,  # section 3.1: below this
    "negative copy score of negative name movers": 0.98,
    "attention of S-inhibition heads to S2": 0.51,
    "drop without the three name movers": 0.05,  # section 3.4, a share
    "position signal": 2.31,  # appendix A, a coefficient
    "token signal": 0.99,  # appendix A
}
