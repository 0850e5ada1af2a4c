"""Fit data/lens/smollm2.safetensors, the affine lens (least squares) of notebook 21, on the model's own text.

    python data/make/tuned_lens.py        about four minutes on two cores

Uses data/text/smollm2.jsonl except its first 40 long texts, which the notebook tests on.
"""

import mechlab as ml
from mechlab.reference import data_dir
from mechlab.text import own_text

if __name__ == "__main__":
    model = ml.load("smollm2")
    texts = own_text(model, length=81)[40:1100]
    lens = ml.AffineLens.fit(model, texts)
    (data_dir() / "lens").mkdir(exist_ok=True)
    lens.save(data_dir() / "lens" / "smollm2.safetensors")
    print(f"fitted on {len(texts)} texts of {texts.shape[1]} tokens")
