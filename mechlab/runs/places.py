"""Which positions: of a word in its prompt, of a patch in each prompt, of two runs' first difference."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechlab.prompts import PromptError
from mechlab.results import position_labels
from mechlab.runs.run import Run

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# Positions that are the same in all prompts, or names for places that differ from prompt to prompt.
Positions = Sequence[int] | Mapping[str, Int[Tensor, "batch"] | Sequence[int]]
Where = Bool[Tensor, "batch pos"]


def first_difference(run: Run, other: Run) -> int:
    """The first position at which two runs can differ: any prompt has another token there.

    Where there is none, it is how many positions there are.
    """
    if run.tokens.shape != other.tokens.shape or run.elsewhere or other.elsewhere or run.edits or other.edits:
        return 0
    differs = (run.tokens != other.tokens).any(0)
    return int(differs.float().argmax()) if differs.any() else len(differs)


def places_of(
    model: "TransformerBridge", tokens: Int[Tensor, "batch pos"], positions: Positions | None, apart: bool
) -> dict[str, Where]:
    """Which positions of each prompt are touched: one entry for each place, or one for all together."""
    count = tokens.shape[1]
    if not isinstance(positions, Mapping):
        chosen = range(count) if positions is None else [int(p) for p in positions]
        wrong = [p for p in chosen if not -count <= p < count]
        if wrong:
            raise ValueError(f"There is no position {wrong[0]}: the prompts have positions 0 to {count - 1}.")
        labels = position_labels(model, tokens)
        positions = {labels[p % count]: torch.full((len(tokens),), p) for p in chosen}
    places = {}
    for name, each in positions.items():
        each = torch.as_tensor(each).expand(len(tokens))
        if not ((each >= -count) & (each < count)).all():
            raise ValueError(
                f"{name!r} has positions {each.tolist()}: the prompts have positions 0 to {count - 1}."
            )
        places[name] = (torch.arange(count) == (each % count)[:, None]).to(tokens.device)
    if not places:
        raise ValueError("There is nothing to patch: `positions` is empty.")
    return places if apart else {"all": torch.stack([*places.values()]).any(0)}


def subject_positions(model: "TransformerBridge", prompt: str, subject: str) -> list[int]:
    """The positions of the tokens that hold `subject` in `prompt`, where it occurs last.

    Raises `PromptError`.
    """
    start = prompt.rfind(subject) if subject else -1
    if start < 0:
        raise PromptError(f"The subject {subject!r} does not occur in the prompt {prompt!r}.")
    tokens = model.to_tokens(prompt)[0].tolist()
    ends = [len(model.to_string(tokens[: i + 1])) for i in range(len(tokens))]
    offset = ends[-1] - len(prompt)  # the first token is the model's own
    holds = lambda i: ends[i] - offset > start and ends[i - 1] - offset < start + len(subject)
    return [i for i in range(1, len(ends)) if holds(i)]
