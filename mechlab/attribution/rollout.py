"""Attention rollout: follow the attention from layer to layer back to the tokens."""

from typing import TYPE_CHECKING

import torch

from mechlab.attribution.masking import ONE_BY_ONE, Source
from mechlab.metrics import Metric
from mechlab.moved import was
from mechlab.results import Scores, position_labels
from mechlab.runs.caching import only
from mechlab.tokens import Prompts, batch_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@was(position="pos")
@torch.no_grad()
def attention_rollout(
    model: "TransformerBridge",
    base: Prompts,
    source: Source | None = None,
    metric: Metric | None = None,
    *,
    pos: int = -1,
) -> Scores:
    """The share of each token in `pos`, if attention were all that moves information.

    Abnar and Zuidema 2020. In each layer a position is half itself and half what the mean head attends to;
    the layers are multiplied. Shares are between 0 and 1 and add up to 1. `source` and `metric` are not used,
    and are here so that every method is called alike: rollout does not know which answer is asked about. It
    leaves out values, MLPs and norms, and in a causal model most of it ends up on the first token. Prompts
    are of one length: the shares belong to positions.
    """
    batch = batch_of(model, base)
    tokens, at = batch.one_length(ONE_BY_ONE), batch.position(pos)
    _, cache = model.run_with_cache(tokens, names_filter=only("hook_pattern"))
    itself = torch.eye(tokens.shape[1], device=tokens.device)
    rolled = itself.expand(len(tokens), -1, -1)
    for layer in range(model.cfg.n_layers):
        rolled = (0.5 * cache["pattern", layer].float().mean(1) + 0.5 * itself) @ rolled
    return Scores.over_prompts(
        rolled[torch.arange(len(tokens), device=at.device), at],
        ("pos",),
        "attention rollout (share)",
        labels={"pos": position_labels(model, tokens)},
        signed=False,
        whole=torch.ones(len(tokens)),
    )
