"""The picture of a contrast: what it draws and tells, what turning a group does, and what a page keeps of it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest
import torch

import mechlab as ml
from mechlab.pictures.tracing.drawn import LARGEST, Layout, flow_svg
from mechlab.pictures.tracing.flow import STRENGTHS, Example, Flow, Inside, Part, Step, turns
from mechlab.pictures.tracing.told import in_words, likely, needle, sentence, steps_table, told
from mechlab.pictures.tracing.turning import Insides, Turning, flow_of
from tests.test_hooks import hooks_left

ROOT = Path(__file__).parents[1]
STORED = ROOT / "data" / "tracing" / "explorer.json"
BASE, SOURCE = torch.randint(5, 390, (2, 3, 7), generator=torch.Generator().manual_seed(3))
SOURCE[:, :4] = BASE[:, :4]
PROMPT = torch.randint(5, 390, (1, 7), generator=torch.Generator().manual_seed(4))
ANSWERS = ml.logit_difference(20, 30)
GROUP = [(0, 4, 3), (2, 6, 11), (1, 4, 7)]
OTHERS = [(1, 4, 7), (1, 5, 9)]  # one of them is in the group, too
LATE = [(2, 6, 1), (2, 6, 2), (2, 5, 0)]


@pytest.fixture(scope="module")
def contrast():
    return ml.Contrast(ml.tiny("gqa"), BASE, SOURCE, ANSWERS)


def knobs(model) -> tuple[list, list]:
    between = lambda name, group: ml.Knob.between(model, name, group, SOURCE, BASE)
    return [between("first", GROUP), between("second", OTHERS)], [between("late", LATE)]


def posts(model, hooks=()) -> tuple[torch.Tensor, torch.Tensor]:
    """The neurons of each layer in a run with some hooks, [layer pos neuron], and the last probabilities."""
    found = {}
    watch = [
        (f"blocks.{n}.mlp.hook_post", lambda x, hook: found.update({hook.name: x[0].clone()}))
        for n in range(3)
    ]
    with torch.no_grad(), ml.intervene(model, [*hooks, *watch]):
        logits = model(PROMPT)
    return torch.stack([found[f"blocks.{n}.mlp.hook_post"] for n in range(3)]), logits[0, -1].softmax(-1)


# --- turning ---


@pytest.mark.parametrize("held", [None, 0])
def test_a_step_is_added_to_what_neurons_have_and_groups_that_share_one_add_up(tiny, held):
    turned, late = knobs(tiny)
    strengths = (1.5, -0.75)
    own, _ = posts(tiny)
    goal = own.clone()
    for knob, strength in zip(turned, strengths, strict=True):
        for (layer, pos, n), way in zip(knob.neurons, knob.to - knob.around, strict=True):
            goal[layer, pos, n] += strength * way
    places = list(dict.fromkeys([*GROUP, *OTHERS, *(LATE if held == 0 else [])]))
    to = torch.stack([goal[place] for place in places])
    after, expected = posts(tiny, ml.group_hooks(tiny, places, to=to))
    steps = Turning(tiny, PROMPT, turned, late).steps(
        [((0.0, 0.0), None), (strengths, held), ((1.0, 0.0), None)]
    )
    assert [p for _, p in steps[1].likely] == pytest.approx(expected.topk(5).values.tolist(), abs=1e-5)
    assert steps[1].likely[0][0] == tiny.to_string([int(expected.argmax())])
    way = late[0].to - torch.stack([own[place] for place in LATE])
    moved = torch.stack([after[place] - own[place] for place in LATE])
    assert steps[1].gone[0] == pytest.approx(float((moved * way.sign()).sum() / way.abs().sum()), abs=1e-5)
    assert (steps[1].gone[0] == 0) == (held == 0)
    assert steps[0].gone[0] == pytest.approx(0, abs=1e-6)
    assert [p for _, p in steps[0].likely] == pytest.approx(posts(tiny)[1].topk(5).values.tolist(), abs=1e-5)


def test_a_late_group_that_stands_where_it_is_on_base_has_gone_all_the_way(gqa):
    turned, late = knobs(gqa)
    same = ml.Knob("late", LATE, late[0].around, ml.group_values(gqa, PROMPT, LATE)[0])
    (step,) = Turning(gqa, BASE[:1], turned, [same]).steps([((0.0, 0.0), None)])
    assert step.gone[0] == pytest.approx(0, abs=1e-6)
    own = ml.group_values(gqa, BASE[:1], LATE)[0]
    on_them = ml.Knob("on the late ones", LATE, own, same.to)
    (step,) = Turning(gqa, BASE[:1], [on_them], [same]).steps([((1.0,), None)])
    assert step.gone[0] == pytest.approx(1, abs=1e-5)


def test_what_cannot_be_turned_is_refused(gqa):
    turned, _ = knobs(gqa)
    with pytest.raises(ValueError, match="'x': around is \\(2,\\), and there are 3 neurons"):
        ml.Knob("x", GROUP, torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match="the number of neurons"):
        ml.Knob("x", [], torch.zeros(0), torch.zeros(0))
    with pytest.raises(ValueError, match="There is no group to turn"):
        Turning(gqa, PROMPT, [])
    with pytest.raises(ValueError, match="in one prompt, and these are 3"):
        Turning(gqa, BASE, turned)
    with pytest.raises(ValueError, match="position"):
        Turning(gqa, PROMPT[:, :5], turned)


# --- the flow ---


def test_parts_are_the_largest_heads_and_mlps_with_their_shares(contrast):
    flow = flow_of(contrast, names=("a", "b"), title="x", most=9)
    change = float(contrast.change.mean())
    found = {(p.layer, p.pos, p.head): p.share for p in flow.parts}
    totals = {unit: contrast.totals(unit).values / change for unit in ("mlp", "head")}
    for (layer, pos, head), share in found.items():
        value = totals["mlp"][layer, pos] if head is None else totals["head"][layer, pos, head]
        assert share == pytest.approx(float(value), abs=1e-4)
    every = torch.cat([each.abs().flatten() for each in totals.values()]).sort(descending=True).values
    assert len(found) == 9 and min(map(abs, found.values())) >= float(every[8]) - 1e-4
    assert min(pos for _, pos, _ in found) >= 4  # before, nothing changed
    assert flow.change == pytest.approx(change) and len(flow.tokens) == 7
    for part in flow.parts:
        for pos, share in part.looks:
            runs = (contrast.base, contrast.source)
            rows = [run.at("pattern", part.layer)[:, part.pos, part.head, pos] for run in runs]
            assert share == pytest.approx(float(sum(rows).mean() / 2), abs=0.006) and 0 < pos != part.pos


def test_inside_an_mlp_are_its_largest_neurons_with_both_means(contrast):
    inside = Insides(contrast, k=5).of(Part(1, 5, 0.2))
    shares = contrast.totals().values[1, 5] / float(contrast.change.mean())
    best = shares.abs().topk(5).indices.tolist()
    assert [row[0] for row in inside.rows] == [f"L1N{n}" for n in best] and inside.words.startswith(
        "writes more of ("
    )
    assert Insides(contrast, k=5).of(Part(2, 5, 0.2)).words == "writes more of (seldom words so early)"
    for n, (_, share, base, source, words) in zip(best, inside.rows, strict=True):
        assert share == pytest.approx(float(shares[n]), abs=6e-4)
        means = [float(run.at("post", 1)[:, 5, n].mean()) for run in (contrast.base, contrast.source)]
        assert [base, source] == pytest.approx(means, abs=6e-4)
        table = ml.value_tokens(contrast.model, (1, n), 4)
        assert words == " ".join(map(repr, table["raises" if means[0] >= means[1] else "lowers"]))


def test_early_neurons_are_read_on_texts_in_the_direction_of_their_change(contrast):
    texts = {"p": "In Paris they say", "i": "In", "a": "A much longer text, about nothing at all"}
    inside = Insides(contrast, texts, k=4)
    found = inside.of(Part(1, 5, 0.2))
    assert found.words == "most so on" and inside.of(Part(2, 5, 0.2)).words == "most so on"
    for name, _, base, source, words in found.rows:
        neuron = int(name.partition("N")[2])
        read = ml.neuron_reads(contrast.model, (1, neuron), [*texts.values()], names=[*texts])
        order = read if base >= source else read[::-1]
        assert words == ", ".join(f"{x} {y:.1f}" for x, y in zip(order.text, order.activation, strict=True))


# --- the drawing ---

PARTS = (
    Part(0, 4, 1.0),
    Part(2, 4, -0.25),
    Part(2, 6, 0.5, 1, ((4, 0.6), (2, 0.3))),
    Part(2, 6, 0.1),
    Part(2, 6, 0.05, 0),
)
TOKENS = tuple((f"' {x}'", f"' {y}'") for x, y in zip("abcdxfx", "abcdyfx", strict=True))
FLOW = Flow("y − x (logits)", 4.0, ("this", "that"), TOKENS, PARTS)


def test_parts_stand_by_position_and_layer_and_what_carries_nothing_is_folded():
    layout = Layout(FLOW)
    assert layout.layers == [2, 0]
    assert [(c.positions, c.folded) for c in layout.columns] == [((0, 1, 2, 3), True), ((4,), False), ((5,), True), ((6,), False)]  # fmt: skip
    places = {FLOW.called(part): area for part, area in layout.places()}
    assert list(places) == ["MLP 0 at ' x' 4", "MLP 2 at ' x' 4", "MLP 2 at ' x' 6", "2.0 at ' x' 6", "2.1 at ' x' 6"]  # fmt: skip
    assert [area[0] for area in places.values()] == [3, 2, 2, 2, 2]
    late = [area[1] for part, area in layout.places() if part.pos == 6]
    assert late == sorted(late) and late[1] - late[0] == 2  # side by side, the MLP first
    assert all(area[3] <= late[0] for part, area in layout.places() if part.pos == 4)


def test_a_mark_is_as_large_as_its_share_and_dashed_against():
    drawn = flow_svg(FLOW)
    squares = [
        (float(w), mark) for w, mark in re.findall(r'<rect [^>]*width="([\d.]+)" height="\1" (.*?)/>', drawn)
    ]
    assert [side for side, _ in squares] == pytest.approx([LARGEST, LARGEST / 2, LARGEST * 0.1**0.5], abs=0.1)
    assert ["dash" in mark for _, mark in squares] == [False, True, False]
    circles = [float(r) for r in re.findall(r'<circle [^>]*r="([\d.]+)" stroke', drawn)]
    assert circles[1] / circles[0] == pytest.approx(10**0.5, rel=0.03)  # shares .05 and .5
    assert drawn.count("Q") == 1  # from position 4; 2 is folded
    assert 'role="img"' in drawn and "aria-label" in drawn


def test_words_say_what_the_drawing_shows():
    text = in_words(FLOW, most=2)
    assert text.startswith(
        "y − x (logits): +4.00 from that to this. The largest of 5, as shares of the change"
    )
    assert "MLP 0 at ' x' 4 +1.00; 2.1 at ' x' 6 +0.50." in text
    assert "against it" in told(FLOW, PARTS[1]) and "It looks at: &#x27; x&#x27; 0.60" in told(FLOW, PARTS[2])
    inside = Inside("writes more of", (("L0N1", 0.25, 1.5, -0.5, "' <b>'"),))
    assert "&lt;b&gt;" in told(FLOW, PARTS[0], inside) and "<td" in told(FLOW, PARTS[0], inside)


def test_bars_have_one_scale_and_a_needle_stays_on_its_line():
    width = lambda step: float(re.search(r"width:([\d.]+)%", likely(step))[1])
    assert width(Step(((" a", 0.4), (" b", 0.1)))) == 40 and width(Step(((" a", 0.2),))) == 20
    at = lambda gone: float(re.search(r"translate\(([-\d.]+) 0\)", needle("late", gone))[1])
    assert at(1) - at(0) == 2 * (at(0.5) - at(0)) and at(7) == at(1.5) and at(-9) == at(-0.5)
    assert 'aria-label="late: 7.00 of the way gone"' in needle("late", 7)


# --- what a page keeps ---


@pytest.fixture(scope="module")
def example(contrast):
    model = contrast.model
    turned, late = knobs(model)
    wanted = turns(2, 1)
    steps = dict(zip(wanted, Turning(model, PROMPT, turned, late).steps(wanted), strict=True))
    flow = flow_of(contrast, most=6)
    inside = {flow.called(p): Insides(contrast, k=3).of(p) for p in flow.parts if p.head is None}
    return Example("one", "a prompt", flow, inside, (("first", 3), ("second", 2)), (("late", 3),), steps)


def test_an_example_comes_back_from_its_file(example):
    kept = json.loads(json.dumps(example.to_dict()))
    again = Example.from_dict(kept)
    assert (again.flow, dict(again.inside), again.knobs, again.late) == (example.flow, dict(example.inside), example.knobs, example.late)  # fmt: skip
    assert list(again.steps) == turns(2, 1) and len(again.steps) == 17 * 17 * 2
    for turn, step in example.steps.items():
        assert [t for t, _ in again.steps[turn].likely] == [t for t, _ in step.likely]
        values = [*(p for _, p in step.likely), *step.gone]
        assert [*(p for _, p in again.steps[turn].likely), *again.steps[turn].gone] == pytest.approx(
            values, abs=0.0051
        )
    assert json.loads(json.dumps(again.to_dict())) == kept


def test_the_table_says_every_strength_of_one_group(example):
    table = steps_table(["first", "second"], ["late"], example.steps, 1)
    assert table.count("<tr>") == 18 and "second, all else left as it is" in table
    step = example.steps[(0.0, 1.25), None]
    assert (
        f"{step.likely[0][1]:.2f}" in table.split("+1.25")[1]
        and f"{step.gone[0]:.2f}" in table.split("+1.25")[1]
    )
    said = sentence(["first", "second"], ["late"], ((0.0, 1.25), 0), example.steps[(0.0, 1.25), 0])
    assert (
        said.startswith("first at +0.00, second at +1.25, late held: ") and "late: 0.00 of the way." in said
    )


def test_the_page_is_drawn_without_torch():
    code = (
        "import sys; from mechlab.pictures.tracing import drawn, flow, told; from mechlab_course.site import turning;"
        "from pathlib import Path; assert turning.turning_pages(Path('.')); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr


def stored() -> list[Example]:
    return [Example.from_dict(each) for each in json.loads(STORED.read_text(encoding="utf-8"))]


def test_what_is_stored_is_small_and_the_groups_do_what_chance_does_not():
    assert STORED.stat().st_size < 300_000
    for example in stored():
        answer = lambda turn, example=example: dict(example.steps[turn].likely)
        old, new = (re.findall(r"' \w+'", example.flow.title)[n].strip("'") for n in (1, 0))
        clean = answer(((0.0, 0.0), None))
        assert max(clean, key=clean.get) == old and clean[old] > 0.4 and clean.get(new, 0) < 0.2, example.name
        assert answer(((2.0, 0.0), None))[new] > 0.6 and answer(((2.0, 0.0), None)).get(old, 0) < 0.1
        late, chance = example.steps[(1.5, 0.0), None].gone  # "Ten by chance go about as far"
        assert abs(late - chance) < 0.12 and min(late, chance) > 0.25
        for strength in STRENGTHS:
            assert answer(((0.0, strength), None))[old] > clean[old] - 0.1, (example.name, strength)
        assert Layout(example.flow).size[0] <= 545 and Layout(example.flow).size[1] <= 645


@pytest.mark.model
def test_the_stored_steps_are_those_of_the_model(smollm2):
    """One of the examples, made again at a few turns, with the groups by hand."""
    few = "In Salzburg people speak German. In Rio people speak Portuguese. In {} people speak"
    example = next(each for each in stored() if "Lyon" in each.prompt)
    pairs = [(a, b) for a in ("Rome", "Milan", "Florence") for b in ("Paris", "Nice")]
    base, source = ([few.format(pair[side]) for pair in pairs] for side in (0, 1))
    metric = ml.logit_difference(*(smollm2.to_single_token(word) for word in (" Italian", " French")))
    contrast = ml.Contrast(smollm2, base, source, metric)
    group = ml.supernode(contrast.totals(), 15, 25, layers=range(4, 30))
    own = ml.group_values(smollm2, few.format("Lyon"), group)[0]
    way = ml.group_values(smollm2, base, group).mean(0) - ml.group_values(smollm2, source, group).mean(0)
    for strength in (-2.0, 0.0, 1.5):
        hooks = ml.group_hooks(smollm2, group, to=own + strength * way)
        with torch.no_grad(), ml.intervene(smollm2, hooks):
            said = smollm2(few.format("Lyon"))[0, -1].softmax(-1)
        for token, p in example.steps[(strength, 0.0), None].likely:
            assert p == pytest.approx(float(said[smollm2.to_single_token(token)]), abs=0.01)
    assert flow_of(contrast).change == pytest.approx(example.flow.change, abs=0.01)


# --- in a notebook ---


class Hands:
    """An explorer and what a person sees of it."""

    def __init__(self, contrast, **given):
        turned, late = knobs(contrast.model)
        self.box = ml.tracing_explorer(contrast, PROMPT, turned, late, most=6, **given)
        _, canvas, panel, _ = self.box.children
        self.drawn, *buttons = canvas.children
        self.buttons = {button.description: button for button in buttons}
        _, _, self.first, self.second, row, self.status, self.result, self.told, self.words = panel.children
        self.held, self.back = row.children

    def said(self) -> str:
        return re.search(r'class="mechlab-said">(.*?)</p>', self.result.value)[1]


def test_a_slider_turns_the_model_and_back(contrast):
    hands = Hands(contrast)
    turned, late = knobs(contrast.model)
    wanted = [((0.0, 0.0), None), ((1.5, 0.0), None), ((1.5, -1.0), None), ((1.5, -1.0), 0)]
    steps = Turning(contrast.model, PROMPT, turned, late).steps(wanted)
    expected = [f"{step.likely[0][1]:.2f}" for step in steps]
    start = hands.said()
    assert "first at +0.00, second at +0.00:" in start and expected[0] in start
    assert not hands.first.continuous_update and (hands.first.min, hands.first.max, hands.first.step) == (
        -2,
        2,
        0.25,
    )
    hands.first.value = 1.5
    assert "first at +1.50" in hands.said() and expected[1] in hands.said()
    hands.second.value = -1.0
    hands.held.value = 0
    assert "second at -1.00, late held:" in hands.said() and expected[3] in hands.said()
    hands.back.click()
    assert hands.said() == start and hands.held.value is None and hands.status.value == ""
    assert hooks_left(contrast.model) == 0


def test_a_part_is_chosen_and_told_by_a_named_button(contrast):
    hands = Hands(contrast)
    assert "Look inside" in hands.told.value and "change" in hands.words.value
    mlp = next(name for name in hands.buttons if name.startswith("MLP"))
    head = next(name for name in hands.buttons if not name.startswith("MLP"))
    hands.buttons[mlp].click()
    assert hands.told.value.count("<tr>") == 9 and "mechlab-chosen" in hands.buttons[mlp]._dom_classes
    hands.buttons[head].click()
    assert "It looks at" in hands.told.value and "mechlab-chosen" not in hands.buttons[mlp]._dom_classes
    assert all("of the change" in button.tooltip for button in hands.buttons.values())
    copy = hands.box._repr_mimebundle_()["text/html"]
    assert "of the way gone" in copy and "first (3 neurons): 0.0" in copy and "In words" in copy


def test_turning_puts_no_hooks_on_the_model_that_another_thread_would_see(contrast, monkeypatch):
    hands = Hands(contrast)
    monkeypatch.setattr(type(contrast.model), "hooks", None)
    monkeypatch.setattr(type(contrast.model), "forward", None)
    threads = [Thread(target=setattr, args=(hands.first, "value", x)) for x in (0.5, 1.0, 1.5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hands.status.value == "" and f"first at {hands.first.value:+.2f}" in hands.said()
    for button in hands.buttons.values():
        button.click()
        assert hands.status.value == ""


def test_one_late_group_needs_no_list_and_none_is_needed(contrast):
    turned, late = knobs(contrast.model)
    box = ml.tracing_explorer(contrast, PROMPT, turned[:1], late[0])
    assert box.children[2].children[3].children[0].options[1] == ("late", 0)
    box = ml.tracing_explorer(contrast, PROMPT, turned[:1])
    assert box.children[2].children[3].children[0].layout.display == "none"


# --- a graph as a figure ---


def test_a_graph_is_a_figure_of_its_neurons_and_largest_links():
    contrast = ml.Contrast(ml.tiny("gqa"), BASE[:1], SOURCE[:1], ANSWERS)
    nodes = [(0, 4, 4), (0, 6, 11), (1, 4, 7), (1, 6, 2), (2, 6, 5), (2, 6, 9)]
    graph = ml.attribution_graph(contrast, nodes, "y − x")
    picture = graph.plot(most=7, title="a title")
    traces = {trace.name: trace for trace in picture.figure.data}
    assert (
        len(traces["neuron"].x) == 6 and len({*zip(traces["neuron"].x, traces["neuron"].y, strict=True)}) == 6
    )
    heights = dict(zip(traces["neuron"].text, traces["neuron"].y, strict=True))
    named = {node: next(y for text, y in heights.items() if text.startswith(f"L{node[0]}N{node[2]} ")) for node in nodes}  # fmt: skip
    assert named[2, 6, 5] > named[1, 4, 7] > named[0, 6, 11] > traces["embedding"].y[0]
    paths = [shape for shape in picture.figure.layout.shapes if shape.type == "path"]
    values = graph.top(200)
    drawn = values[~values["from"].str.contains("other neurons|patterns|norms")].head(7)
    assert len(paths) == 7 and [p.line.dash is not None for p in paths] == list(drawn.change < 0)
    assert f"{drawn['from'].iloc[0]} to {drawn['to'].iloc[0]} {drawn.change.iloc[0]:+.2f}" in picture.text
    assert picture.figure.layout.title.text == "a title" and "6 neurons" in picture.text
