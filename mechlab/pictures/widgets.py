"""Explorers: the few places where moving a slider teaches something.

Each returns an ipywidgets box that works with the keyboard, recomputes on the live model, writes what it
shows as text too, and leaves a copy in the file (boxes.py).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.metrics import Metric
from mechlab.pictures import drawing
from mechlab.pictures.boxes import lasting
from mechlab.results import token_labels
from mechlab.runs.hooks import intervene, replace_head

if TYPE_CHECKING:
    import ipywidgets
    from transformer_lens.model_bridge import TransformerBridge

    from mechlab.discovery.features import Activity
    from mechlab.discovery.sae import SparseAutoencoder
    from mechlab.discovery.superposition import ToyModels
    from mechlab.discovery.tuned_lens import AffineLens


def patch_explorer(
    model: "TransformerBridge",
    base: Int[Tensor, "batch pos"],
    source: Int[Tensor, "batch pos"],
    metric: Metric,
    *,
    layer: int = 0,
    head: int = 0,
    names: tuple[str, str] = ("this prompt", "the other prompt"),
) -> "ipywidgets.Box":
    """Two sliders choose a head; its output is copied from the run on `source` into the run on `base`.

    names: what to call base and source
    """
    with torch.no_grad():
        source_logits, cache = model.run_with_cache(source, names_filter=lambda name: name.endswith("hook_z"))
        start, end = metric(model(base)).mean().item(), metric(source_logits).mean().item()

    def draw(place: tuple[int, int]) -> str:
        with torch.no_grad(), intervene(model, replace_head(model, place, cache)):
            value = metric(model(base)).mean().item()
        rows = [(names[0], start), (f"{names[0]}, head {place[0]}.{place[1]} replaced", value)]
        return drawing.bars([*rows, (names[1], end)], "logit difference (logits)")

    return _head_sliders(model, (layer, head), draw)


def temperature_explorer(
    logits: Float[Tensor, "d_vocab"], words: list[str], *, temperature: float = 1.0, k: int = 8
) -> "ipywidgets.Box":
    """A slider for the sampling temperature; the most likely next tokens and their probabilities follow.

    logits: [d_vocab], the last position of one prompt. words: the texts of the k most likely tokens,
    most likely first.
    """
    import ipywidgets as w

    ends = {"min": 0.1, "max": 3.0, "step": 0.1}
    slider = w.FloatSlider(temperature, description="temperature", continuous_update=False, **ends)
    shown = w.HTML()
    best = logits.topk(k).indices

    def update(_=None) -> None:
        probabilities = (logits / slider.value).softmax(-1)[best].tolist()
        rows = [*zip(map(repr, words[:k]), probabilities, strict=True)]
        shown.value = drawing.bars([*rows, ("all other tokens", 1 - sum(probabilities))], "probability")

    _redraw(update, slider)
    return lasting(w.VBox([slider, shown]))


def lens_explorer(
    model: "TransformerBridge",
    base: Int[Tensor, "batch pos"],
    lenses: dict[str, "AffineLens | None"],
    *,
    entry: int = 12,
    k: int = 5,
) -> "ipywidgets.Box":
    """A slider for the layer; what each lens would say next if the model stopped there, for one prompt.

    lenses: name -> an `AffineLens`, or None for the plain logit lens.
    """
    import ipywidgets as w
    from transformer_lens.tools.analysis import logit_lens

    asked: dict[str, Any] = {"top_k": k, "return_type": "probs"}
    read = {name: logit_lens(model, base[:1], lens=lens, **asked).readout for name, lens in lenses.items()}
    slider = w.IntSlider(entry, 0, model.cfg.n_layers, description="layer", continuous_update=False)
    shown = {name: w.HTML(layout=w.Layout(margin="0 32px 0 0")) for name in read}

    def update(_=None) -> None:
        for name, found in read.items():
            assert found.top_ids is not None  # asked for with top_k
            ids, values = (each[slider.value, 0].tolist() for each in (found.top_ids, found.values))
            rows = [(repr(model.tokenizer.decode(i)), p) for i, p in zip(ids, values, strict=True)]
            shown[name].value = drawing.bars(rows, f"{name}: probability on entering layer {slider.value}")

    _redraw(update, slider)
    return lasting(w.VBox([slider, w.HBox(list(shown.values()))]))


def pattern_explorer(
    model: "TransformerBridge", base: Int[Tensor, "batch pos"], *, layer: int = 0, head: int = 0
) -> "ipywidgets.Box":
    """Two sliders choose a head; its attention pattern on one prompt, and where each token looks most."""
    with torch.no_grad():
        _, cache = model.run_with_cache(base[:1], names_filter=lambda name: name.endswith("hook_pattern"))
    tokens = token_labels(model, base)

    def draw(place: tuple[int, int]) -> str:
        pattern = cache["pattern", place[0]][0, place[1]].cpu()
        return drawing.grid(pattern, tokens, f"head {place[0]}.{place[1]}")

    return _head_sliders(model, (layer, head), draw)


def toy_explorer(toy: "ToyModels", *, start: int = 0) -> "ipywidgets.Box":
    """A slider for the density of trained toy models with two dimensions: the directions of their features.

    toy: `ToyModels`, one for each stop of the slider.
    """
    import ipywidgets as w

    if toy.W.shape[-1] != 2:
        raise ValueError(f"Directions are drawn in a plane; these models have {toy.W.shape[-1]} dimensions.")
    look = {"description": "density", "layout": w.Layout(width="420px")}
    options = [(f"{density:.3g}", n) for n, density in enumerate(toy.density)]
    slider = w.SelectionSlider(options=options, value=start, continuous_update=False, **look)
    shown = w.HTML()

    def update(_=None) -> None:
        n, sizes = slider.value, toy.W.norm(dim=-1)
        shares = ", ".join(f"{share:.2f}" for share in toy.dimensionality.values[n].tolist())
        words = f"{int((sizes[n] > 0.5).sum())} of {len(sizes[n])} features are kept. "
        words += f"Shares of a dimension: {shares}"
        shown.value = drawing.arrows(toy.W[n], 1.15 * float(sizes.max())) + f"<div>{words}</div>"

    _redraw(update, slider)
    return lasting(w.VBox([slider, shown]))


def feature_browser(
    model: "TransformerBridge", sae: "SparseAutoencoder", activity: "Activity", *, feature: int = 0
) -> "ipywidgets.Box":
    """The page of any feature of a dictionary: by its number, by a word, or drawn at random.

    activity: `feature_activity(model, sae, texts)`. The button is there because features that somebody picked
    for you, or that you looked for, are better than most.
    """
    import ipywidgets as w

    from mechlab.discovery.features import feature_page

    narrow = w.Layout(width="180px")
    number = w.BoundedIntText(feature, 0, sae.d_sae - 1, description="feature", layout=narrow)
    draw = w.Button(description="One at random", tooltip="Show a feature that nobody picked")
    word, found = _feature_search(model, activity, number)
    shown, generator = w.HTML(), torch.Generator().manual_seed(0)

    def update(_=None) -> None:
        shown.value = feature_page(model, sae, activity, number.value)._repr_html_()

    draw.on_click(lambda _: setattr(number, "value", int(torch.randint(sae.d_sae, (), generator=generator))))
    _redraw(update, number)
    return lasting(w.VBox([w.HBox([number, draw, word]), found, shown]))


def _feature_search(
    model: "TransformerBridge", activity: "Activity", number: "ipywidgets.BoundedIntText"
) -> "tuple[ipywidgets.Text, ipywidgets.Select]":
    """A field for a word, and a list of the features most active on it; the one chosen goes to `number`."""
    import ipywidgets as w

    word = w.Text(description="active on", placeholder="a word", continuous_update=False)
    hidden = w.Layout(width="420px", display="none")
    found = w.Select(options=[], rows=5, description="features", layout=hidden)

    def search(_=None) -> None:
        ranked = activity.on_word(model, word.value)
        found.layout.display = "" if word.value.strip() else "none"
        none = (f"{word.value!r} is not in these texts as one token", -1)
        found.options = [(f"{n}: {mean:.1f} on average", n) for n, mean in ranked] or [none]
        if ranked:
            number.value = ranked[0][0]

    def pick(change: dict) -> None:
        if change["new"] is not None and change["new"] >= 0:
            number.value = change["new"]

    word.observe(search, names="value")
    found.observe(pick, names="value")
    return word, found


def _redraw(update: Callable, *controls: "ipywidgets.Widget") -> None:
    """Draw now, and whenever a control changes."""
    for control in controls:
        control.observe(update, names="value")
    update()


def _head_sliders(
    model: "TransformerBridge", start: tuple[int, int], draw: Callable[[tuple[int, int]], str]
) -> "ipywidgets.Box":
    """A slider for the layer and one for the head, over what `draw` makes of them."""
    import ipywidgets as w

    counts = (model.cfg.n_layers, model.cfg.n_heads)
    sliders = [
        w.IntSlider(value, 0, count - 1, description=name, continuous_update=False)
        for name, value, count in zip(("layer", "head"), start, counts, strict=True)
    ]
    shown = w.HTML()

    def update(_=None) -> None:
        shown.value = draw((sliders[0].value, sliders[1].value))

    _redraw(update, *sliders)
    return lasting(w.VBox([w.HBox(sliders), shown]))


def __getattr__(name: str):
    if name == "progress_table":  # the course's; notebooks that learners have ask for it here
        from mechlab.course import progress_table

        return progress_table
    raise AttributeError(f"mechlab.pictures.widgets has no {name!r}.")
