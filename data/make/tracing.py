"""Write data/tracing/controls.csv and data/tracing/transcoders.csv, for notebook 53.

    python data/make/tracing.py

controls: what is said of a contrast graph of agreement, on the trained model, on the same words shuffled, and on
eight models with random weights: does it add up, how many neurons are 80 % of the sizes, does it rank single
neurons as single exchanges do, and what is left when few are kept or taken away. transcoders: two layers, each
replaced by a linear map, by its own largest neurons, and by a transcoder trained here. About 8 CPU minutes.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor

import mechlab as ml

FOLDER = Path(__file__).parents[1] / "tracing"
NOUNS = ("key", "dog", "picture", "car", "boy", "book", "teacher", "tree")
SENTENCE, SHUFFLED = "The {} to the old cabinet", "The {} cabinet the old to"
SIZES, SINGLES = (25, 60), 100
LAYERS, WIDTH, ACTIVE = (8, 14), 1152, 32


def alone(contrast: ml.Contrast, places: Tensor) -> Tensor:
    """[place]: by how much the metric falls when one neuron, (layer, pos, neuron), has source's value."""
    edits = []
    for layer in range(contrast.model.cfg.n_layers):
        theirs = contrast.source.at("post", layer)[None]
        where = torch.zeros(len(places), *theirs.shape[1:], dtype=torch.bool)
        rows = (places[:, 0] == layer).nonzero().squeeze(1)
        where[rows, 0, places[rows, 1], places[rows, 2]] = True
        edits.append(ml.Put("post", layer, theirs, where))
    return contrast.change - contrast.base.edited(contrast.metric, edits)[:, 0]


def controls(model, name: str, sentence: str) -> Iterator[dict]:
    """One row for each noun."""
    metric = ml.logit_difference(ml.single_token(model, " are"), ml.single_token(model, " is"))
    for noun in NOUNS:
        contrast = ml.Contrast(model, sentence.format(noun + "s"), sentence.format(noun), metric)
        totals = contrast.totals()
        sizes = totals.values.abs().flatten().sort(descending=True).values
        reach = int((sizes.cumsum(0) < 0.8 * sizes.sum()).sum()) + 1
        drawn = torch.multinomial(
            totals.values.abs().flatten(), SINGLES, generator=torch.Generator().manual_seed(0)
        )
        places = torch.stack(torch.unravel_index(drawn, totals.values.shape), 1)
        ranks = spearmanr(totals.values.flatten()[drawn], alone(contrast, places)).statistic
        left = ml.kept_and_away(contrast, totals, SIZES).values
        row = {"model": name, "noun": noun, "change": contrast.change.item()}
        row |= {"gap": contrast.flow().gap.abs().item(), "for 80 %": reach / (sizes > 0).sum().item()}
        row |= {"single exchanges": ranks}
        row |= {
            f"{what} {size}": float(left[w, s])
            for w, what in enumerate(("kept", "away"))
            for s, size in enumerate(SIZES)
        }
        yield row


class Transcoder(torch.nn.Module):
    """What an MLP reads to what it writes, through at most `ACTIVE` of `WIDTH` features at a token."""

    def __init__(self, reads: Tensor, writes: Tensor):
        super().__init__()
        chosen = reads[torch.randperm(len(reads))[:WIDTH]]
        self.encoder = torch.nn.Parameter(
            torch.nn.functional.normalize(chosen - reads.mean(0), dim=1).T.clone()
        )
        self.decoder = torch.nn.Parameter(0.1 * torch.randn(WIDTH, writes.shape[1]) / WIDTH**0.5)
        self.shift = torch.nn.Parameter(reads.mean(0).clone())
        self.bias = torch.nn.Parameter(writes.mean(0).clone())

    def forward(self, x: Tensor) -> Tensor:
        active, which = ((x - self.shift) @ self.encoder).relu().topk(ACTIVE, dim=-1)
        features = torch.zeros(len(x), WIDTH).scatter(1, which, active)
        return features @ self.decoder + self.bias


@torch.enable_grad()
def trained(reads: Tensor, writes: Tensor, steps: int = 1200) -> Transcoder:
    """By the mean square of what is missing."""
    coder, chance = Transcoder(reads, writes), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(coder.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(reads), (512,), generator=chance)
        loss = (coder(reads[rows]) - writes[rows]).pow(2).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return coder.eval()


