"""The three tables of techniques on one family: attribution and discovery, circuits and patching, weights."""

import torch

from mechlab.attribution import neurons
from tests import test_families_circuits as circuits
from tests import test_families_discovery as discovery
from tests import test_families_weights as weights

WITHIN = 3e-4
TOKENS = torch.randint(5, 390, (2, 9), generator=torch.Generator().manual_seed(11))
NO_NEURONS, NO_FACT = discovery.REFUSED["Mixtral"], weights.NO_FACT
NO_MATRICES = {"Contrast", "FrozenRun", "kept_and_away", "group_hooks"}
REFUSED = dict.fromkeys(("Gemma 2", "Gemma 3", "OLMo2"), NO_FACT) | {
    "Mixtral": NO_NEURONS | NO_FACT | NO_MATRICES
}


def outcomes(model) -> dict[str, tuple[str, float | str]]:
    """For each technique "exact" or "plain" with the largest difference found, or "refused" with the reason."""
    exact, neurons.EXACT = neurons.EXACT, 10_000  # all neurons exactly, where learners get an estimate
    try:
        found = discovery.outcomes(model, model.cfg.model_name)
    finally:
        neurons.EXACT = exact
    return found | circuits.outcomes(model) | weights.outcomes(model)
