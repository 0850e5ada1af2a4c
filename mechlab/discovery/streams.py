"""The residual stream on entering each layer and after the last: what lenses and probes read."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.runs.caching import only

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def residual_entries(
    model: "TransformerBridge", texts: Int[Tensor, "text pos"], batch: int
) -> Iterator[Float[Tensor, "entry batch pos d_model"]]:
    """The stream on entering each layer and after the last, some texts at a time; nothing is unembedded."""
    layers = model.cfg.n_layers
    last = f"blocks.{layers - 1}.hook_resid_post"
    for rows in texts.split(batch):
        _, cache = model.run_with_cache(rows, names_filter=only("hook_resid_pre", last), stop_at_layer=layers)
        yield torch.stack([*(cache["resid_pre", layer] for layer in range(layers)), cache[last]])
