"""Causal tracing: where does a fact pass through?

Corrupt the subject with noise, restore one state, see what comes back.

Meng et al. 2022 (ROME), section 2. Three runs: clean; corrupted, with noise on the embeddings of the
subject's tokens; and corrupted with a single state, or a window of layers, set back to its clean value. The
indirect effect is the metric of the third minus that of the second, averaged over several draws of the noise.

Easy to get wrong: one draw of noise is not enough; windows inflate (each restores as many states as it has
layers); noise is nothing that the model ever met; and where the effect is largest need not be where an edit
works best.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.arguments import at_least, layers_of, one_of
from mechlab.metrics import Metric
from mechlab.moved import was
from mechlab.results import Scores, token_labels
from mechlab.runs.engines import run_of
from mechlab.runs.places import subject_positions
from mechlab.runs.run import Put, Run
from mechlab.tokens import Batch, Prompts, whole_numbers

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["causal_tracing", "subject_positions"]
SITES = ("resid_pre", "attn_out", "mlp_out")


@was("model", "base", "subject", "metric", when=lambda args: len(args) > 2 and not callable(args[2]))
@torch.no_grad()
def causal_tracing(
    model: "TransformerBridge",
    base: Prompts,
    metric: Metric,
    *,
    subject: Sequence[int],
    site: str = "resid_pre",
    window: int = 1,
    noise: float = 3.0,
    samples: int = 10,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    seed: int = 0,
) -> Scores:
    """What comes back when one state of the clean run is restored.

    The metric restored − corrupted, dims (layer, position). One prompt; `per_prompt` holds one value for each
    draw of the noise. Positions before the subject are 0: they are never corrupted. The usual metric is
    `ml.probability(answer)`.

    subject: positions of the subject's tokens (`subject_positions`)
    layers, positions: which states to restore, one at a time (default: all; most of the time goes into them)
    window:  for "attn_out" and "mlp_out", how many layers around the named one are restored together
    noise:   standard deviation of the noise, in standard deviations of the model's token embeddings
    """
    clean = run_of(model, base)
    subject, positions = _checked(clean.batch, subject, site, window, samples, positions)
    layers, tokens = layers_of(model, layers), clean.tokens
    noisy = clean.at("resid_pre", 0) + _noise(clean, subject, noise, samples, seed)
    corrupted = run_of(model, tokens.expand(samples, -1), embedded=noisy, like=clean)
    begin, effects = corrupted.value(metric), torch.zeros(samples, len(layers), len(positions))
    for row, layer in enumerate(layers):
        together = range(max(0, layer - (window - 1) // 2), min(model.cfg.n_layers, layer + window // 2 + 1))
        for column, position in enumerate(positions):
            if position >= min(subject):  # earlier ones are never corrupted
                restored = corrupted.edited(metric, _restored(clean, site, together, position))[0]
                effects[:, row, column] = (restored - begin).cpu()
    names = token_labels(model, tokens[0])
    return Scores.over_prompts(
        effects,
        ("layer", "pos"),
        "metric restored − corrupted",
        labels={"layer": [str(layer) for layer in layers], "pos": [names[p] for p in positions]},
        baselines={"clean": clean.value(metric).mean().item(), "corrupted": begin.mean().item()},
    )


def _restored(clean: Run, site: str, layers: Sequence[int], position: int) -> list[Put]:
    """The clean run's states of some layers, at one position."""
    where = torch.arange(clean.tokens.shape[1], device=clean.tokens.device)[None, None] == position
    return [Put(site, layer, clean.at(site, layer)[None], where) for layer in layers]


def _noise(
    clean: Run, subject: Sequence[int], noise: float | int, samples: int, seed: int
) -> Float[Tensor, "sample pos d_model"]:
    stream = clean.at("resid_pre", 0)
    size = (samples, len(subject), stream.shape[-1])
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    added = torch.zeros(samples, *stream.shape[1:])
    added[:, list(subject)] = noise * _spread(clean) * drawn
    return added.to(stream)


def _spread(clean: Run) -> float:
    """The standard deviation of the token embeddings, as they stand in the stream.

    Some models multiply them (Gemma) or send them through a norm (Bloom) before the first layer.
    """
    model, tokens = clean.model, clean.tokens
    spread = model.W_E.detach().float().std().item()
    if "hook_pos_embed" in model.hook_dict:  # the stream has positions in it too
        return spread
    own = model.W_E.detach()[tokens].float()
    return spread * (clean.at("resid_pre", 0).float().std() / own.std()).item()


def _checked(
    batch: Batch,
    subject: Sequence[int],
    site: str,
    window: int,
    samples: int,
    positions: Sequence[int] | None,
) -> tuple[list[int], list[int]]:
    """The subject's positions and those that are restored, counted from the front."""
    one_of("site", site, SITES)
    at_least("samples", samples, 1)
    if at_least("window", window, 1) > 1 and site == "resid_pre":
        raise ValueError(f"window is {window}: 1 for the stream, 1 or more for what is written to it.")
    count = batch.tokens.shape[1]
    if positions is not None:
        positions = whole_numbers(positions, "positions").flatten().tolist()
    subject = whole_numbers(subject, "subject").flatten().tolist()
    asked = [*subject, *(positions or [])]
    if len(batch) != 1 or not subject or positions == [] or not all(-count <= p < count for p in asked):
        raise ValueError(
            f"One prompt at a time, and positions between 0 and {count - 1}: got {len(batch)} prompts and "
            f"{asked}."
        )
    restored = [p % count for p in (range(count) if positions is None else positions)]
    if len({*restored}) < len(restored):
        raise ValueError(f"positions is {[*(positions or [])]}: a position is there twice (-1 is the last).")
    return [p % count for p in subject], restored
