"""The IOI task: "When John and Mary went to the store, John gave a drink to" -> " Mary".

words     sentences, names, places and things
prompts   prompts in balanced pairs, every corruption, and where the names stand
paper     the 26 heads of Wang et al. 2022, for GPT-2 small
found     the circuit found in smollm2, with every figure
roles     which role a head plays, from evidence and stated thresholds
"""

from mechlab.circuits.ioi.found import found_circuit, found_figures
from mechlab.circuits.ioi.paper import PAPER_CIRCUIT
from mechlab.circuits.ioi.prompts import IOIPrompts, ioi_prompts
from mechlab.circuits.ioi.words import ALIGNED, NAMES, TEMPLATES

__all__ = [
    "ALIGNED",
    "NAMES",
    "PAPER_CIRCUIT",
    "TEMPLATES",
    "IOIPrompts",
    "found_circuit",
    "found_figures",
    "ioi_prompts",
]
