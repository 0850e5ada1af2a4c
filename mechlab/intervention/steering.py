"""Steering: can a behaviour be turned like a knob?

Add a vector to the residual stream while the model reads and writes.

Turner et al. 2023 (activation addition), Rimsky et al. 2023 (contrastive activation addition), Zou et al.
2023 (representation engineering). A vector is the difference of two means of the stream, over texts with and
without the behaviour. Strength is counted in lengths of the stream: 0.2 adds a vector a fifth as long as the
stream of one token usually is there, whatever the vector was made from, so vectors of the same texts are
equally long at the same strength.

Easy to get wrong: an effect without its cost in perplexity, without a random vector of the same length,
without the prompts on which it goes the wrong way, and without simply asking for the behaviour in the prompt.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.arguments import check_layer, layers_of, whole
from mechlab.discovery.probing import residual_streams
from mechlab.discovery.streams import residual_entries
from mechlab.metrics import Metric
from mechlab.moved import was
from mechlab.results import Scores
from mechlab.runs.engines import run_of
from mechlab.runs.hooks import Hook
from mechlab.runs.norms import wide
from mechlab.runs.run import Put
from mechlab.tokens import Prompts, batch_of, first_tokens

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

    from mechlab.pictures.plots import Picture


@dataclass(frozen=True)
class SteeringVectors:
    """One direction for each layer, to be added to the stream on entering it.

    directions: [layer, d_model], of length 1
    gaps:       [layer], how far apart the two means were: 1 unit of the natural difference
    lengths:    [layer], the mean length of the stream of one token there: 1 unit of strength
    skip:       how many tokens at the beginning are left alone: those that the tokenizer puts there itself
    """

    directions: Float[Tensor, "layer d_model"]
    gaps: Float[Tensor, "layer"]
    lengths: Float[Tensor, "layer"]
    skip: int = 1

    def __post_init__(self):
        if not torch.isfinite(self.directions).all():
            raise ValueError("A direction is zero or NaN: are the two sets of texts the same?")

    def hooks(self, layer: int, strength: float | int) -> list[Hook]:
        """Hooks that add strength × the stream's length along the direction, at all positions but `skip`.

        With a cache of keys and values a single new token is a later position, so generated text is steered
        too.
        """
        vector = self.step(layer, strength)

        def add(x: Tensor, hook) -> Tensor:
            moved = x + vector.to(x)
            return moved if x.shape[1] == 1 else torch.cat([x[:, : self.skip], moved[:, self.skip :]], dim=1)

        return [(f"blocks.{layer}.hook_resid_pre", add)]

    def step(self, layer: int, strength: float | int) -> Float[Tensor, "d_model"]:
        """The vector that is added."""
        if not whole(layer) or not 0 <= layer < len(self.directions):
            raise ValueError(
                f"There is no layer {layer}: these vectors are for layers 0 to {len(self.directions) - 1}."
            )
        vector = float(strength) * self.lengths[layer] * self.directions[layer]
        if not torch.isfinite(vector).all() or vector.norm() > 1e6 * self.lengths[layer]:
            raise ValueError(
                f"A strength of {strength} overflows: 1 is already as long as the stream itself."
            )
        return vector

    def random(self, *, seed: int = 0) -> "SteeringVectors":
        """Random directions of the same length: what any push of this size does."""
        drawn = torch.randn(self.directions.shape, generator=torch.Generator().manual_seed(seed))
        return replace(self, directions=drawn / drawn.norm(dim=-1, keepdim=True))

    def along(self, direction: Float[Tensor, "d_model"]) -> "SteeringVectors":
        """The same lengths with a direction of your own at every layer, such as a sparse autoencoder's."""
        if direction.shape != self.directions.shape[1:]:
            raise ValueError(
                f"The direction is {tuple(direction.shape)}; the stream has {self.directions.shape[1]} "
                "numbers."
            )
        unit = (direction / direction.norm()).to(self.directions).expand_as(self.directions)
        return replace(self, directions=unit)


