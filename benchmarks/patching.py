"""Exact patching: a sweep over every head, beside `transformer_lens.patching`, in one process; CPU seconds."""

import time

import torch

import mechlab as ml
from benchmarks.load import row
from mechlab.runs.engines import run_of

NAMES = [("John", "Mary"), ("Tom", "Laura"), ("Mark", "Anna"), ("Peter", "Sarah")]
NAMES += [("Paul", "Jane"), ("David", "Emma"), ("Mary", "John"), ("Laura", "Tom")]


def prompts(model):
    """16 IOI sentences, the same with the other name repeated, and the metric: the first one's answer."""
    asked = [(s, io, first) for s, io in NAMES for first in ((s, io), (io, s))]
    sentence = "When {} and {} went to the store, {} gave a drink to"
    clean = model.to_tokens([sentence.format(*first, s) for s, _, first in asked])
    corrupted = model.to_tokens([sentence.format(*first, io) for _, io, first in asked])
    answers, wrong = ([ml.single_token(model, f" {n[i]}") for n in asked] for i in (1, 0))
    return clean, corrupted, ml.logit_difference(answers, wrong)


def cpu(function):
    """CPU seconds of all threads, and the result."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def with_transformer_lens(model, clean, corrupted, metric, position: int | None):
    """The same sweep with TransformerLens' own function, one run of the model for each head."""
    import pandas as pd
    from transformer_lens import patching

    with torch.no_grad():
        _, cache = model.run_with_cache(clean, names_filter=lambda name: name.endswith("hook_z"))
        start = metric(model(corrupted)).mean().item()
        if position is None:
            given = {"model": model, "corrupted_tokens": corrupted, "clean_cache": cache}
            found = patching.get_act_patch_attn_head_out_all_pos(
                **given, patching_metric=lambda x: metric(x).mean()
            )
        else:
            heads = [
                (at, position, head) for at in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)
            ]
            found = patching.generic_activation_patch(
                model, corrupted, cache, lambda x: metric(x).mean(), patching.layer_pos_head_vector_patch_setter, "z",
                index_df=pd.DataFrame(heads, columns=["layer", "pos", "head"]),
            ).view(model.cfg.n_layers, model.cfg.n_heads)  # fmt: skip
    return found.cpu() - start


def multiply_adds(model, prompts: int, later: int) -> float:
    """What no exact method can leave out: for each head, the later layers at the positions that change, once."""
    cfg = model.cfg
    d, kv = cfg.d_model, 2 * (cfg.n_key_value_heads or cfg.n_heads) * cfg.d_head
    mlp = (3 if cfg.gated_mlp else 2) * d * cfg.d_mlp
    rest = 2 * d * cfg.n_heads * cfg.d_head + mlp  # queries, output matrix and MLP of one position
    total = 0
    for layer in range(cfg.n_layers):
        whole = max(0, cfg.n_layers - 2 - layer) * (rest + d * kv) * later  # layers between
        last = (
            d * kv * later + rest if layer < cfg.n_layers - 1 else 0
        )  # the last layer: only the end is read
        total += whole + last + mlp * (later if layer < cfg.n_layers - 1 else 1)
    return float(total) * cfg.n_heads * prompts


def peak() -> float:
    """Multiply-adds a CPU second that this machine reaches on one large product, the best of five."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return max(1024**3 * 10 / cpu(lambda: [a @ b for _ in range(10)])[0] for _ in range(5))


def main() -> bool:
    """Print the table; True when every target is met."""
    print("\nPatching, every head (270), 16 IOI prompts; CPU seconds\n")
    model = ml.load(quiet=True)
    limit = peak()
    met = [
        beside(model, "all positions", None, 8, limit),
        beside(model, "the last position", [-1], 30, limit),
    ]
    clean, corrupted, _ = prompts(model)
    first, kept = cpu(lambda: run_of(model, corrupted))
    second, _ = cpu(lambda: run_of(model, clean, like=kept))
    row(
        "  of which the two runs themselves",
        f"{first + second:.1f}",
        f"{clean.numel()} tokens each",
        "",
        True,
    )
    return all(met)


def beside(model, name: str, positions: list[int] | None, least: float, limit: float) -> bool:
    """One sweep, ours in two precisions and TransformerLens'."""
    clean, corrupted, metric = prompts(model)
    later = 1 if positions else int((clean != corrupted).any(0).flip(0).nonzero().max()) + 1

    def sweep(dtype=None):
        given = {"positions": positions, "normalized": False, "dtype": dtype}
        return ml.activation_patching(model, corrupted, clean, metric, "z", **given)

    seconds, fast = min((cpu(sweep) for _ in range(2)), key=lambda result: result[0])
    short, half = cpu(lambda: sweep(torch.bfloat16))
    end = clean.shape[1] - 1 if positions else None
    theirs, slow = cpu(lambda: with_transformer_lens(model, clean, corrupted, metric, end))
    off = (fast.values - slow).abs().max().item()
    share = multiply_adds(model, len(clean), later) / limit / seconds
    shown = (
        f"{theirs:.0f} (ratio {theirs / seconds:.1f}, largest difference {off:.0e}, {share:.0%} of the limit)"
    )
    met = theirs / seconds >= least and off < 1e-4
    row(f"head sweep, {name}", f"{seconds:.1f}", shown, f"ratio ≥ {least}, 1e-4", met)
    wrong = (half.values - fast.values).abs().max().item() / (
        fast.baselines["source"] - fast.baselines["base"]
    )
    row(
        f"  in bfloat16 ({wrong:.4f} of a normalised score off)",
        f"{short:.1f}",
        f"ratio {theirs / short:.1f}",
        "",
        True,
    )
    return met
