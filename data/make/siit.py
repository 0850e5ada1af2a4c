"""Write data/planted/: a small GPT-2 that was trained until three heads of it carry three variables of a program.

    python data/make/siit.py            about 5 minutes on one core: the model, and a twin that learned the task alone
    python data/make/siit.py --board    ... and what each method finds in three such models: data/reference/planted_trained.csv

The program, for "Ann and Ben went , Ann gave to":

    duplicate      where the name that stands there again stood first: first place, second place, nowhere
    S-inhibition   the same, carried to the end
    name mover     the other name; without a name again, one of the two as likely as the other

Each variable is given to one head at one position: in layer 0 at the second name, in layers 1 and 3 at the end. Which head, the
seed draws. Three losses, all of them cross entropy at the end of the prompt (strict interchange intervention training, Gupta
et al. 2024, InterpBench):

    behaviour     1.0   the program's answer
    interchange   1.0   one of the three heads is what it is in another prompt: the program's answer with this variable exchanged
    strict        0.4   some of the other heads and MLPs are what they are in another prompt: the same answer as before

Nine of the 45 pairs of names are never trained on. All figures are of these.

Positions matter. When whole heads were exchanged, wherever they write, training found another way: the first head brought
all three names to the end, and the second compared them there. Program and model agreed after every exchange all the same.
So does the size of the first weights: with GPT-2's 0.02 the first head had learned nothing after 3,000 steps.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from planted import JUDGED, METHODS, Case, judged
from safetensors.torch import save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import mechlab as ml
from mechlab.circuits.planted.compiling import _tokenizer
from mechlab.circuits.planted.tasks import NAMES, ioi
from mechlab.circuits.planted.trained import untrained
from mechlab.loading.models import wrap

DATA = Path(__file__).parents[1]
FOLDER, BOARD = DATA / "planted", DATA / "reference" / "planted_trained.csv"
WORDS = ioi().words
FIRST_NAME = WORDS.index(NAMES[0])
S2, END = 6, 8  # positions
PARTS = {
    "duplicate": (0, S2),
    "S-inhibition": (1, END),
    "name mover": (3, END),
}  # variable -> layer, position
LAYERS, HEADS, WIDTH, NEURONS, POSITIONS = 4, 4, 64, 64, 9
COLUMNS = ["level", "method", "model", "seed", *JUDGED, "CPR", "CMD", "cpu seconds"]
WEIGHTS = {"behaviour": 1.0, "interchange": 1.0, "strict": 0.4}
BATCH, STEPS, RATE = 128, 2000, 2e-3
SEEDS = 0, 1, 3  # of the board. With seed 2 the first head holds nothing yet after these steps
NOWHERE = 2


def prompts(
    count: int, chance: torch.Generator, *, held: bool, nowhere: float = 0.2
) -> Int[Tensor, "row pos"]:
    """Prompts of the task, by chance. nowhere: the share of those in which no name stands there again."""
    found = torch.empty(0, 3, dtype=torch.long)
    while len(found) < count:
        drawn = torch.rand(8 * count, len(NAMES), generator=chance).argsort(1)[:, :3]
        found = torch.cat([found, drawn[untrained(drawn[:, 0], drawn[:, 1]) == held]])
    one, other, third = found[:count].T
    kind = torch.rand(count, generator=chance)
    again = torch.where(kind < nowhere, third, torch.where(kind < (1 + nowhere) / 2, one, other))
    begin, *between = (WORDS.index(word) for word in ("<begin>", "and", "went", ",", "gave", "to"))
    words = [begin, one, between[0], other, *between[1:3], again, *between[3:]]
    named = lambda word: word + FIRST_NAME if isinstance(word, Tensor) else torch.full((count,), word)
    return torch.stack([*map(named, words)], dim=1)


def place(tokens: Int[Tensor, "row pos"]) -> Int[Tensor, "row"]:
    """The program's first two variables: where the name stood first."""
    one, other, again = tokens[:, 1], tokens[:, 3], tokens[:, S2]
    return torch.where(again == one, 0, torch.where(again == other, 1, NOWHERE))


def answers(tokens: Int[Tensor, "row pos"], at: Int[Tensor, "row"]) -> Float[Tensor, "row word"]:
    """The program's answer, as probabilities, when the place is this one."""
    share = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])[at]  # of the first name and the second
    return torch.zeros(len(tokens), len(WORDS)).scatter(1, tokens[:, [1, 3]], share)


def exchanged(base: Tensor, source: Tensor, variable: Int[Tensor, "row"]) -> Float[Tensor, "row word"]:
    """The program's answer to base with one variable (by number) as in source."""
    by_place, by_name = answers(base, place(source)), answers(source, place(source))
    return torch.where((variable == 2)[:, None], by_name, by_place)