@was(position="pos")
def contrast_vectors(
    model: "TransformerBridge", positive: Sequence[str], negative: Sequence[str], *, pos: int | str = -1
) -> SteeringVectors:
    """Mean stream over `positive` texts minus mean over `negative`, on entering each layer.

    pos: -1 is the last token; "mean" all tokens but the first. The unit of strength does not depend on it:
         a mean over tokens is shorter than the tokens are, so its length would be another unit.
    """
    streams = [residual_streams(model, texts, pos=pos)[:-1] for texts in (positive, negative)]
    difference = streams[0].mean(1) - streams[1].mean(1)
    gaps = difference.norm(dim=-1)
    if (gaps[1:] == 0).any():
        raise ValueError("The two sets of texts have the same mean, so there is no direction between them.")
    unit = difference / gaps.clamp(min=1e-12)[:, None]
    return SteeringVectors(unit, gaps, _lengths(model, [*positive, *negative]), first_tokens(model))


def _lengths(model: "TransformerBridge", texts: Sequence[str]) -> Float[Tensor, "layer"]:
    """The mean length of the stream of one token on entering each layer.

    The mean is over all tokens of all texts but the first of each, which is often an attention sink, far
    longer than the others.
    """
    given, found = batch_of(model, texts, what="texts"), []
    for length in sorted(set(given.lengths)):
        rows, begin = given.tokens[given.ends == length - 1, :length], min(1, length - 1)
        for streams in residual_entries(model, rows, 32):
            found.append(wide(streams[:-1, :, begin:]).norm(dim=-1).float().cpu().flatten(1))
    return torch.cat(found, dim=1).mean(1)


@dataclass(frozen=True)
class SteeringResult:
    """What steering did, and what it cost.

    effect: the metric steered − unsteered, dims (layer, strength), per prompt
    cost:   perplexity of ordinary text, steered / unsteered, dims (layer, strength), per text; 1 = unharmed
    """

    effect: Scores
    cost: Scores

    def table(self) -> "pd.DataFrame":
        """One row for each layer and strength: effect, its interval, share of prompts that moved up, cost."""
        import pandas as pd

        low, high = self.effect.interval()
        each = torch.as_tensor(self.effect.per_prompt)
        rows = [
            {
                "layer": layer,
                "strength": strength,
                "effect": self.effect.values[i, j].item(),
                "95 % low": low[i, j].item(),
                "95 % high": high[i, j].item(),
                "moved up": (each[:, i, j] > 0).float().mean().item(),
                "perplexity ×": self.cost.values[i, j].item(),
            }
            for i, layer in enumerate(self.effect.labels["layer"])
            for j, strength in enumerate(self.effect.labels["strength"])
        ]
        return pd.DataFrame(rows).round(3)

    def plot(self, **layout) -> "Picture":
        """Effect against cost, one line a layer: how much behaviour for how much broken text."""
        from mechlab.pictures import plots

        return plots.effect_and_cost(self.effect, self.cost, **layout)


@was(
    "model", "vectors", "base", "metric", when=lambda args: isinstance(args[1:] and args[1], SteeringVectors)
)
@torch.no_grad()
def steering_sweep(
    model: "TransformerBridge",
    base: Prompts,
    metric: Metric,
    *,
    vectors: SteeringVectors,
    layers: Sequence[int],
    strengths: Sequence[float | int],
    text: Prompts,
) -> SteeringResult:
    """The effect of every layer and strength on `metric`, and what each costs on ordinary `text`.

    base: prompts that were not used to make the vectors. Other vectors of the same size (`vectors.random()`)
          are the
    control. Only the layers after the vector are computed.
    """
    if not isinstance(vectors, SteeringVectors):
        raise ValueError(f"vectors is a {type(vectors).__name__}: make them with `ml.contrast_vectors(...)`.")
    strengths = _numbers(strengths)
    layers = layers_of(model, layers)
    moves = {layer: torch.stack([vectors.step(layer, s) for s in strengths]) for layer in layers}
    effect = _measured(model, base, metric, moves, vectors.skip)
    text = batch_of(model, text, what="text")
    rows = text.one_length("the loss of a text is a mean over its positions")
    if rows.shape[1] < vectors.skip + 2:
        raise ValueError(f"The texts have {rows.shape[1]} tokens; a loss needs at least {vectors.skip + 2}.")
    loss = _measured(model, text, _loss_of(rows, vectors.skip), moves, vectors.skip)
    labels = {"layer": [str(layer) for layer in layers], "strength": [f"{s:g}" for s in strengths]}
    dims = ("layer", "strength")
    return SteeringResult(
        Scores.over_prompts(effect, dims, "change of the metric", labels=labels),
        Scores(
            loss.mean(0).exp(),
            dims,
            "perplexity, steered / unsteered",
            labels,
            per_prompt=loss.exp(),
            signed=False,
        ),
    )


