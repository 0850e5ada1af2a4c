"""Write data/rome/smollm2_layer4.safetensors (how keys spread on ordinary text) and data/reference/rome.csv.

    python data/make/rome.py            about 25 minutes on two free cores

The layer was chosen on the four facts of the split "choice"; the figures of notebook 34 are those of the ten others.
rome.csv holds, for each edit alone: split, layer, how (rome; identity: the same with C = I; tuning: gradient descent on
the same matrix until the new answer has probability .9; piled: the ten edits on top of one another) and the scores of
`mechlab.edit_scores`.
"""

import csv
import json
import sys
import time
from pathlib import Path

import torch

import mechlab as ml
from mechlab.intervention.rome import save_covariance
from mechlab.intervention.weights import WeightEdit

DATA = Path(__file__).parents[1]
LAYER, LAYERS = 4, (0, 1, 2, 3, 4, 5, 6, 8, 10, 14, 18, 22)
KINDS = json.loads((DATA / "rome" / "facts.json").read_text())


def tests(model) -> list[tuple[dict, ml.Fact, dict]]:
    """Each fact with what `edit_scores` asks: neighbours keep the answers that the model gives before any edit."""
    found = []
    for row in KINDS["facts"]:
        kind = KINDS["relations"][row["relation"]]
        asked = [kind["prompt"].format(other) for other in kind["neighbours"]]
        with torch.no_grad():
            own = {prompt: model.to_string(model(prompt)[0, -1].argmax()[None]) for prompt in asked}
        fact = ml.Fact(kind["prompt"], row["subject"], row["new"])
        given = {"old": row["old"], "paraphrases": kind["paraphrases"], "neighbours": own}
        found.append((row, fact, given))
    return found


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
    model, started, rows = ml.load(quiet=True), time.monotonic(), []
    texts = ml.own_text(model, length=81)
    facts = tests(model)

    def note(row: dict, layer: int, how: str, scores: dict) -> None:
        rows.append({"split": row["split"], "subject": row["subject"], "layer": layer, "how": how, **scores})
        print(f"{time.monotonic() - started:.0f} s", *rows[-1].values(), file=sys.stderr, flush=True)

    for layer in LAYERS:
        count = None if layer == LAYER else 400  # the sweep does with less text
        covariance = ml.key_covariance(model, layer, texts[:count])
        if layer == LAYER:
            save_covariance(DATA / "rome" / f"smollm2_layer{layer}.safetensors", covariance)
            covariance = ml.load_covariance(DATA / "rome" / f"smollm2_layer{layer}.safetensors")
        for row, fact, given in facts:
            if row["split"] == "choice" or layer == LAYER:
                with ml.edit_fact(model, fact, layer, covariance):
                    note(row, layer, "rome", ml.edit_scores(model, fact, **given))
            if layer == LAYER and row["split"] == "test":
                note(row, layer, "none", ml.edit_scores(model, fact, **given))
                with ml.edit_fact(model, fact, layer, torch.eye(len(covariance))):
                    note(row, layer, "identity", ml.edit_scores(model, fact, **given))
                with tuned(model, fact, layer):
                    note(row, layer, "tuning", ml.edit_scores(model, fact, **given))
    covariance = ml.load_covariance(DATA / "rome" / f"smollm2_layer{LAYER}.safetensors")
    test = [entry for entry in facts if entry[0]["split"] == "test"]
    piled = [ml.edit_fact(model, fact, LAYER, covariance) for _, fact, _ in test]
    for row, fact, given in test:
        note(row, LAYER, "piled", ml.edit_scores(model, fact, **given))
    for edit in reversed(piled):
        edit.undo()
    with open(DATA / "reference" / "rome.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows
        )


if __name__ == "__main__":
    main()
