"""Which engine serves a run: the fast one where it is exact, the plain one for every other model."""

import warnings
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab import moved
from mechlab.runs.fast import Fast
from mechlab.runs.plain import Plain
from mechlab.runs.run import NotResumable, Run

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def run_of(
    model: "TransformerBridge",
    tokens: "Int[Tensor, 'batch pos'] | Run",
    *,
    like: Run | None = None,
    embedded: Float[Tensor, "batch pos d_model"] | None = None,
    engine: str | None = None,
) -> Run:
    """A run of the model on prompts of equal length, by the fast engine where that is exact.

    Else the plain one makes it, with a word.

    tokens:   a run is given back as it is
    like:     another run of this model: its engine is taken, and what both begin with is not computed again
    embedded: a stream to start from instead of the prompts' own embeddings, such as one with noise on it
    engine:   "fast" or "plain", to insist on one; "fast" raises `NotResumable` for a model that it does not
              know
    """
    if not isinstance(tokens, Tensor):
        return tokens
    if engine == "plain" or (engine is None and isinstance(like, Plain)):
        return Plain(model, tokens, embedded=embedded)
    like = like if isinstance(like, Fast) else None
    if engine == "fast":
        return Fast(model, tokens, embedded=embedded, like=like)
    try:
        return Fast(model, tokens, embedded=embedded, like=like)
    except NotResumable as reason:
        text = f"{reason} Each patch is a full run of the model: slower, the same numbers."
        warnings.warn(text, stacklevel=2)
        return Plain(model, tokens, embedded=embedded)


def runs_of(
    model: "TransformerBridge",
    base: "Int[Tensor, 'batch pos'] | Run",
    source: "Int[Tensor, 'its_batch its_pos'] | Run",
) -> tuple[Run, Run]:
    """The two runs of a patch, of prompts that correspond position by position; others are refused."""
    base = run_of(model, base)
    theirs = source if isinstance(source, Tensor) else source.tokens
    if theirs.shape != base.tokens.shape:
        raise ValueError(
            f"base is {tuple(base.tokens.shape)} and source {tuple(theirs.shape)}: patching needs as many "
            "prompts of the "
            "same number of tokens, or positions do not correspond."
        )
    if torch.equal(base.tokens, theirs):
        raise ValueError("base and source are the same tokens, so a patch changes nothing.")
    return base, run_of(model, source, like=base)


def resume(model: "TransformerBridge", base: Int[Tensor, "batch pos"], **given: Any) -> Any:
    """`ml.Resume`, as `run_of` was called, with what notebooks asked of it."""
    moved.say("ml.Resume is now ml.run_of; its .pattern(layer) is .at('pattern', layer).", 3)
    run: Any = run_of(model, base, **given)
    run.base, run.ends = run.tokens, run.value
    run.pattern = lambda layer: run.at("pattern", layer).transpose(1, 2)
    return run
