"""Figures: titles, units, centred colours, text twins, size; attention views that need no network."""

import json
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from jaxtyping import TypeCheckError

import mechlab as ml
from mechlab import waiting
from mechlab.pictures import patterns, plots, twins
from mechlab.pictures.boxes import AWAKE
from mechlab.pictures.drawing import bars
from mechlab.pictures.patterns import _circuitsvis, attention_view
from mechlab.pictures.widgets import patch_explorer, temperature_explorer
from mechlab.results import Scores
from mechlab_course.build import execute

HEADS = Scores(
    torch.randn(30, 9, generator=torch.Generator().manual_seed(0)) - 1, ("layer", "head"), "effect (logits)"
)


def test_a_heatmap_is_centred_at_zero_titled_and_small():
    picture = HEADS.plot()
    (trace,) = picture.figure.data
    assert trace.zmid == 0 and trace.zmin == -trace.zmax
    assert picture.figure.layout.title.text == "effect (logits)"
    assert (
        picture.figure.layout.xaxis.title.text == "head" and picture.figure.layout.yaxis.title.text == "layer"
    )
    assert trace.colorbar.title.text == "logits" and picture.figure.layout.title.text == "effect (logits)"
    assert len(picture.figure.to_json()) < 6_000


def test_series_can_be_lines_told_apart_by_shape_too():
    labels = {"probe": ["real", "control"], "layer": ["0", "6", "30"]}
    result = Scores(
        torch.rand(2, 3), ("probe", "layer"), "share right", labels, {"chance": 0.5}, signed=False
    )
    picture = result.plot(lines=True)
    assert [trace.name for trace in picture.figure.data] == ["real", "control"]
    assert list(picture.figure.data[0].x) == [0, 6, 30]  # true distances
    assert len({trace.marker.symbol for trace in picture.figure.data}) == 2


def test_an_unsigned_heatmap_starts_at_zero():
    (trace,) = Scores(torch.rand(3, 4), ("layer", "pos"), "attention", signed=False).plot().figure.data
    assert trace.zmin == 0 and trace.zmid is None


def test_labels_that_look_like_numbers_stay_labels():
    picture = Scores([1.0, -2.0], ("head",), "effect", {"head": ["23.1", "23.10"]}).plot()
    assert picture.figure.layout.xaxis.type == "category"
    assert list(picture.figure.data[0].x) == ["23.1", "23.10"]


def test_bars_carry_intervals_when_there_are_prompts():
    scores = Scores.over_prompts(torch.randn(8, 3), ("part",), "effect", labels={"part": ["a", "b", "c"]})
    bars, numbers = scores.plot().figure.data
    assert bars.error_y.array is not None
    low, high = scores.interval()  # a number stands beyond its interval, away from zero
    assert list(numbers.text) == [f"{v:.2f}" for v in scores.values]
    for at, place, v, *ends in zip(numbers.y, numbers.textposition, scores.values, low, high, strict=True):
        beyond, wanted = (at - ends[1], "top center") if v >= 0 else (ends[0] - at, "bottom center")
        assert 0 < beyond < 0.5 and place == wanted


def test_layers_rise_and_other_named_rows_are_read_from_the_top_down():
    rows = lambda name: Scores(torch.zeros(2, 3), (name, "head"), "x", {name: ["4", "9"]}).plot().figure
    assert rows("layer").layout.yaxis.autorange is True
    assert rows("component").layout.yaxis.autorange == "reversed"


def test_three_dimensions_are_refused():
    with pytest.raises(ValueError, match="A picture needs one or two dimensions"):
        Scores(torch.zeros(2, 2, 2), ("a", "b", "c"), "x").plot()


