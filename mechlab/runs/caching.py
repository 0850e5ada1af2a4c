"""What can be observed, what it is called, and what it costs to keep.

`model.run_with_cache` is TransformerLens' own and needs no wrapper. This file answers the questions around
it.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch

from mechlab.loading.limits import is_ignored
from mechlab.loading.memory import free_ram

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

# The hooks of one block in the order in which they happen: suffix -> (shape in words, meaning).
BLOCK_HOOKS = {
    "hook_resid_pre": ("batch pos d_model", "residual stream on entering the block"),
    "ln1.hook_scale": ("batch pos 1", "what the first norm divides by"),
    "ln1.hook_normalized": ("batch pos d_model", "the residual stream after the first norm"),
    "attn.hook_q": ("batch pos head d_head", "queries, before rotation"),
    "attn.hook_k": ("batch pos kv_head d_head", "keys, before rotation"),
    "attn.hook_v": ("batch pos kv_head d_head", "values"),
    "attn.hook_rot_q": ("batch pos head d_head", "queries after the rotary rotation"),
    "attn.hook_rot_k": ("batch pos kv_head d_head", "keys after the rotary rotation"),
    "attn.hook_attn_scores": ("batch head query_pos key_pos", "scores before the softmax; -inf where masked"),
    "attn.hook_pattern": ("batch head query_pos key_pos", "attention pattern: each row sums to 1"),
    "attn.hook_z": ("batch pos head d_head", "what each head gathered, before W_O"),
    "hook_attn_out": ("batch pos d_model", "what the attention layer writes"),
    "hook_resid_mid": ("batch pos d_model", "residual stream between attention and MLP"),
    "ln2.hook_scale": ("batch pos 1", "what the second norm divides by"),
    "ln2.hook_normalized": ("batch pos d_model", "the residual stream after the second norm"),
    "mlp.hook_pre": ("batch pos d_mlp", "MLP neurons (the gate), before the nonlinearity"),
    "mlp.hook_pre_linear": (
        "batch pos d_mlp",
        "other half of a gated MLP, without nonlinearity",
    ),
    "mlp.hook_post": ("batch pos d_mlp", "MLP neurons: what the output matrix reads"),
    "hook_mlp_out": ("batch pos d_model", "what the MLP writes"),
    "hook_resid_post": ("batch pos d_model", "residual stream on leaving the block"),
}
READ_ONLY = " (read only: this model does not use what a hook makes of it)"
OUTER_HOOKS = {
    "hook_embed": ("batch pos d_model", "token embeddings: the first residual stream"),
    "hook_pos_embed": ("batch pos d_model", "position embeddings, in models that add them"),
    "ln_final.hook_scale": ("batch pos 1", "what the last norm divides by"),
    "ln_final.hook_normalized": ("batch pos d_model", "the last residual stream after the norm"),
}


@torch.no_grad()
def hook_map(model: "TransformerBridge", layer: int = 0) -> "pd.DataFrame":
    """The hooks of one layer and around the blocks, with shapes measured on the live model.

    One row a hook: name, shape in words, shape for a prompt of 5 tokens, meaning. Hooks that this model does
    not have or does not fire (rotary ones in GPT-2, the gate in a plain MLP) are left out; those whose result
    it does not use are marked.
    """
    import pandas as pd

    if not 0 <= layer < model.cfg.n_layers:
        raise ValueError(f"There is no layer {layer}: this model has layers 0 to {model.cfg.n_layers - 1}.")
    wanted = {f"blocks.{layer}.{suffix}": row for suffix, row in BLOCK_HOOKS.items()} | OUTER_HOOKS
    tokens = torch.arange(1, 6, device=model.cfg.device)[None]
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name in wanted)
    order = [
        "hook_embed",
        "hook_pos_embed",
        *[n for n in wanted if n.startswith("blocks")],
        *list(OUTER_HOOKS)[2:],
    ]
    told = lambda name: wanted[name][1] + READ_ONLY * is_ignored(model, name)
    rows = [(name, wanted[name][0], tuple(cache[name].shape), told(name)) for name in order if name in cache]
    return pd.DataFrame(rows, columns=["hook", "axes", "shape for 5 tokens", "what it is"])


def cache_bytes(cache) -> tuple[int, int]:
    """(distinct, listed) bytes of a cache.

    A cache lists one tensor under several names, so the sum over names is larger than the memory it takes.
    `distinct` counts each piece of memory once.
    """
    tensors = list(cache.values()) if hasattr(cache, "values") else list(cache)
    listed = sum(t.numel() * t.element_size() for t in tensors)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values()), listed


def only(*endings: str, layers: Iterable[int] | None = None) -> Callable[[str], bool]:
    """A `names_filter` for `run_with_cache`: keep hooks with these endings, in these layers.

    model.run_with_cache(tokens, names_filter=only("hook_z", "hook_resid_post", layers=range(20, 24)))
    """
    prefixes = None if layers is None else tuple(f"blocks.{layer}." for layer in layers)

    def keep(name: str) -> bool:
        return name.endswith(endings) and (prefixes is None or name.startswith(prefixes))

    return keep


def free_bytes(device: str | torch.device = "cpu") -> int:
    """Memory that can still be used, in bytes; on a machine that does not say, two gigabytes."""
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = free_ram()
    return 2_000_000_000 if free is None else free
