"""Write data/rome/smollm2_layer4.safetensors (how keys spread on ordinary text) and data/reference/rome.csv.

    python data/make/rome.py            about 25 minutes on two free cores

The layer was chosen on the four facts of the split "choice"; the figures of notebook 34 are those of the others. Two more
cities (Osaka, Toronto) were edited and left out: without an edit the model prefers the new country for them.
rome.csv holds, for each edit alone: split, layer, how (rome; identity: the same with C = I; tuning: gradient descent on
the same matrix until the new answer has probability .9; piled: the ten capitals and sights on top of one another; none)
and the scores of `mechlab.edit_scores`, for two kinds of other subjects:

    neighbourhood, kept          those with the same old answer (CounterFact's kind); none for capitals, and not asked of
                                 the choice and of piled edits. Their own answer is the old one, whatever the model says
    others, others_kept          those with other answers; their own is what the model says before the edit

data/rome/edits.safetensors: the rank-one changes [fact, d_mlp] and [fact, d_model] of five capitals, for exercise 34.6.
"""

import csv
import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import save_file

import mechlab as ml
from mechlab.intervention.rome import save_covariance
from mechlab.intervention.weights import WeightEdit

DATA = Path(__file__).parents[1]
LAYER, LAYERS = 4, (4, 10, 18, 0, 2, 6)
TABLE = DATA / "reference" / "rome.csv"
EDITS = DATA / "rome" / "edits.safetensors"
KINDS = json.loads((DATA / "rome" / "facts.json").read_text())


def tests(model) -> list[tuple[dict, ml.Fact, dict]]:
    """Each fact with what is asked: others keep the answers that the model gives before any edit."""
    found = []
    for row in KINDS["facts"]:
        kind = KINDS["relations"][row["relation"]]
        asked = [kind["prompt"].format(other) for other in kind["others"]]
        with torch.no_grad():
            own = {prompt: model.to_string(model(prompt)[0, -1].argmax()[None]) for prompt in asked}
        own = {prompt: answer for prompt, answer in own.items() if answer != row["new"]}  # right already
        fact = ml.Fact(kind["prompt"], row["subject"], row["new"])
        near = kind.get("same", {}).get(row["old"], []) if row["split"] == "test" else []
        same = {kind["prompt"].format(other): row["old"] for other in near if other != row["subject"]}
        asks = {"old": row["old"], "paraphrases": kind["paraphrases"], "others": own, "same": same}
        found.append((row, fact, asks))
    return found


def scores(
    model, fact: ml.Fact, old: str, paraphrases: list, others: dict, same: dict
) -> dict[str, float | str]:
    found = ml.edit_scores(model, fact, old, paraphrases, others)
    found = {**found, "others": found["neighbourhood"], "others_kept": found["kept"]}
    near = ml.edit_scores(model, fact, old, paraphrases, same) if same else {}
    return found | {name: near.get(name, "") for name in ("neighbourhood", "kept")}


def factors(change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix of rank one as an outer product."""
    right = change[change.norm(dim=1).argmax()]
    return change @ right / (right @ right), right


def save_edits(model, facts: list, covariance: torch.Tensor) -> None:
    """The capitals' edits but that of France, which the notebook makes."""
    W_out, pairs = model.blocks[LAYER].mlp.W_out, []
    before = W_out.detach().clone()
    chosen = [fact for row, fact, _ in facts if row["relation"] == "capital" and row["split"] == "test"][1:]
    for fact in chosen:
        with ml.edit_fact(model, fact, LAYER, covariance):
            pairs.append(factors(model.blocks[LAYER].mlp.W_out.detach() - before))
    left, right = (torch.stack(part) for part in zip(*pairs, strict=True))
    save_file({"left": left, "right": right}, EDITS)


def tuned(model, fact: ml.Fact, layer: int) -> WeightEdit:
    """The same matrix, the same aim, by plain gradient descent (Adam) on the prompt alone."""
    W_out = model.blocks[layer].mlp.W_out
    change = torch.zeros_like(W_out, requires_grad=True)
    tokens, answer = model.to_tokens(fact.text), ml.single_token(model, fact.answer)
    optimizer = torch.optim.Adam([change], lr=5e-4)
    keys = []
    add = lambda x, hook: x + keys[-1] @ change
    hooks = [
        (f"blocks.{layer}.mlp.hook_post", lambda x, hook: keys.append(x.detach())),
        (f"blocks.{layer}.hook_mlp_out", add),
    ]
    for _ in range(60):
        with ml.intervene(model, hooks):
            told = model(tokens)[0, -1].log_softmax(-1)[answer]
        if told.exp() > 0.9:
            break
        optimizer.zero_grad()
        (change.grad,) = torch.autograd.grad(-told, [change])
        optimizer.step()
    edit = WeightEdit(model, "tuned")
    edit.change(W_out, W_out.detach() + change.detach())
    return edit


def main() -> None:
    model, started = ml.load(quiet=True), time.monotonic()
    texts, facts = ml.own_text(model, length=81), tests(model)
    rows = list(csv.DictReader(TABLE.open(encoding="utf-8"))) if TABLE.exists() else []
    done = {(row["subject"], int(row["layer"]), row["how"]) for row in rows}

    def note(row: dict, layer: int, how: str, scores: dict) -> None:
        """Write the table after each edit: a second call takes up where an interrupted one stopped."""
        scores = {name: value if value == "" else round(value, 4) for name, value in scores.items()}
        rows.append({"split": row["split"], "subject": row["subject"], "layer": layer, "how": how, **scores})
        with TABLE.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        print(f"{time.monotonic() - started:.0f} s", *rows[-1].values(), file=sys.stderr, flush=True)

    edits = {
        "none": lambda fact, layer, covariance: nullcontext(),
        "rome": lambda fact, layer, covariance: ml.edit_fact(model, fact, layer, covariance),
        "identity": lambda fact, layer, covariance: ml.edit_fact(
            model, fact, layer, torch.eye(len(covariance))
        ),
        "tuning": lambda fact, layer, covariance: tuned(model, fact, layer),
    }
    stored = DATA / "rome" / f"smollm2_layer{LAYER}.safetensors"
    if not stored.exists():
        save_covariance(stored, ml.key_covariance(model, texts, layer=LAYER))
    if not EDITS.exists():
        save_edits(model, facts, ml.load_covariance(stored))
    test = [entry for entry in facts if entry[0]["split"] == "test" and entry[0]["relation"] != "country"]
    if not any(how == "piled" for *_, how in done):
        piled = [ml.edit_fact(model, fact, LAYER, ml.load_covariance(stored)) for _, fact, _ in test]
        for row, fact, given in test:
            note(row, LAYER, "piled", scores(model, fact, **given))
        for edit in reversed(piled):
            edit.undo()
    for layer in LAYERS:
        wanted = [
            (how, *entry)
            for entry in facts
            for how in (edits if layer == LAYER and entry[0]["split"] == "test" else ["rome"])
            if (layer == LAYER or entry[0]["split"] == "choice")
            and (entry[0]["subject"], layer, how) not in done
        ]
        if wanted:  # the sweep does with less text
            covariance = (
                ml.load_covariance(stored)
                if layer == LAYER
                else ml.key_covariance(model, texts[:250], layer=layer)
            )
        for how, row, fact, given in wanted:
            with edits[how](fact, layer, covariance):
                note(row, layer, how, scores(model, fact, **given))


if __name__ == "__main__":
    main()
