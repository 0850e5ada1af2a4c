"""Attribution: seconds a prompt, beside the plain way of asking the same, with the same numbers."""

import time

import captum.attr
import torch

import mechlab as ml
from benchmarks.load import row
from mechlab.attribution import neurons


def timed(function) -> tuple[float, torch.Tensor]:
    """Seconds of the faster of two runs, and the result's values."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result.values


def beside(what: str, ours, plain, target: str, limit: float, tolerance: float) -> bool:
    mine, values = timed(ours)
    start = time.perf_counter()
    difference = (plain() - values).abs().max().item()
    theirs = time.perf_counter() - start
    met = mine <= limit and difference <= tolerance
    shown = f"{theirs:.1f} (ratio {theirs / mine:.1f}, largest difference {difference:.0e})"
    return row(f"{what}, seconds", f"{mine:.2f}", shown, target, met)


def main() -> bool:
    """Print the table; True when every target is met."""
    print("\nAttribution, one prompt\n")
    model = ml.load(quiet=True)
    prompt = model.to_tokens("We won the match, and the whole team felt")
    source = ml.baseline_tokens(model, prompt, "<|endoftext|>")
    metric = ml.logit_difference(ml.single_token(model, " happy"), ml.single_token(model, " sad"))
    game = ml.input_game(model, prompt, source, metric)
    n = len(game.players)

    def one_by_one(masks):
        with torch.no_grad():
            return torch.cat([game.run(0, mask[None]) for mask in masks])

    def scored(values):
        return torch.nn.functional.pad(values, (prompt.shape[1] - n, 0))

    def plain_shapley():
        every = torch.tensor([[i >> p & 1 for p in range(n)] for i in range(2**n)]).float()
        with torch.no_grad():
            values = torch.cat([game.run(0, masks) for masks in every.split(64)])
        size, shares = every.sum(1), torch.zeros(n)
        for player in range(n):
            out = (every[:, player] == 0).nonzero()[:, 0]
            gain = values[out + 2**player] - values[out]
            shares[player] = torch.stack([gain[size[out] == k].mean() for k in range(n)]).mean()
        return scored(shares)

    def captums(method):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            asked = method(one_by_one).attribute(torch.ones(1, n), torch.zeros(1, n), n_samples=128)
        return scored(asked[0])

    def exact_neurons():
        kept, neurons.EXACT = neurons.EXACT, model.cfg.d_mlp
        try:
            return ml.value_neuron_scores(model, prompt, " happy", layers=range(24, 30)).values
        finally:
            neurons.EXACT = kept

    args = (model, prompt, source, metric)
    return all([
        beside(f"exact Shapley values, {n} tokens (plain: masks in batches of 64)", lambda: ml.shapley_values(*args), plain_shapley, "under 10", 10, 1e-3),
        beside("LIME, 128 masks (plain: one by one)", lambda: ml.lime(*args), lambda: captums(captum.attr.Lime), "under 10", 10, 1e-2),
        beside("value neurons, 6 layers (plain: all neurons exactly)", lambda: ml.value_neuron_scores(model, prompt, " happy", layers=range(24, 30)), exact_neurons, "", 10, 5e-3),
    ])  # fmt: skip