def test_a_picture_shows_itself_with_its_twin(capsys):
    InteractiveShell.instance()
    shown = []
    from IPython.core import display_functions

    original = display_functions.publish_display_data
    display_functions.publish_display_data = lambda data, *_, **__: shown.append(data)
    try:
        picture = HEADS.plot()
        picture._ipython_display_()
    finally:
        display_functions.publish_display_data = original
    bundle, words = shown
    assert set(bundle) == {"application/vnd.plotly.v1+json", "text/plain"}  # no script, no renderer
    assert bundle["text/plain"] == picture.text
    assert words["text/plain"] == f"In words: {picture.text}" and capsys.readouterr().out == ""
    assert words["text/html"].startswith("<details") and picture.text in words["text/html"]
    assert len(words["text/html"]) < 700
    # a PNG that stands for it in a file is turned with the theme: it is just above the words
    assert f'class="{twins.WORDS}"' in words["text/html"] and f"has(+ * .{twins.WORDS})" in twins.STYLE
    assert HEADS.top(1).place[0] in picture.text


def test_drawing_changes_no_global_template():
    code = (
        "import plotly.io as pio; before = (pio.templates.default, pio.renderers.default)\n"
        "import torch, mechlab as ml; ml.Scores(torch.zeros(2, 2), ('a', 'b'), 'x').plot()\n"
        "assert before == (pio.templates.default, pio.renderers.default)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- attention ---

TOKENS = ["<bos>", " John", "</script><b>", " John"]
PATTERN = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)).tril()


def test_the_view_holds_its_data_and_never_an_address():
    view = attention_view(PATTERN, TOKENS, ["1.0", "1.1"])
    content = view.to_html(with_script=False)
    assert "</script><b>" not in content.replace("&lt;", "<").split("<script>")[1]
    assert not re.search(r"https?://|import ", content)
    assert 500 < len(content) < 3_000
    props = json.loads(re.search(r"AttentionHeads, (.*?)\); else", content)[1])
    assert props["attentionHeadNames"] == ["1.0", "1.1"] and len(props["attention"][0]) == 4
    looked = int(PATTERN[0, -1].argmax())
    assert f"1.0 looks at {TOKENS[looked]!r} {looked}" in view.text


def test_the_bundled_script_is_there_and_holds_the_component():
    script = _circuitsvis()
    assert script.startswith('"use strict";var CircuitsVis=') and "AttentionHeads" in script
    assert len(attention_view(PATTERN, TOKENS, ["1.0", "1.1"]).to_html()) > 1_000_000


def test_only_the_first_cell_of_a_kernel_carries_the_script(monkeypatch):
    class Shell:
        def __init__(self):
            self.user_ns, self.cell = {}, "one"

        def get_parent(self):
            return {"metadata": {"cellId": self.cell}}

    shell = Shell()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    assert patterns._script_needed() and patterns._script_needed()  # the same cell run again sends it again
    shell.cell = "two"
    assert not patterns._script_needed()
    monkeypatch.setitem(sys.modules, "google.colab", object())
    assert patterns._script_needed()  # each Colab output is a page of its own


def test_wrong_shapes_say_what_is_needed():
    with pytest.raises(
        ValueError, match=r"pattern is \(2, 4, 4\); with 1 heads and 4 tokens it must be \(1, 4, 4\)"
    ):
        attention_view(PATTERN, TOKENS, ["1.0"])
    with pytest.raises(TypeCheckError):
        attention_view(PATTERN[0], TOKENS, ["1.0"])


# --- widgets ---


def test_the_patch_explorer_recomputes_on_the_live_model(gqa):
    pair = ml.prompt_pair(gqa, "When John gave Mary", "When Mary gave John", " Mary", " John")
    box = patch_explorer(gqa, pair.clean, pair.corrupted, pair.metric)
    layer, head = box.children[0].children
    assert "this prompt, head 0.0 replaced" in box.children[1].value
    before = box.children[1].value
    layer.value, head.value = 2, 1
    _, cache = gqa.run_with_cache(pair.corrupted)
    with torch.no_grad(), ml.intervene(gqa, ml.replace_head(gqa, (2, 1), cache)):
        expected = pair.metric(gqa(pair.clean)).item()
    assert box.children[1].value != before
    assert (
        "this prompt, head 2.1 replaced" in box.children[1].value
        and f"{expected:+.2f}" in box.children[1].value
    )


def test_the_temperature_explorer_sharpens_and_flattens():
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0])
    box = temperature_explorer(logits, ["a", "b", "c", "d"], k=3)
    slider, shown, _ = box.children
    for temperature in (0.5, 2.0):
        slider.value = temperature
        assert f">{(logits / temperature).softmax(-1)[0]:.2f}<" in shown.value
    assert "all other tokens" in shown.value


