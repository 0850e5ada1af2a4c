"""Text to measure on: what the model of the course wrote itself (data/text, made by data/make/text.py)."""

import json
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from mechlab.arguments import at_least
from mechlab.reference import data_dir
from mechlab.tokens import check_context

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def own_text(
    model: "TransformerBridge", *, length: int = 81, count: int | None = None
) -> Int[Tensor, "batch pos"]:
    """Texts cut to `length` tokens, in a fixed order; with the model's first token, where it has one.

    Shorter ones are left out. The text was written by SmolLM2. Another model can read it, but for that model
    it is not its own. Raises a `PromptError` for a length beyond the model's context.
    """
    check_context(model, at_least("length", length, 1), "A text")
    kept: list[Tensor] = []
    with open(data_dir() / "text" / "smollm2.jsonl", encoding="utf-8") as file:
        for line in file:
            if count is not None and len(kept) == count:
                break
            ids = model.to_tokens(json.loads(line)["text"], truncate=False)[0]
            if len(ids) >= length:
                kept.append(ids[:length])
    if not kept or (count is not None and len(kept) < count):
        raise ValueError(
            f"There are {len(kept)} texts of {length} tokens or more; {count or 'some'} were wanted."
        )
    return torch.stack(kept)
