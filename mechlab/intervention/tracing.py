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
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.arguments import layers_of, one_of
from mechlab.metrics import Metric
from mechlab.moved import was
from mechlab.results import Scores, token_labels
from mechlab.runs.engines import run_of
from mechlab.runs.places import subject_positions
from mechlab.runs.run import Put, Run

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["causal_tracing", "subject_positions"]
SITES = ("resid_pre", "attn_out", "mlp_out")


@was("model", "base", "subject", "metric", when=lambda args: len(args) > 2 and not callable(args[2]))
@torch.no_grad()
def causal_tracing(
    model: "TransformerBridge",
    base: Int[Tensor, "1 pos"],
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
    _check(base, subject, site, window, positions)
    layers, positions = (
        layers_of(model, layers),
        [*(range(base.shape[1]) if positions is None else positions)],
    )
    clean = run_of(model, base)
    added = _noise(model, base, subject, noise, samples, seed)
    noisy = clean.at("resid_pre", 0) + added.to(base.device)
    corrupted = run_of(model, base.expand(samples, -1), embedded=noisy, like=clean)
    begin, effects = corrupted.value(metric), torch.zeros(samples, len(layers), len(positions))
    for row, layer in enumerate(layers):
        together = range(max(0, layer - (window - 1) // 2), min(model.cfg.n_layers, layer + window // 2 + 1))
        for column, position in enumerate(positions):
            if position >= min(subject):  # earlier ones are never corrupted
                restored = corrupted.edited(metric, _restored(clean, site, together, position))[0]
                effects[:, row, column] = (restored - begin).cpu()
    names = token_labels(model, base[0])
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
    model: "TransformerBridge", base: Tensor, subject: Sequence[int], noise: float, samples: int, seed: int
) -> Float[Tensor, "sample pos d_model"]:
    drawn = torch.randn(
        samples, len(subject), model.cfg.d_model, generator=torch.Generator().manual_seed(seed)
    )
    added = torch.zeros(samples, base.shape[1], model.cfg.d_model)
    added[:, list(subject)] = noise * model.W_E.detach().float().std().cpu() * drawn
    return added


def _check(
    base: Tensor, subject: Sequence[int], site: str, window: int, positions: Sequence[int] | None
) -> None:
    one_of("site", site, SITES)
    if window < 1 or (window > 1 and site == "resid_pre"):
        raise ValueError(f"window is {window}: 1 for the stream, 1 or more for what is written to it.")
    count, asked = base.shape[1], [*subject, *(positions or [])]
    if len(base) != 1 or not len(subject) or not all(0 <= p < count for p in asked):
        raise ValueError(
            f"One prompt at a time, and positions between 0 and {count - 1}: got {len(base)} prompts and "
            f"{asked}."
        )
