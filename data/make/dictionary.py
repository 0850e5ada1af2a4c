"""Train data/sae/smollm2_layer12, the larger dictionary of notebook 26, on the model's own text.

    python data/make/dictionary.py        about 20 minutes on two cores

Residual stream on leaving layer 12, position 0 and the few outliers (the attention sink) left out; top-k. The first 40
texts of 81 tokens are kept for testing.
"""

import sys

import torch

import mechlab as ml
from mechlab.reference import data_dir

LAYER, WIDTH, K, STEPS = 12, 2304, 32, 3000


@torch.no_grad()
def activations(model, texts, layer: int, batch: int = 32) -> torch.Tensor:
    """[token, d_model], without position 0 and without streams five times as long as usual."""
    name, found = f"blocks.{layer}.hook_resid_post", []
    for rows in texts.split(batch):
        _, cache = model.run_with_cache(rows, names_filter=name, stop_at_layer=layer + 1)
        found.append(cache[name][:, 1:].flatten(0, 1))
    found = torch.cat(found)
    length = found.norm(dim=1)
    return found[length < 5 * length.median()]


if __name__ == "__main__":
    model = ml.load("smollm2")
    texts = ml.own_text(model, length=81)
    data = activations(model, texts[40:], LAYER)
    print(f"{len(data)} tokens", flush=True)
    hook = f"blocks.{LAYER}.hook_resid_post"
    trained = ml.train_sae(data, width=WIDTH, k=K, steps=STEPS, batch=1024, rate=1e-3, hook=hook, seed=0)
    for row in trained.history[::5] + trained.history[-1:]:
        print({name: round(value, 3) for name, value in row.items()}, file=sys.stderr)
    trained.sae.save(data_dir() / "sae" / "smollm2_layer12", half=True)
    print(ml.splice(model, trained.sae, texts[:40]))