@torch.no_grad()
def seen(model, layer: int, tokens: Tensor) -> list[Tensor]:
    """What an MLP reads, its neurons, and what it writes, behind the first position of each text."""
    names = [f"blocks.{layer}.{name}" for name in ("mlp.hook_in", "mlp.hook_post", "hook_mlp_out")]
    found = [
        model.run_with_cache(some, names_filter=names, stop_at_layer=layer + 1)[1]
        for some in tokens.split(20)
    ]
    return [torch.cat([cache[name][:, 1:].flatten(0, 1) for cache in found]) for name in names]


def stand_ins(model, layer: int, reads: Tensor, neurons: Tensor, writes: Tensor) -> dict[str, Callable]:
    """What may stand in the MLP's place: functions of what it reads, and of its neurons."""
    W_out, mean = model.blocks[layer].mlp.W_out, neurons.mean(0)
    loud = W_out.norm(dim=1)
    one = lambda x: torch.cat([x, torch.ones(len(x), 1)], 1)
    ridge = torch.eye(reads.shape[1] + 1)
    line = torch.linalg.solve(one(reads).T @ one(reads) + ridge, one(reads).T @ writes)
    coder = trained(reads, writes)

    def largest(neurons: Tensor, k: int) -> Tensor:
        far = ((neurons - mean).abs() * loud).topk(k, dim=-1).indices
        return (mean + (neurons - mean) * torch.zeros_like(neurons).scatter(1, far, 1.0)) @ W_out

    return {
        "nothing, its mean": lambda x, a: writes.mean(0).expand(len(x), -1),
        "linear map": lambda x, a: one(x) @ line,
        "its 32 largest neurons": lambda x, a: largest(a, ACTIVE),
        "its 128 largest neurons": lambda x, a: largest(a, 128),
        "transcoder, 32 features": lambda x, a: coder(x),
        "the MLP itself": lambda x, a: a @ W_out,
    }


@torch.no_grad()
def transcoders(model) -> Iterator[dict]:
    """One row for each layer and what stands in for its MLP: variance missed, and loss on texts not trained on."""
    text = ml.own_text(model, length=81, count=800)
    for layer in LAYERS:
        reads, neurons, writes = seen(model, layer, text[700:])
        spread = (writes - writes.mean(0)).pow(2).sum()
        for name, way in stand_ins(model, layer, *seen(model, layer, text[:700])).items():
            missed = ((way(reads, neurons) - writes).pow(2).sum() / spread).item()
            loss = loss_with(model, layer, way, text[700:])
            yield {"layer": layer, "in its place": name, "missed": missed, "loss": loss}


@torch.no_grad()
def loss_with(model, layer: int, way: Callable, tokens: Tensor) -> float:
    """Loss in nats, with what an MLP writes replaced behind the first position."""
    kept = {}

    def keep(x, hook):
        kept[hook.name.rpartition("_")[2]] = x[:, 1:].flatten(0, 1)

    def write(x, hook):
        x = x.clone()
        x[:, 1:] = way(kept["in"], kept["post"]).view_as(x[:, 1:])
        return x

    at = f"blocks.{layer}."
    losses = []
    for some in tokens.split(20):
        with model.hooks(
            [(at + "mlp.hook_in", keep), (at + "mlp.hook_post", keep), (at + "hook_mlp_out", write)]
        ):
            log_p = model(some)[:, 1:-1].log_softmax(-1)
        losses.append(-log_p.gather(-1, some[:, 2:, None]).flatten())
    return torch.cat(losses).mean().item()


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    model = ml.load()
    rows = [*controls(model, "trained", SENTENCE), *controls(model, "trained, words shuffled", SHUFFLED)]
    for seed in range(8):
        rows += controls(ml.random_weights(model, seed=seed), f"random weights {seed}", SENTENCE)
        print(f"random weights {seed} done", flush=True)
    table = pd.DataFrame(rows)
    table["gap"] = table["gap"].map("{:.1e}".format)
    table.round(4).to_csv(FOLDER / "controls.csv", index=False)
    torch.manual_seed(0)
    pd.DataFrame(transcoders(model)).round(4).to_csv(FOLDER / "transcoders.csv", index=False)


if __name__ == "__main__":
    main()
