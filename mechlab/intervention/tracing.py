"""Causal tracing: where does a fact pass through?

Corrupt the subject with noise, restore one state, see what comes back.

Meng et al. 2022 (ROME), section 2. Three runs: clean; corrupted, with noise on the embeddings of the
subject's tokens; and corrupted with a single state, or a window of layers, set back to its clean value. The
indirect effect is the metric of the third minus that of the second, averaged over several draws of the noise.

Easy to get wrong: one fact is no law, and one draw of noise is not enough; windows inflate (each restores as
many states as it has layers); noise is nothing that the model ever met; and where the effect is largest need
not be where an edit works best.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.arguments import at_least, layers_of, one_of
from mechlab.metrics import Metric
from mechlab.moved import was
from mechlab.results import Scores, token_labels
from mechlab.runs.engines import run_of
from mechlab.runs.places import Positions, subject_positions
from mechlab.runs.run import Put, Run
from mechlab.tokens import Batch, Prompts, batch_of, whole_numbers

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["causal_tracing", "subject_positions"]
SITES = ("resid_pre", "attn_out", "mlp_out")


NOISE_OF = ("vocabulary", "subjects")
ROWS = 32  # copies run together: a few cost little more than one; many would wait for the earliest place


def _subject_third(args: Sequence[Any]) -> bool:
    """Whether somebody calls in the old order: a list of positions where the metric, or metrics, stand."""
    third = args[2] if len(args) > 2 else callable
    return not (callable(third) or (_is_list(third) and len(third) and all(map(callable, third))))


@was("model", "base", "subject", "metric", when=_subject_third)
@torch.no_grad()
def causal_tracing(
    model: "TransformerBridge",
    base: Prompts,
    metric: Metric | Sequence[Metric],
    *,
    subject: Sequence[int] | Sequence[Sequence[int]],
    site: str = "resid_pre",
    window: int = 1,
    noise: float = 3.0,
    noise_of: str = "vocabulary",
    samples: int = 10,
    layers: Sequence[int] | None = None,
    positions: Positions | None = None,
    seed: int = 0,
) -> Scores:
    """What comes back when one state of the clean run is restored.

    The indirect effect is the metric restored − corrupted, dims (layer, position). The usual metric is
    `ml.probability(answer)`. Positions before the subject are 0: they are never corrupted. `per_prompt` holds
    one value for each draw of the noise.

    Of several prompts, of any lengths, it is the mean (the paper's average indirect effect), and `per_prompt`
    holds one value for each prompt. `metric` and `subject` are then lists, and `positions` names places that
    differ: {"last token": [-1, -1]}. Default: the subject's first and last token, and the last of all.

    subject:  positions of the subject's tokens (`subject_positions`)
    layers, positions: which states to restore, one at a time (default: all; most of the time goes into them)
    window:   for "attn_out" and "mlp_out", how many layers around the named one are restored together
    noise:    standard deviation of the noise, in standard deviations of token embeddings
    noise_of: of which: the whole "vocabulary", or as in the paper the "subjects", all those given here

    Raises a `ValueError` for a site, layer or position that is not there, and for lists of other lengths.
    """
    batch, layers = batch_of(model, base), layers_of(model, layers)
    _check(site, window, noise_of, samples)
    facts = _facts(batch, metric, subject, positions)
    ids = torch.cat([batch.tokens[n, fact.subject] for n, fact in enumerate(facts)])
    rows = model.W_E.detach() if noise_of == "vocabulary" else model.W_E.detach()[ids]
    found, ends, first = {}, {}, None
    for n in sorted(range(len(facts)), key=lambda n: -batch.lengths[n]):  # the longest sets the engine up
        clean = run_of(model, batch.tokens[n : n + 1, : batch.lengths[n]], like=first)
        first = first or clean
        noisy = _noise(clean, facts[n].subject, noise * _spread(clean, rows), samples, seed + n)
        found[n], ends[n] = _traced(clean, facts[n], noisy, layers, site, window)
    several, mean = len(facts) > 1, torch.tensor([*ends.values()]).mean(0).tolist()
    return Scores.over_prompts(
        torch.stack([found[n].mean(0) for n in range(len(facts))]) if several else found[0],
        ("layer", "pos"),
        "indirect effect (units of the metric)",
        labels={"layer": [str(layer) for layer in layers], "pos": facts[0].names},
        baselines=dict(zip(("clean", "corrupted"), mean, strict=True)),
    )


@dataclass(frozen=True)
class _Fact:
    """What is asked of one prompt: where its subject stands, and at which places a state is restored."""

    metric: Metric
    subject: list[int]
    places: list[int]
    names: list[str]


def _traced(
    clean: Run,
    fact: _Fact,
    noisy: Float[Tensor, "sample pos d_model"],
    layers: Sequence[int],
    site: str,
    window: int,
) -> tuple[Float[Tensor, "sample layer place"], tuple[float, float]]:
    """The effects in one prompt, and its metric, clean and corrupted."""
    corrupted = run_of(clean.model, clean.tokens.expand(len(noisy), -1), embedded=noisy, like=clean)
    begin, depth = corrupted.value(fact.metric), clean.model.cfg.n_layers
    effects = torch.zeros(len(noisy), len(layers), len(fact.places))
    asked = [n for n, place in enumerate(fact.places) if place >= min(fact.subject)]  # earlier: clean
    for row, layer in enumerate(layers):
        together = range(max(0, layer - (window - 1) // 2), min(depth, layer + window // 2 + 1))
        for some in torch.tensor(asked).split(max(1, ROWS // len(noisy))) if asked else ():
            puts = _restored(clean, site, together, torch.tensor(fact.places)[some])
            effects[:, row, some] = (corrupted.edited(fact.metric, puts) - begin).cpu().T
    return effects, (clean.value(fact.metric).mean().item(), begin.mean().item())


def _restored(clean: Run, site: str, layers: Sequence[int], places: Int[Tensor, "copy"]) -> list[Put]:
    """The clean run's states of some layers, in each copy of a run at another place."""
    places = places.to(clean.tokens.device)[:, None, None]
    where = torch.arange(clean.tokens.shape[1], device=clean.tokens.device) == places
    return [Put(site, layer, clean.at(site, layer)[None], where) for layer in layers]


def _noise(
    clean: Run, subject: Sequence[int], level: float, samples: int, seed: int
) -> Float[Tensor, "sample pos d_model"]:
    """Copies of the embeddings, with normal noise of this standard deviation on the subject's tokens."""
    stream = clean.at("resid_pre", 0)
    size = (samples, len(subject), stream.shape[-1])
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    added = torch.zeros(samples, *stream.shape[1:])
    added[:, list(subject)] = level * drawn
    return stream + added.to(stream)


def _spread(clean: Run, rows: Float[Tensor, "token d_model"]) -> float:
    """The standard deviation of some rows of W_E, as they stand in the stream.

    Some models multiply them (Gemma) or send them through a norm (Bloom) before the first layer.
    """
    model, tokens = clean.model, clean.tokens
    spread = rows.float().std().item()
    if "hook_pos_embed" in model.hook_dict:  # the stream has positions in it too
        return spread
    own = model.W_E.detach()[tokens].float()
    return spread * (clean.at("resid_pre", 0).float().std() / own.std()).item()


def _check(site: str, window: int, noise_of: str, samples: int) -> None:
    one_of("site", site, SITES)
    one_of("noise_of", noise_of, NOISE_OF)
    at_least("samples", samples, 1)
    if at_least("window", window, 1) > 1 and site == "resid_pre":
        raise ValueError(f"window is {window}: 1 for the stream, 1 or more for what is written to it.")


def _facts(batch: Batch, metric: Any, subject: Any, positions: Any) -> list[_Fact]:
    """Each prompt with its own metric, its subject's positions and its places, counted from the front."""
    several = len(batch) > 1
    metrics = [*metric] if _is_list(metric) else [metric] * len(batch)
    subjects = [*subject] if several else [subject]
    if not len(metrics) == len(subjects) == len(batch) or (several and not all(map(_is_list, subjects))):
        raise ValueError(
            f"There are {len(batch)} prompts: give one subject for each, a list of positions, and one metric "
            f"for all or one for each. Got {len(metrics)} metrics, and subject is {subject!r:.60}."
        )
    own = [_listed(batch, n, each, "subject") for n, each in enumerate(subjects)]
    if several and positions is None:
        ends = {"first of the subject": [min(p) for p in own], "last of the subject": [max(p) for p in own]}
        positions = ends | {"last token": [-1] * len(batch)}
    if isinstance(positions, Mapping) and positions:
        named = [batch.position(at, f"The position of {name!r}") for name, at in positions.items()]
        places, names = torch.stack(named, 1).tolist(), [[*positions]] * len(batch)
    elif several:
        raise ValueError(f"positions is {positions!r:.60}: of several prompts, name places, one each.")
    else:
        places = [_listed(batch, 0, range(batch.lengths[0]) if positions is None else positions, "positions")]
        labels = token_labels(batch.model, batch.tokens[0, : batch.lengths[0]])
        names = [[labels[p] for p in places[0]]]
        if len({*places[0]}) < len(places[0]):
            raise ValueError(f"positions is {[*positions]}: a position is there twice (-1 is the last).")
    return [_Fact(*given) for given in zip(metrics, own, places, names, strict=True)]


def _is_list(given: Any) -> bool:
    return hasattr(given, "__len__") and not isinstance(given, str)


def _listed(batch: Batch, row: int, given: Any, what: str) -> list[int]:
    """Positions of one prompt, counted from the front."""
    count, listed = batch.lengths[row], whole_numbers(given, what).flatten().tolist()
    if not listed or not all(-count <= p < count for p in listed):
        raise ValueError(f"{what} is {listed}: give positions between 0 and {count - 1}, at least one.")
    return [p % count for p in listed]
