"""An example of hidden checks: `mechlab grade FOLDER --hidden tests/hidden_example`. Learners never get this folder.

The form is that of mechlab/course/checks. The visible check of exercise 12.2 has ten fixed cases, which an answer could
hold as a table; these cases are drawn.
"""

import torch

from mechlab_course.checking import whole_number
from mechlab_course.exercises import Attempt, NotYet, checker


@checker("12.2")
def check_turning_layer(attempt: Attempt) -> str:
    draw = torch.Generator().manual_seed(12)
    for _ in range(30):
        effects = torch.randn(9, generator=draw) + 1
        start = torch.randn((), generator=draw).item()
        running = start + effects.cumsum(0)
        if running[-1] <= 0:
            continue
        below = (running <= running[-1] / 2).nonzero()[:, 0].tolist()
        found = whole_number(attempt(effects, start), "the layer")
        if found != 1 + max(below, default=-1):
            raise NotYet("For a running sum that the check you have does not hold, the layer is another one.")
    return "Thirty drawn sums too."
