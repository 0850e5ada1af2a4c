"""Which engine serves a run: the fast one where it is exact, the plain one for every other model."""

import warnings
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab import moved
from mechlab.runs.fast import Fast
from mechlab.runs.plain import Plain
from mechlab.runs.run import NotResumable, Run
from mechlab.tokens import Prompts, batch_of, batches_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def run_of(
    model: "TransformerBridge",
    tokens: "Prompts | Run",
    *,
    like: Run | None = None,
    embedded: Float[Tensor, "batch pos d_model"] | None = None,
    engine: str | None = None,
) -> Run:
    """A run of the model on prompts, by the fast engine where that is exact.

    Else the plain one makes it, with a word.

    tokens:   a run is given back as it is, if it is one of this model with the weights that it has now
    like:     another run of this model: its engine is taken, and what both begin with is not computed again
    embedded: a stream to start from instead of the prompts' own embeddings, such as one with noise on it
    engine:   "fast" or "plain", to insist on one; "fast" raises `NotResumable` for a model that it does not
              know
    """
    for run in (tokens, like):
        if isinstance(run, Run):
            _check_same_model(run, model)
    if isinstance(tokens, Run):
        return tokens
    batch = batch_of(model, tokens)
    if engine == "plain" or (engine is None and isinstance(like, Plain)):
        return Plain(batch, embedded=embedded)
    like = like if isinstance(like, Fast) else None
    if engine == "fast":
        return Fast(batch, embedded=embedded, like=like)
    try:
        return Fast(batch, embedded=embedded, like=like)
    except NotResumable as reason:
        text = f"{reason} Each patch is a full run of the model: slower, the same numbers."
        warnings.warn(text, stacklevel=2)
        return Plain(batch, embedded=embedded)


def _check_same_model(run: Run, model: "TransformerBridge") -> None:
    if run.model is not model:
        raise ValueError(
            f"This run was made with another model ({run.model.cfg.model_name}, and now it is "
            f"{model.cfg.model_name}). A run belongs to one model: make one for each."
        )
    run.check_fresh()


def runs_of(model: "TransformerBridge", base: "Prompts | Run", source: "Prompts | Run") -> tuple[Run, Run]:
    """The two runs of a patch, of prompts that correspond position by position; others are refused."""
    base = run_of(model, base)
    theirs = source.batch if isinstance(source, Run) else batch_of(model, source, what="source")
    batches_of(model, base.batch, theirs, "patching")
    source = run_of(model, source if isinstance(source, Run) else theirs, like=base)
    changed = any(run.edits or run.elsewhere for run in (base, source))
    if torch.equal(base.tokens, theirs.tokens) and not changed:
        raise ValueError("base and source are the same tokens, so a patch changes nothing.")
    return base, source


def resume(model: "TransformerBridge", base: Prompts, **given: Any) -> Any:
    """`ml.Resume`, as `run_of` was called, with what notebooks asked of it."""
    moved.say("ml.Resume is now ml.run_of; its .pattern(layer) is .at('pattern', layer).", 3)
    run: Any = run_of(model, base, **given)
    run.base, run.ends = run.tokens, run.value
    run.pattern = lambda layer: run.at("pattern", layer).transpose(1, 2)
    return run
