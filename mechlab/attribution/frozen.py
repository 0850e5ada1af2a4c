"""One prompt with attention patterns and norms held: then everything is a sum, of embeddings and neurons.

What is held is linear, and a neuron is written as a slope times what it reads: that of the line through zero.
A gated neuron, act(g) · u, has two factors; how much of it is given to each is a rule. The sum is exact under
each of them, so that it is exact tells nothing about which of them is right.

Holding patterns and norms, and graphs of one prompt: Ameisen et al. 2025, for features of transcoders; here
neurons. The half rule: Arras et al. 2019, on language models Rezaei Jafari et al. 2025 (RelP).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.arguments import one_of
from mechlab.attribution.following import Following, secant
from mechlab.metrics import Metric
from mechlab.results import Scores
from mechlab.runs.engines import run_of
from mechlab.runs.matrices import Affine
from mechlab.runs.norms import Norm, wide
from mechlab.runs.run import Run
from mechlab.tokens import Prompts

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

RULES = {"half": (0.5, 0.5), "gate": (1.0, 0.0), "in": (0.0, 1.0)}  # shares of the gate, and of its input


class FrozenRun(Following):
    """What a metric is made of on one prompt, or each of several, with patterns and norms held.

    base:   prompts, or a run (`run_of`)
    rule:   how much of a gated neuron goes back through its gate, and through what the gate lets through:
            "half" and half, all through the "gate", or all "in". MLPs without gates need no rule
    change: [batch], the metric itself

    A `ValueError` where the metric is 0; `NotResumable` where the fast engine does not know the model.
    """

    rest = "biases"
    nothing = "The metric is 0 on base: there is nothing to follow."

    def __init__(
        self, model: "TransformerBridge", base: Prompts | Run, metric: Metric, *, rule: str = "half"
    ):
        one_of("rule", rule, RULES)
        self.rule = rule
        super().__init__(model, [run_of(model, base)], metric)

    def flow(self) -> Scores:
        """What the metric comes from: dims ("part",). Exact: `whole` is the metric.

        Embeddings: followed through all slopes; biases: of matrices and norms; metric: what a metric that is
        not linear in the logits adds.
        """
        return self._parts("embeddings", "biases", "metric")

    def _changed(self, values: Sequence[Tensor]) -> Tensor:
        return values[0]

    def _secant(self, f: Callable[[Tensor], Tensor], values: Sequence[Tensor]) -> Tensor:
        return secant(f, values[0], torch.zeros_like(values[0]))

    def _gated(
        self, act: Callable[[Tensor], Tensor], gate: Sequence[Tensor], up: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        opens, carries = RULES[self.rule]
        return opens * up[0] * self._secant(act, gate), carries * act(gate[0])

    def _elsewhere(self, patterns: Sequence[Tensor], layer: int) -> Float[Tensor, "1 1 1 1"]:
        return patterns[0].new_zeros(1, 1, 1, 1)

    def _across(self, matrix: Affine, slope: Float[Tensor, "row pos out"]) -> tuple[Tensor, Tensor]:
        W, b = matrix
        constant = slope.new_zeros(slope.shape[:2]) if b is None else slope @ wide(b)
        return slope @ wide(W).T, constant

    def _through(
        self, norm: Norm | None, streams: Sequence[Tensor], slope: Float[Tensor, "row pos d_model"]
    ) -> tuple[Float[Tensor, "row pos d_model"], Float[Tensor, "row pos"]]:
        constant = slope.new_zeros(slope.shape[:2])
        if norm is None:
            return slope, constant
        return norm.held_slope(streams[0], slope), constant if norm.bias is None else slope @ wide(norm.bias)