class Network:
    """A GPT-2 whose heads and MLPs can be what they are in another prompt.

    nodes: [layer pos head_or_mlp], the heads of a layer and, last, its MLP, at each position
    """

    def __init__(self, seed: int):
        config = GPT2Config(
            vocab_size=len(WORDS),
            n_layer=LAYERS,
            n_head=HEADS,
            n_embd=WIDTH,
            n_inner=NEURONS,
            n_positions=POSITIONS,
            initializer_range=0.125,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
        )
        torch.manual_seed(seed)
        self.model = GPT2LMHeadModel(config)
        self.seen: list[list[Tensor]] = []
        self.put: tuple[list[list[Tensor]], Tensor] | None = None
        for layer, block in enumerate(self.model.transformer.h):
            block.attn.c_proj.register_forward_pre_hook(partial(self._heads, layer))
            block.mlp.register_forward_hook(partial(self._mlp, layer))

    def plain(self) -> GPT2LMHeadModel:
        """The model without hooks."""
        model = GPT2LMHeadModel(self.model.config)
        model.load_state_dict(self.model.state_dict())
        return model

    def _heads(self, layer: int, module, inputs):
        z = inputs[0].unflatten(2, (HEADS, -1))
        if self.put:
            values, where = self.put
            z = torch.where(where[:, layer, :, :HEADS, None], values[layer][0], z)
        self.seen.append([z])
        return (z.flatten(2),)

    def _mlp(self, layer: int, module, inputs, output):
        if self.put:
            values, where = self.put
            output = torch.where(where[:, layer, :, HEADS, None], values[layer][1], output)
        self.seen[layer].append(output)
        return output

    def __call__(self, tokens: Tensor, put=None) -> tuple[Float[Tensor, "row word"], list[list[Tensor]]]:
        """Logits at the end, and what the nodes were: [layer][heads, MLP]. put: others' values, and where."""
        self.seen, self.put = [], put
        return self.model(tokens).logits[:, -1], self.seen


def nodes_of(where: dict[str, tuple[int, int]]) -> Bool[Tensor, "variable layer pos node"]:
    """For each variable its head, at its position."""
    marked = torch.zeros(len(where), LAYERS, POSITIONS, HEADS + 1, dtype=torch.bool)
    for number, (name, (layer, head)) in enumerate(where.items()):
        marked[number, layer, PARTS[name][1], head] = True
    return marked


def losses(network: Network, marked: Tensor, chance: torch.Generator, *, siit: bool) -> dict[str, Tensor]:
    """The three losses of one batch; for the twin the first alone, on as many prompts."""
    cross = torch.nn.functional.cross_entropy
    base, source = (prompts(BATCH, chance, held=False) for _ in range(2))
    both = torch.cat([base, source])
    logits, seen = network(both)
    found = {"behaviour": cross(logits, answers(both, place(both)))}
    if not siit:
        return found
    of_source = [[part[BATCH:].repeat(2, *[1] * (part.ndim - 1)) for part in layer] for layer in seen]
    variable = torch.randint(len(marked), (BATCH,), generator=chance)
    share = torch.rand(BATCH, 1, 1, 1, generator=chance)
    others = (torch.rand(BATCH, *marked.shape[1:], generator=chance) < share) & ~marked.any(0)
    logits, _ = network(base.repeat(2, 1), (of_source, torch.cat([marked[variable], others])))
    found["interchange"] = cross(logits[:BATCH], exchanged(base, source, variable))
    found["strict"] = cross(logits[BATCH:], answers(base, place(base)))
    return found


