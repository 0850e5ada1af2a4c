"""The README's picture: which of the 270 heads carry the answer? Run it with `python docs/make_picture.py`.

Each head in turn says, in the first sentence, what it said in the second; the picture shows how far the logit
difference falls. It needs the model and Chromium.
"""

import base64
import json
from pathlib import Path

import torch

import mechlab as ml
from mechlab_course.build.execute import browser_page, png_of_plotly

model = ml.load()
pair = ml.prompt_pair(
    model,
    "When John and Mary went to the store, John gave a drink to",
    "When John and Mary went to the store, Mary gave a drink to",
    " Mary",
    " John",
)
fall = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
with torch.no_grad():
    _, cache = model.run_with_cache(pair.corrupted, names_filter=ml.only("hook_z"))
    clean = pair.metric(model(pair.clean)).item()
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            with ml.intervene(model, ml.replace_head(model, (layer, head), cache)):
                fall[layer, head] = clean - pair.metric(model(pair.clean)).item()
scores = ml.Scores(fall, ("layer", "head"), "fall of the logit difference (logits)")
print(scores.summary())
print(scores.top(6))
picture = scores.plot(width=560, height=640, title="Replace one head's output: how far does the answer fall?")
with browser_page() as page:
    png = png_of_plotly(page, json.loads(picture.figure.to_json()))
Path(__file__).with_name("heads.png").write_bytes(base64.b64decode(png))