def test_bars_go_both_ways_from_a_line_at_zero():
    made = bars([("a", 3.0), ("b", -1.0)], "logits")
    assert "margin-left:25.0%;width:75.0%;background:#D55E00" in made
    assert "margin-left:0.0%;width:25.0%;background:#0072B2" in made
    assert made.count("25.0% 0/1px") == 2  # the line


def test_an_explorer_leaves_a_copy_and_the_sentence_that_wakes_it():
    box = temperature_explorer(torch.tensor([3.0, 2.0, 1.0, 0.0]), ["a", "b", "c", "d"], k=3)
    box.children[0].value = 2.0
    left = box._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in left
    assert "temperature: 2.0" in left["text/html"] and "all other tokens" in left["text/html"]
    assert AWAKE in left["text/html"] and AWAKE in left["text/plain"] and "VBox" not in left["text/plain"]


def test_a_cell_that_runs_again_leaves_no_widgets_of_its_first_run(monkeypatch):
    from ipywidgets.widgets.widget import _instances

    asked = {"metadata": {"cellId": "one"}, "header": {"msg_id": "1"}}
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(get_parent=lambda: asked))
    make = lambda: temperature_explorer(torch.tensor([3.0, 2.0, 1.0]), ["a", "b"], k=2)
    before, first = len(_instances), [make(), make()]
    both = len(_instances) - before
    asked["header"] = {"msg_id": "2"}
    make()
    assert len(_instances) - before == both / 2 and first[0].comm is None


def test_a_stored_output_keeps_the_copy_and_no_dead_widget_or_line():
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "An explorer."}
    output = {"data": view | {"text/html": "<p>copy</p>"}, "metadata": {}}
    execute._shrink(output, page=None)
    assert set(output["data"]) == {"text/html", "text/plain"}
    assert execute._is_wiped({"data": {"text/plain": []}}) and execute._is_wiped({"data": {"text/plain": ""}})
    assert not execute._is_wiped({"data": {"text/plain": ["0.5"]}}) and not execute._is_wiped({"text": ["a"]})


