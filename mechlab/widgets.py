"""Explorers: the few places where moving a slider teaches something.

Each returns an ipywidgets box that works with the keyboard, recomputes on the live model, and writes what it
shows as text too.
"""

from typing import TYPE_CHECKING

import torch

from mechlab.hooks import intervene, replace_head
from mechlab.metrics import Metric

if TYPE_CHECKING:
    import ipywidgets
    from transformer_lens.model_bridge import TransformerBridge


def patch_explorer(
    model: "TransformerBridge",
    base: torch.Tensor,
    source: torch.Tensor,
    metric: Metric,
    *,
    layer: int = 0,
    head: int = 0,
) -> "ipywidgets.VBox":
    """Two sliders choose a head; its output is copied from the run on `source` into the run on `base`."""
    import ipywidgets as w

    with torch.no_grad():
        source_logits, cache = model.run_with_cache(source, names_filter=lambda name: name.endswith("hook_z"))
        start, end = metric(model(base)).mean().item(), metric(source_logits).mean().item()
    layer_slider = w.IntSlider(layer, 0, model.cfg.n_layers - 1, description="layer", continuous_update=False)
    head_slider = w.IntSlider(head, 0, model.cfg.n_heads - 1, description="head", continuous_update=False)
    shown = w.HTML()

    def update(_=None) -> None:
        place = (layer_slider.value, head_slider.value)
        with torch.no_grad(), intervene(model, replace_head(model, place, cache)):
            value = metric(model(base)).mean().item()
        rows = [("this prompt", start), (f"head {place[0]}.{place[1]} from the other prompt", value)]
        shown.value = _bars([*rows, ("the other prompt", end)], "logit difference")

    for slider in (layer_slider, head_slider):
        slider.observe(update, names="value")
    update()
    return w.VBox([w.HBox([layer_slider, head_slider]), shown])


def temperature_explorer(
    logits: torch.Tensor, words: list[str], *, temperature: float = 1.0, k: int = 8
) -> "ipywidgets.VBox":
    """A slider for the sampling temperature; the most likely next tokens and their probabilities follow.

    logits: [d_vocab], the last position of one prompt. words: the texts of the k most likely tokens,
    most likely first.
    """
    import ipywidgets as w

    slider = w.FloatSlider(
        temperature, min=0.1, max=3.0, step=0.1, description="temperature", continuous_update=False
    )
    shown = w.HTML()
    best = logits.topk(k).indices

    def update(_=None) -> None:
        probabilities = (logits / slider.value).softmax(-1)[best].tolist()
        rest = 1 - sum(probabilities)
        rows = [
            *zip([repr(word) for word in words[:k]], probabilities, strict=True),
            ("all other tokens", rest),
        ]
        shown.value = _bars(rows, "probability")

    slider.observe(update, names="value")
    update()
    return w.VBox([slider, shown])


def progress_table() -> "ipywidgets.VBox":
    """The learner's progress, with a button that reads it again."""
    import ipywidgets as w

    from mechlab.course import progress

    button, shown = w.Button(description="Refresh", tooltip="Read the progress file again"), w.HTML()
    update = lambda _=None: setattr(shown, "value", progress.table().to_html())
    button.on_click(update)
    update()
    return w.VBox([button, shown])


def _bars(rows: list[tuple[str, float]], unit: str) -> str:
    """Rows of label, bar and number: readable as text, drawn with plain HTML."""
    import html

    largest = max(abs(value) for _, value in rows) or 1.0
    cells = "".join(
        f'<tr><td style="text-align:right;padding-right:8px">{html.escape(label)}</td><td style="width:320px">'
        f'<div style="height:14px;width:{abs(value) / largest * 100:.0f}%;background:{"#D55E00" if value >= 0 else "#0072B2"}">'
        f'</div></td><td style="padding-left:8px"><code>{value:+.2f}</code></td></tr>'
        for label, value in rows
    )
    return f'<table><caption style="text-align:left">{unit}</caption>{cells}</table>'


def lens_explorer(
    model: "TransformerBridge", base: torch.Tensor, lenses: dict, *, entry: int = 12, k: int = 5
) -> "ipywidgets.VBox":
    """A slider for the layer; what each lens would say next if the model stopped there, for one prompt.

    lenses: name -> a `TunedLens`, or None for the plain logit lens.
    """
    import ipywidgets as w
    from transformer_lens.tools.analysis import logit_lens

    read = {
        name: logit_lens(model, base[:1], lens=lens, top_k=k, return_type="probs").readout
        for name, lens in lenses.items()
    }
    slider = w.IntSlider(entry, 0, model.cfg.n_layers, description="layer", continuous_update=False)
    shown = {name: w.HTML(layout=w.Layout(margin="0 32px 0 0")) for name in read}

    def update(_=None) -> None:
        for name, found in read.items():
            ids, values = found.top_ids[slider.value, 0], found.values[slider.value, 0]
            rows = [
                (repr(model.tokenizer.decode(int(i))), float(p)) for i, p in zip(ids, values, strict=True)
            ]
            shown[name].value = _bars(rows, f"{name}: probability on entering layer {slider.value}")

    slider.observe(update, names="value")
    update()
    return w.VBox([slider, w.HBox(list(shown.values()))])
