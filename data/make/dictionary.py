"""Train data/sae/smollm2_layer12, the larger dictionary of notebook 26, on the model's own text.

    python data/make/dictionary.py          about 20 minutes on two cores
    python data/make/dictionary.py again    train another one from another start and compare: nothing is written

Beside the dictionary lies activity.safetensors: where each feature is active in the first 400 texts, for the feature pages.
Residual stream on leaving layer 12, position 0 and the few outliers (the attention sink) left out; top-k. The first 40
texts of 81 tokens are kept for testing.
"""

import sys

import mechlab as ml
from mechlab.reference import data_dir

LAYER, WIDTH, K, STEPS = 12, 2304, 32, 3000


if __name__ == "__main__":
    again = "again" in sys.argv[1:]
    hook, folder = f"blocks.{LAYER}.hook_resid_post", data_dir() / "sae" / "smollm2_layer12"
    model = ml.load("smollm2")
    texts = ml.own_text(model, length=81)
    data = ml.token_activations(model, texts[40:], hook)
    print(f"{len(data)} tokens", flush=True)
    given = {"width": WIDTH, "k": K, "steps": STEPS, "batch": 1024, "rate": 1e-3, "hook": hook}
    trained = ml.train_sae(data, seed=int(again), **given)
    for row in trained.history[::5] + trained.history[-1:]:
        print({name: round(value, 3) for name, value in row.items()}, file=sys.stderr)
    if again:
        shipped = ml.SparseAutoencoder.load(folder)
        best = (shipped.W_dec @ trained.sae.W_dec.T).max(1).values
        print(f"best partner: mean cosine {best.mean():.2f}, above 0.7: {(best > 0.7).float().mean():.2f}")
    else:
        trained.sae.save(folder, half=True)
        ml.feature_activity(model, ml.SparseAutoencoder.load(folder), texts[:400]).save(
            folder / "activity.safetensors"
        )
    print(ml.splice(model, trained.sae, texts[:40]))