def test_a_terminal_gets_one_line_that_is_wiped_out(monkeypatch, capsys):
    monkeypatch.setattr(waiting, "kernel_shell", lambda: None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with waiting.waiting("patching", 2, delay=0) as done:
        time.sleep(0.6)
        done()
    said = capsys.readouterr().err
    assert said.startswith("\rpatching: 50% done, about 1 s left") and said.endswith("\r")
    assert set(said.split("\r")[-2]) == {" "}


def test_a_title_stays_clear_of_the_buttons():
    long = (
        "what each head says, with and without the four name movers, three stand-ins, in logits of the answer"
    )
    title = Scores([1.0, 2.0], ("head",), "x").plot(title=long).figure.layout.title
    lines = title.text.split("<br>")
    assert " ".join(lines) == long and max(map(len, lines)) * 7.5 <= 720 - 70 and title.font.size == 15


def test_every_row_of_a_head_map_is_named_and_gaps_are_said():
    axis = HEADS.plot().figure.layout.yaxis
    assert len(axis.tickvals) == 30 and axis.title.text == "layer"
    few = Scores(torch.zeros(3, 2), ("layer", "head"), "x", {"layer": ["0", "10", "18"]}).plot().figure
    assert few.layout.yaxis.title.text == "layer (not every one)" and few.layout.yaxis.tickvals == (
        "0",
        "10",
        "18",
    )
    words = Scores(torch.zeros(30, 2), ("layer", "pos"), "x", {"pos": ["a very long name of a token"] * 2})
    assert len(words.plot(width=400).figure.layout.yaxis.tickvals) == 30  # under turned names too
    low = HEADS.plot(height=320).figure.layout.yaxis
    assert low.ticktext == tuple(map(str, range(0, 30, 2)))


def test_long_labels_leave_room_for_the_drawing():
    three = ["first sentence", "first sentence, head 23.3 replaced", "second sentence"]
    many = [f"a rather long label, number {n}" for n in range(20)]
    for labels in (three, many):
        fig = (
            ml.Scores(torch.randn(len(labels)), ("run",), "x (logits)", {"run": labels})
            .plot(height=340)
            .figure
        )
        margin = fig.layout.margin
        assert fig.layout.height - margin.t - margin.b >= 160
    fig = ml.Scores(torch.randn(3), ("run",), "x (logits)", {"run": three}).plot(height=340).figure
    assert fig.layout.height == 340 and fig.layout.xaxis.tickangle == 0
    assert fig.layout.xaxis.ticktext[1] == "first sentence, head 23.3<br>replaced"


def test_numbers_on_a_map_are_read_on_white_and_on_dark_paper():
    cell = lambda trace, end: trace.colorscale[end][1]
    for signed, ends in ((True, (0, 2)), (False, (1,))):
        (trace,) = Scores(torch.rand(3, 4), ("a", "b"), "x", signed=signed).plot().figure.data
        for end in ends:
            colours = [cell(trace, end), trace.textfont.color]
            for pair in (colours, [turned(colour) for colour in colours]):
                assert contrast(*pair) >= 4.5
    assert cell(HEADS.plot().figure.data[0], 0) == plots.BLUE  # no numbers: the full colours


def rgb(colour):
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def turned(colour):
    """What the style of a dark theme makes of a colour: invert(.93) hue-rotate(180deg)."""
    light = torch.tensor([0.93 * (1 - c) + 0.07 * c for c in rgb(colour)])
    turn = torch.tensor([[-0.574, 1.430, 0.144], [0.426, 0.430, 0.144], [0.426, 1.430, -0.856]])
    return "#" + "".join(f"{round(255 * c):02x}" for c in (turn @ light).clamp(0, 1).tolist())


def contrast(*colours):
    linear = lambda c: c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4
    lights = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in ([*map(linear, rgb(c))] for c in colours)]
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_names_of_lines_and_long_labels_stay_clear_of_the_drawing():
    fig = Scores([0.5, 0.9], ("layer",), "share", {"layer": ["0", "6"]}, {"chance": 0.5}).plot().figure
    (name,) = fig.layout.annotations
    assert (name.x, name.xanchor) == (1, "left") and fig.layout.margin.r >= 7 * len("chance")
    labels = {"from": ["layer 0", "its own layer, on the texts"], "head": [f"23.{n}" for n in range(12)]}
    squeezed = Scores(torch.rand(2, 12), ("from", "head"), "copying (share)", labels).plot(height=260).figure
    assert squeezed.layout.xaxis.tickangle == -90  # beside long names of rows there is less room


def test_a_long_unit_leaves_the_map_its_width():
    long = Scores(torch.rand(3, 2), ("a", "b"), "ahead (share of subjects, mean of eight facts)").plot()
    short = Scores(torch.rand(3, 2), ("a", "b"), "score (share of attention)").plot()
    assert not long.figure.data[0].colorbar.title.text
    assert short.figure.data[0].colorbar.title.text == "share of attention"
    named = Scores(torch.rand(3, 2), ("a", "b"), "x (units of the metric)").plot(title="x (probability)")
    assert named.figure.data[0].colorbar.title.text == "probability"  # the title's own


def test_a_probability_has_no_sign_and_arrows_fit_the_pane():
    assert "<code>0.90</code>" in bars([("a", 0.9), ("b", 0.1)], "probability")
    assert "<code>+0.90</code>" in bars([("a", 0.9), ("b", -0.1)], "logits")
    for panels in (1, 3, 6):
        fig = plots.arrows([torch.rand(3, 2)] * panels, ["p"] * panels, "features").figure
        assert fig.layout.width <= 940


def test_an_axis_is_called_what_people_call_it():
    found = ml.Scores(torch.randn(2, 3), ("layer", "pos"), "share")
    assert "2 rows (layer) × 3 columns (position)" in found.summary()
    assert found.plot().figure.layout.xaxis.title.text == "position"
    assert ml.Scores([1.0, 2.0], ("pos",), "share").plot().figure.layout.xaxis.title.text == "position"
