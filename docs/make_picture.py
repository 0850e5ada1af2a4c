"""The pictures by which the course is known. Run `python docs/make_picture.py`; it needs Chromium.

docs/heads.png                   the README's: which of the 270 heads carry the answer? It needs the model
mechlab_course/site/social.png   the same with the course's name, seen where a link to the site is passed on;
                                 `python docs/make_picture.py social` makes this one alone

Each head in turn says, in the first sentence, what it said in the second; the picture shows how far the logit
difference falls.
"""

import base64
import json
import sys
from pathlib import Path

from mechlab_course.build.execute import browser_page, png_of_plotly

ROOT = Path(__file__).parents[1]
HEADS, SOCIAL = ROOT / "docs" / "heads.png", ROOT / "mechlab_course" / "site" / "social.png"
CARD = """<style>
body { margin: 0; width: 1200px; height: 630px; display: flex; align-items: center; background: #fff;
  color: #20242a; font-family: system-ui, "DejaVu Sans", sans-serif; }
div { flex: 1; padding: 0 56px 0 72px; }
h2 { font-size: 34px; color: #0b5c92; margin: 0 0 26px; }
h1 { font-size: 62px; line-height: 1.12; letter-spacing: -0.02em; margin: 0 0 30px; }
p { font-size: 29px; line-height: 1.4; color: #565d66; margin: 0; }
img { height: 610px; margin-right: 24px; }
</style>
<div><h2>mechlab</h2><h1>Open up a language model, by doing it</h1>
<p>Notebooks and a package.<br>A real model, offline, on a laptop.</p></div>
<img src="data:image/png;base64,HEADS">"""


def heads() -> bytes:
    """How far the answer falls when each head in turn is replaced."""
    import torch

    import mechlab as ml

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
    title = "Replace one head's output: how far does the answer fall?"
    picture = scores.plot(width=560, height=640, title=title)
    with browser_page() as page:
        return base64.b64decode(png_of_plotly(page, json.loads(picture.figure.to_json())))


def social() -> bytes:
    """The picture of the heads beside the course's name, 1200 by 630 pixels."""
    with browser_page(width=1200, height=630) as page:
        page.set_content(CARD.replace("HEADS", base64.b64encode(HEADS.read_bytes()).decode()))
        return page.screenshot()


if __name__ == "__main__":
    if sys.argv[1:] != ["social"]:
        HEADS.write_bytes(heads())
    SOCIAL.write_bytes(social())
