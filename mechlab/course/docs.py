"""The pages of docs/ that are made from the code, so that they cannot go stale."""

from mechlab.caching import BLOCK_HOOKS, OUTER_HOOKS


def hook_map_page() -> str:
    """docs/hook_map.md: every hook of a layer, with its axes and meaning."""
    rows = lambda hooks, prefix: "".join(
        f"| `{prefix}{n}` | `{axes}` | {what} |\n" for n, (axes, what) in hooks.items()
    )
    head = "| hook | axes | what it is |\n|---|---|---|\n"
    return (
        "# Hook map\n\n"
        "What can be observed in a run, and what it is called. Made by `mechlab build` from `mechlab/caching.py`; in a "
        "notebook, `ml.hook_map(model)` shows the same with shapes measured on the live model.\n\n"
        "## In each layer, in the order in which it happens (here layer 5)\n\n"
        + head
        + rows(BLOCK_HOOKS, "blocks.5.")
        + "\n## Around the layers\n\n"
        + head
        + rows(OUTER_HOOKS, "")
        + "\n## Off until asked for\n\n"
        "`hook_result` (each head's output after W_O) needs `model.set_use_attn_result(True)`; `hook_q_input`, "
        "`hook_k_input` and `hook_v_input` need `model.set_use_split_qkv_input(True)`; `hook_mlp_in` needs "
        "`model.set_use_hook_mlp_in(True)`. They cost memory, so turn them off again.\n\n"
        "In a model with grouped queries do not use `set_use_attn_in(True)`: its heads 0 to 2 stand for the three key "
        "heads, and the other query heads do not reach the keys at all.\n"
    )
