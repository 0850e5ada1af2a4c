"""Two prompts, and every change between them written out: which neuron, head or norm carries it.

Between two runs everything that a model computes changes by a secant times what its inputs change by. That
is exact, nothing is cut off after first order: for products Δ(x·y) = ȳ·Δx + x̄·Δy with means over the two
runs, for an activation the slope of the line through both values. So the change of the metric is followed
back, layer by layer, to the embeddings. Two kinds of change are followed no further, and keep their names: a
head looked elsewhere (its pattern changed), and a norm divided by another length.

That the parts add up exactly proves nothing: they do so on random weights too. Whether they are the right
ones is found out by exchanging them, kept alone and taken away, beside as many others: `kept_and_away`.

Secants for differences from a reference: Shrikumar et al. 2017 (DeepLIFT). Backward rules that hold norms and
patterns, on language models: Rezaei Jafari et al. 2025 (RelP). What is held as an error node of a graph:
Ameisen et al. 2025, who trace features of transcoders on one prompt; here it is neurons, on two.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from mechlab.attribution.following import UNITS, Following, secant
from mechlab.metrics import Metric
from mechlab.results import Scores
from mechlab.runs.engines import runs_of
from mechlab.runs.matrices import Affine
from mechlab.runs.norms import Norm, wide
from mechlab.runs.run import Put, Run
from mechlab.tokens import Prompts

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Contrast(Following):
    """What makes the metric change from `source` to `base`, for one pair of prompts or several.

    base, source: prompts that correspond position by position, or runs (`run_of`)
    change:       [batch], metric on base minus metric on source

    A `ValueError` where the metric is the same on both; `NotResumable` where the fast engine does not know
    the model, since the changes are followed through its matrices.
    """

    rest = "norms"
    nothing = "The metric is the same on base and source: there is no change to follow."

    def __init__(
        self, model: "TransformerBridge", base: Prompts | Run, source: Prompts | Run, metric: Metric
    ):
        super().__init__(model, runs_of(model, base, source), metric)
        self.source = self.runs[1]

    def flow(self) -> Scores:
        """Where the change comes from: dims ("part",). Exact: `whole` is the change of the metric.

        Embeddings: followed through all secants; patterns: heads that looked elsewhere; norms: lengths that
        changed; metric: what a metric that is not linear in the logits does beside its mean slope.
        """
        return self._parts("embeddings", "patterns", "norms", "metric")

    def patterns(self) -> Scores:
        """What is due to each head's looking elsewhere: dims ("layer", "pos", "head")."""
        return self._scores(torch.stack(self._errors["pattern"], 1), UNITS["head"], "change of its pattern")

    def _changed(self, values: Sequence[Tensor]) -> Tensor:
        return values[0] - values[1]

    def _secant(self, f: Callable[[Tensor], Tensor], values: Sequence[Tensor]) -> Tensor:
        return secant(f, values[0], values[1])

    def _gated(
        self, act: Callable[[Tensor], Tensor], gate: Sequence[Tensor], up: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        return self._mean(up) * self._secant(act, gate), self._mean([act(x) for x in gate])

    def _elsewhere(self, patterns: Sequence[Tensor], layer: int) -> Float[Tensor, "batch pos head d_head"]:
        weights = self.base.weights
        values = self._mean(self._at("v", layer))
        values = values.repeat_interleave(weights.heads // weights.kv_heads, dim=2)
        return einsum(
            self._changed(patterns), values, "b pos head key, b key head d_head -> b pos head d_head"
        )

    def _across(self, matrix: Affine, slope: Float[Tensor, "row pos out"]) -> tuple[Tensor, Tensor]:
        return slope @ wide(matrix[0]).T, slope.new_zeros(slope.shape[:2])  # biases are the same in both

    def _through(
        self, norm: Norm | None, streams: Sequence[Tensor], slope: Float[Tensor, "row pos d_model"]
    ) -> tuple[Float[Tensor, "row pos d_model"], Float[Tensor, "row pos"]]:
        if norm is None:
            return slope, slope.new_zeros(slope.shape[:2])
        return norm.secant(streams[0], streams[1], slope)


@torch.no_grad()
def kept_and_away(contrast: Contrast, ranking: Scores, sizes: Sequence[int]) -> Scores:
    """How much of the change is left when few neurons are kept, or taken away: dims ("what", "size").

    ranking: of neurons at positions, such as `contrast.totals()` or any other with dims ("layer", "pos",
             "neuron"): the largest of each prompt by size
    sizes:   how many are kept, and how many taken away

    Exchanged live on base: attention, norms and all other neurons compute on. kept: all other neurons have
    their values on source. away: these neurons have them. 1 = all of the change is left, 0 = none. Compare
    with a ranking by chance, and with one by the size of the change: only beside them a curve says something.
    """
    if ranking.dims != UNITS["neuron"]:
        raise ValueError(
            f"A ranking of neurons has the dims {UNITS['neuron']}, and this one has {ranking.dims}."
        )
    base, source = contrast.base, contrast.source
    scores = ranking.values[None] if ranking.per_prompt is None else ranking.per_prompt
    every = scores[0].numel()
    for size in sizes:
        if not 0 <= size <= every:
            raise ValueError(f"There are {every} neurons at positions, and a size of {size} is asked for.")
    order = scores.flatten(1).abs().argsort(dim=1, descending=True, stable=True)
    place = order.argsort(dim=1).view(scores.shape).to(base.tokens.device)  # the rank of each
    limits = torch.tensor([*sizes], device=place.device)[:, None, None, None]
    edits = []
    for layer in range(scores.shape[1]):
        among = place[:, layer] < limits  # [size, batch, pos, neuron]
        edits.append(Put("post", layer, source.at("post", layer)[None], torch.cat([~among, among])))
    ends = source.value(contrast.metric)
    left = (base.edited(contrast.metric, edits) - ends) / contrast.change
    labels = {"what": ["kept", "away"], "size": [str(size) for size in sizes]}
    left = left.unflatten(0, (2, -1)).movedim(2, 0).cpu()
    return Scores.over_prompts(
        left, ("what", "size"), "share of the change left", labels=labels, units=base.batch.units
    )
