"""A circuit that was trained instead of written down: three heads that carry three variables of a program.

A hand-planted model is kinder than any real one. In this small GPT-2 training chose every weight; what is
known is which head must hold which variable of the program, and where: exchange the head's output there for
that of another prompt, and the answer changes as the program's does when its variable is exchanged. All other
heads and MLPs may be exchanged, and the answer stays (strict interchange intervention training, Gupta et al.
2024). *How* a head does its part is nobody's plan. Made by data/make/siit.py.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from mechlab.circuits.planted.models import Planted
from mechlab.circuits.planted.tasks import NAMES, TASKS, Row, Task
from mechlab.loading.models import wrap
from mechlab.reference import data_dir
from mechlab.results import Scores

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FILES = {False: "model.safetensors", True: "twin.safetensors"}  # by whether it is the twin


@dataclass(frozen=True, eq=False)
class PlantedTrained(Planted):
    """A trained model of which the circuit is known. Its prompts have pairs of names it was not trained on.

    plan:      the program it was trained to follow, in the language of plans. How it does so is its own
    positions: name of a part -> the position where the head holds its variable: at S2 or at the end
    figures:   how often the model says what the program says, on pairs of names that were not trained: by
               itself ("behaviour"), with a part exchanged (by name), with all else exchanged ("strict")
    """

    positions: Mapping[str, int] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)

    def true_edges(self, scores: Scores) -> Bool[Tensor, "sender reader"]:
        """Edges that must be there: what one variable is made of, by the program, is read by its head.

        Training looked at answers, not at edges: others may be there too, from a part to the one after the
        next. This model has none above 0.05; two of other seeds have one of half the metric.
        """
        return self._edges(scores, (("duplicate", "v"), ("S-inhibition", "q"), ("name mover", "logits")))

    def open_edges(self, scores: Scores) -> Bool[Tensor, "sender reader"]:
        """Edges not to be judged by: other inputs of a head that reads another, and what `Planted` says."""
        left = (("duplicate", "qk"), ("S-inhibition", "kv"))
        known = self._edges(scores, [(name, into) for name, inputs in left for into in inputs])
        return known | super().open_edges(scores)

    def _edges(self, scores: Scores, edges) -> Bool[Tensor, "sender reader"]:
        """Edges from a part to the next, by what they go into."""
        after = {"duplicate": "S-inhibition", "S-inhibition": "name mover", "name mover": "logits"}
        senders, readers = scores.labels["sender"], scores.labels["reader"]
        found = torch.zeros(len(senders), len(readers), dtype=torch.bool)
        for name, into in edges:
            reader = self._called(after[name], into)
            found[senders.index(self._called(name)), readers.index(reader)] = True
        return found


def planted_trained(*, twin: bool = False) -> PlantedTrained:
    """The trained model with its circuit, in a second.

    twin: another model instead, trained on the same prompts for the answer alone: it does the task as well,
          and its heads at the same places hold nothing in particular
    """
    folder = data_dir() / "planted"
    told = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    plan = replace(TASKS["ioi"].plan(), slots=told["slots"])
    return PlantedTrained(
        _model(folder, FILES[twin]),
        plan,
        {name: (layer, head) for name, (layer, head) in told["heads"].items()},
        Task(TASKS["ioi"].plan, _untrained_rows),
        positions=told["positions"],
        figures=told["figures"]["twin" if twin else "model"],
    )


def untrained(one: Any, other: Any) -> Any:
    """Whether the model never saw two names together, by their numbers: nine of the 45 pairs."""
    return (one + other) % 5 == 0


def _untrained_rows(count: int, chance: torch.Generator) -> list[Row]:
    """Rows of the task, in pairs, with two names that were never together in training."""
    rows: list[Row] = []
    while len(rows) < count:
        both = TASKS["ioi"].rows(2, chance)
        if untrained(*(NAMES.index(name) for name in (both[0].answer, both[0].rival))):
            rows += both
    return rows[:count]


def _model(folder: Path, weights: str) -> "TransformerBridge":
    """The model in full precision; the file has half."""
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        hf_model = GPT2LMHeadModel(GPT2Config.from_pretrained(folder))
    state = {name: tensor.float() for name, tensor in load_file(folder / weights).items()}
    hf_model.load_state_dict(state)
    return wrap(hf_model, AutoTokenizer.from_pretrained(folder), name="planted, trained")