@torch.no_grad()
def push_effects(
    model: "TransformerBridge",
    base: Prompts,
    metric: Metric,
    pushes: Float[Tensor, "push d_model"],
    *,
    layer: int,
) -> Float[Tensor, "push"]:
    """The change of the metric, mean over prompts, for each of several vectors added on entering a layer.

    For many vectors of one length, such as `ml.null_directions(..., length=)`: one run of the prompts serves
    all of them. The tokens that the tokenizer puts at the beginning are left alone.
    """
    moves = {check_layer(model, layer): pushes}
    return _measured(model, base, metric, moves, first_tokens(model))[:, 0].mean(0)


@dataclass(frozen=True)
class Monitor:
    """Reading instead of writing: raise a flag when the stream lies far along a direction.

    direction: of length 1; layer: where it is read, on entering, at the last token; threshold: a flag at or
               above it
    """

    direction: Float[Tensor, "d_model"]
    layer: int
    threshold: float

    @classmethod
    def fit(
        cls,
        model: "TransformerBridge",
        vectors: SteeringVectors,
        layer: int,
        positive: Sequence[str],
        negative: Sequence[str],
        *,
        false_alarms: float = 0.05,
    ) -> "Monitor":
        """Choose the threshold on validation texts: the lowest with at most this share of false alarms."""
        monitor = cls(vectors.directions[layer], layer, 0.0)
        quiet = monitor.projections(model, negative).sort().values
        allowed = int(false_alarms * len(quiet))
        threshold = torch.nextafter(quiet[len(quiet) - 1 - allowed], torch.tensor(torch.inf)).item()
        caught = (monitor.projections(model, positive) >= threshold).float().mean()
        if caught <= false_alarms:
            raise ValueError(
                f"At layer {layer} this direction does not tell the validation texts apart: with "
                f"{false_alarms:.0%} false "
                f"alarms it would catch {caught:.0%}."
            )
        return replace(monitor, threshold=threshold)

    def projections(self, model: "TransformerBridge", texts: Sequence[str]) -> Float[Tensor, "text"]:
        """How far along the direction each text's last token lies."""
        return residual_streams(model, texts)[self.layer] @ self.direction

    def flags(self, model: "TransformerBridge", texts: Sequence[str]) -> Bool[Tensor, "text"]:
        return self.projections(model, texts) >= self.threshold


def _loss_of(text: Int[Tensor, "text pos"], skip: int) -> Callable[[Tensor], Tensor]:
    """Mean loss of each text; what is predicted at the first `skip` positions is left out."""

    def loss(logits: Float[Tensor, "text pos d_vocab"]) -> Float[Tensor, "text"]:
        rows = logits[:, skip:-1].log_softmax(-1).gather(-1, text[:, skip + 1 :, None])
        return -rows[..., 0].mean(1)

    return loss


def _numbers(strengths: Iterable[float | int]) -> list[float]:
    """Strengths as a list of numbers, which is not empty."""
    try:
        found = [float(strength) for strength in strengths]
    except (TypeError, ValueError):
        found = []
    if not found:
        raise ValueError(f"strengths is {strengths!r:.80}: give at least one number in a list.")
    return found


def _measured(
    model: "TransformerBridge",
    prompts: Prompts,
    metric: Metric,
    moves: dict[int, Float[Tensor, "strength d_model"]],
    skip: int,
) -> Float[Tensor, "prompt layer strength"]:
    """The change of the metric for each vector added on entering each layer, after the first `skip`."""
    run, found = run_of(model, prompts), []
    where = torch.arange(run.tokens.shape[1], device=run.tokens.device)[None, None] >= skip
    for layer, steps in moves.items():
        stream = run.at("resid_pre", layer)[None]
        moved = stream + steps.to(stream)[:, None, None]
        found.append((run.edited(metric, [Put("resid_pre", layer, moved, where)]) - run.value(metric)).T)
    return torch.stack(found, dim=1).cpu()