def trained(
    seed: int, *, siit: bool = True, steps: int = STEPS, say=None
) -> tuple[Network, dict[str, tuple[int, int]]]:
    """A network, and where the variables are: the same places and prompts for its twin (siit=False)."""
    chance = torch.Generator().manual_seed(seed)
    where = {
        name: (layer, int(torch.randint(HEADS, (), generator=chance))) for name, (layer, _) in PARTS.items()
    }
    network, marked = Network(seed), nodes_of(where)
    optimizer = torch.optim.AdamW(network.model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        found = losses(network, marked, chance, siit=siit)
        optimizer.zero_grad()
        torch.stack([WEIGHTS[name] * loss for name, loss in found.items()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(network.model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if say and step % 250 == 249:
            say(step + 1, {name: round(loss.item(), 3) for name, loss in found.items()})
    return network, where


@torch.no_grad()
def figures(
    network: Network, where: dict, *, held: bool = True, count: int = 2000, seed: int = 1
) -> dict[str, float]:
    """How often the network says what the program says: by itself, with a variable exchanged, and with all else exchanged."""
    chance, marked = torch.Generator().manual_seed(seed), nodes_of(where)
    base, source = (prompts(count, chance, held=held, nowhere=0.0) for _ in range(2))
    right = lambda logits, wanted: round(float((logits.argmax(1) == wanted.argmax(1)).float().mean()), 4)
    alone = answers(base, place(base))
    _, seen = network(source)
    found = {"behaviour": right(network(base)[0], alone)}
    for number, name in enumerate(where):
        wanted = exchanged(base, source, torch.full((count,), number))
        other = (wanted != alone).any(1)  # where the exchange asks for another answer
        logits, _ = network(base, (seen, marked[number].expand(count, -1, -1, -1)))
        found[name] = right(logits[other], wanted[other])
    outside = ~marked.any(0)
    found["strict"] = right(network(base, (seen, outside.expand(count, -1, -1, -1)))[0], alone)
    each = [
        right(network(base, (seen, one.expand(count, -1, -1, -1)))[0], alone) for one in _singles(outside)
    ]
    return found | {"strict, worst node alone": min(each)}


def _singles(marked: Bool[Tensor, "layer pos node"]) -> Bool[Tensor, "one layer pos node"]:
    """Each head and each MLP alone, wherever it is marked."""
    alone = torch.eye(LAYERS * (HEADS + 1), dtype=torch.bool).view(-1, LAYERS, 1, HEADS + 1)
    return alone & marked


def saved(network: Network, weights: str) -> None:
    """The weights in half precision, as Hugging Face names them, and, the first time, what belongs to them."""
    FOLDER.mkdir(exist_ok=True)
    network.model.config.to_json_file(FOLDER / "config.json")
    _tokenizer(ioi()).save_pretrained(FOLDER)
    state = {name: tensor.half().contiguous() for name, tensor in network.model.state_dict().items()}
    save_file(state, FOLDER / weights, metadata={"format": "pt"})


def make() -> None:
    """The model of seed 0, its twin, and what is known of both."""
    told: dict = {"slots": HEADS, "steps": STEPS, "batch": BATCH, "weights": WEIGHTS, "figures": {}}
    for name, weights, siit in (("model", "model.safetensors", True), ("twin", "twin.safetensors", False)):
        begin = time.process_time()
        network, where = trained(0, siit=siit, say=print)
        saved(network, weights)
        told["figures"][name] = figures(network, where)
        told["figures"][name]["cpu seconds"] = round(time.process_time() - begin)
        print(name, where, told["figures"][name])
    told |= {"heads": where, "positions": {name: pos for name, (_, pos) in PARTS.items()}}
    (FOLDER / "training.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def kept_or_trained(seed: int) -> tuple[Network, dict[str, tuple[int, int]]]:
    """A network of another seed, from the temporary folder where an earlier call has left it."""
    path = Path(tempfile.gettempdir()) / f"siit_{seed}_{STEPS}.pt"
    if not path.exists():
        network, where = trained(seed, say=print)
        torch.save({"state": network.model.state_dict(), "where": where}, path)
    found, network = torch.load(path), Network(seed)
    network.model.load_state_dict(found["state"])
    return network, found["where"]


def circuit_of(seed: int) -> ml.PlantedTrained:
    """The model that is kept, or one of another seed, trained now."""
    kept = ml.planted_trained()
    if not seed:
        return kept
    network, where = kept_or_trained(seed)
    model = wrap(network.plain(), _tokenizer(ioi()), name=f"planted, trained, seed {seed}")
    return replace(kept, model=model, heads=where, figures=figures(network, where))


def rows_of(model: str, seed: int, case: Case) -> list[dict]:
    """Every method on one model: how well it tells true from false, and the areas of its ranking of nodes."""
    runs = ml.Counterfactuals(case.model, case.clean, case.other["flip"], case.metric)
    known, rows = pd.DataFrame(), []
    for level, methods in METHODS.items():
        for name, method in methods.items():
            row = {"level": level, "method": name, "model": model, "seed": seed} | judged(case, level, method)
            if level == "nodes":
                scores = method(case)
                curve = ml.circuit_curve(runs, scores, random=1)
                row |= {"CPR": curve.cpr, "CMD": curve.cmd}
                if known.empty:
                    known = ml.circuit_curve(runs, scores, truth=case.circuit.true_nodes(scores)).areas()
            rows.append(row)
    for name in ("truth", "random, mean", "random, best"):
        row = {"level": "nodes", "method": name, "model": model, "seed": seed}
        rows.append(row | {"CPR": known.CPR[name], "CMD": known.CMD[name]})
    return rows


def board() -> None:
    """Every method on three trained models and on three that were written down: the table and a short print."""
    rows = []
    for number, seed in enumerate(SEEDS):
        circuit = circuit_of(seed)
        print(seed, circuit.heads, dict(circuit.figures), flush=True)
        rows += rows_of("trained", seed, Case(circuit, seed))
        rows += rows_of("planted", number, Case(ml.planted("ioi", seed=number), number))
    table = pd.DataFrame(rows)[COLUMNS].round(3)
    table.to_csv(BOARD, index=False, lineterminator="\n")
    show(table)


def show(table: pd.DataFrame) -> None:
    """Worst of the seeds, trained beside planted."""
    numbers = table.assign(**{name: pd.to_numeric(table[name]) for name in COLUMNS[4:]})
    worst = {"auroc": "min", "average precision": "min", "weakest true": "min", "strongest false": "max"}
    worst |= {"CPR": "min", "CMD": "max"}
    found = numbers.groupby(["level", "method", "model"], sort=False).agg(worst).unstack()
    print(found.round(2).to_string(na_rep=""))


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--board", action="store_true", help="what each method finds, instead of the model")
    board() if parser.parse_args().board else make()
