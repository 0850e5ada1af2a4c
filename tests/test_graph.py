"""A circuit as a picture, and one to touch: what it draws, says and refuses; its numbers against independent ones."""

import json
import re
from itertools import combinations, pairwise
from threading import Thread
from types import SimpleNamespace

import pytest
import torch

import mechlab as ml
from mechlab.circuits.circuits import Circuit, Edge
from mechlab.pictures.graph import circuit_explorer, circuit_picture
from mechlab.pictures.graph.picture import COLOURS, looks, tint
from mechlab.pictures.graph.plan import lay_out
from mechlab.pictures.graph.svg import pixels
from mechlab.pictures.graph.trials import Trials
from tests.test_hooks import hooks_left

ROLES = {"early": [(0, 1), (0, 3)], "middle": [(1, 0)], "late": [(2, 2), (2, 3)]}
AT = {"early": ["S2"], "middle": ["S2", "end"], "late": ["end"]}
EDGES = [
    Edge((0, 1), (1, 0), "v", 0.3),
    Edge((1, 0), (2, 2), "q", -0.5),
    Edge((2, 2), None, "logits", 0.8),
]
CIRCUIT = Circuit(ROLES, AT, EDGES)
PROMPTS = torch.randint(5, 350, (4, 7), generator=torch.Generator().manual_seed(0))
REFERENCE = torch.randint(5, 350, (6, 7), generator=torch.Generator().manual_seed(1))
TEMPLATES = (["a", "b", "a", "b"], ["a", "a", "b", "b", "b", "a"])
POSITIONS = {"S2": torch.tensor([3, 4, 3, 4]), "end": torch.tensor([6, 6, 6, 6])}
ANSWERS, WRONG = torch.tensor([20, 21, 22, 23]), torch.tensor([30, 31, 32, 33])
METRIC = ml.logit_difference(ANSWERS, WRONG)


def ready(model, metric=METRIC, positions=POSITIONS, templates=TEMPLATES) -> ml.CircuitRuns:
    """Any tokens, with templates and positions, as a task."""
    task = lambda tokens, templates: SimpleNamespace(
        tokens=tokens,
        templates=templates,
        metric=metric,
        positions=positions,
        pairs=torch.arange(len(tokens)),
    )
    return ml.CircuitRuns(model, task(PROMPTS, templates[0]), task(REFERENCE, templates[1]))


def big(heads: int = 26) -> Circuit:
    """As large as circuits get: nine heads of one layer at one place, and edges between all neighbours in depth."""
    places = [(5, 6), (8, 1), (14, 3), (15, 7), (16, 0), *[(17, h) for h in range(3)], (18, 6), (20, 0)]
    places += [*[(23, h) for h in range(9)], *[(24, h) for h in range(4)], (29, 0), (29, 1), (29, 2)]
    roles = {f"role {n}": places[n:heads:9] for n in range(9)}
    edges = [Edge(a, b, "q", 0.1) for a, b in combinations(places[:heads], 2) if 0 < b[0] - a[0] < 4]
    return Circuit(roles, {"role 0": ["S2"], "role 1": ["S2", "end"]}, edges)


# --- the picture ---


def test_heads_stand_by_layer_and_position_and_edges_between_them():
    picture = circuit_picture(CIRCUIT, title="A circuit")
    plan = lay_out(CIRCUIT)
    assert [name for name, *_ in plan.columns] == ["S2", "S2 and end", "end"]
    assert plan.layers == [(0, 0.0), (1, 1.0), (2, 2.0)] and plan.logits[1] == 3
    inside = lambda x: next(name for name, left, right in plan.columns if left < x < right)
    assert [inside(plan.heads[h][0]) for h in ((0, 1), (1, 0), (2, 3))] == ["S2", "S2 and end", "end"]
    traces = {trace.name: trace for trace in picture.figure.data}
    assert traces["late"].text == ("2.2: late, at end", "2.3: late, at end")
    assert [traces["late"].x[0], traces["late"].y[0]] == list(plan.heads[2, 2])
    paths = [shape for shape in picture.figure.layout.shapes if shape.type == "path"]
    assert [(p.line.width, p.line.dash) for p in paths] == [(2.9, None), (4.1, "6px,3px"), (6.0, None)]
    assert len({p.line.color for p in paths}) == 2
    told = next(trace.customdata for trace in picture.figure.data if trace.customdata is not None)
    assert told[1] == "1.0 into the queries of 2.2: -0.500"
    assert picture.figure.layout.title.text == "A circuit"
    assert {"effect above 0", "effect below 0"} < set(traces)


def test_the_twin_names_roles_heads_positions_and_edges():
    text = circuit_picture(CIRCUIT, title="A circuit").text
    assert text == (
        "A circuit: 5 heads in layers 0 to 2. Early: 0.1, 0.3, at S2. Middle: 1.0, at S2 and end. Late: 2.2, 2.3, at "
        "end. 3 edges: 2.2 into the logits (+0.80); 1.0 into the queries of 2.2 (-0.50); 0.1 into the values of 1.0 (+0.30)."
    )
    assert "The strongest of" in circuit_picture(big()).text
    assert (
        circuit_picture(Circuit({"all": [(3, 1)]})).text
        == "Circuit: 1 head in layer 3. All: 3.1, everywhere."
    )


def test_roles_are_told_apart_by_shape_and_colour():
    kinds = looks(Circuit({f"role {n}": [(n, 0)] for n in range(20)}))
    assert len(set(kinds.values())) == 20
    first = list(kinds.values())[:8]
    assert len({shape for shape, _ in first}) == len({colour for _, colour in first}) == 8
    assert all(
        int(tint(colour)[i : i + 2], 16) > 175 for colour in COLOURS for i in (1, 3, 5)
    )  # dark text on it


def test_heads_and_labels_of_a_large_circuit_stay_apart():
    circuit = big()
    plan = lay_out(circuit)
    assert len(plan.heads) == 26 and plan.size[0] <= 14
    apart = [abs(a[0] - b[0]) + abs(a[1] - b[1]) for a, b in combinations(plan.heads.values(), 2)]
    assert min(apart) >= 1
    assert all(0.5 <= x <= plan.size[0] - 0.5 and (2 * x) % 1 == 0 for x, _ in plan.heads.values())
    crowd = lay_out(Circuit.of([(3, head) for head in range(16)]))
    assert [y for _, y in crowd.heads.values()].count(0.0) == 8 and crowd.layers == [(3, 0.5)]  # in two lines
    layers = [(layer, y) for layer, y in plan.layers if layer < 23]
    assert all(0.5 <= b[1] - a[1] <= 1 for a, b in pairwise(layers))  # no taller than it must be
    labels = [label for *_, label in plan.edges[:20]]
    assert min(abs(a[0] - b[0]) + abs(a[1] - b[1]) for a, b in combinations(labels, 2)) > 0.15
    assert len(circuit_picture(CIRCUIT).figure.to_json()) < 6_000


@pytest.mark.parametrize(
    ("circuit", "order", "message"),
    [
        (Circuit({"a": []}), None, "The circuit has no heads"),
        (Circuit({"a": [(0, -1)]}), None, r"There is no head \(0, -1\)"),
        (Circuit({"a": [(0, 1)]}, {"a": ["S3"]}), ["S2", "end"], "'a' acts at 'S3', and the positions given are S2, end"),
        (Circuit({"a": [(0, 1), (1, 1)]}, edges=[Edge((1, 1), (0, 1), "q", 1.0)]), None, "which is in no later layer"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(circuit, order, message):
    with pytest.raises(ValueError, match=message):
        circuit_picture(circuit, order=order)


# --- the explorer ---


class Hands:
    """An explorer and what a person sees of it."""

    def __init__(self, model, circuit=CIRCUIT, metric=METRIC, **given):
        start = given.pop("start", None)
        self.box = circuit_explorer(ready(model, metric, **given), circuit, start=start)
        _, canvas, panel, _ = self.box.children
        self.drawn, *buttons = canvas.children
        self.buttons = {button.description: button for button in buttons}
        self.told, self.status, self.controls = panel.children
        without, looks = self.controls.children
        (self.toggle, self.role, self.back), self.removal, self.together = (
            without.children[0].children,
            *without.children[1:],
        )
        self.prompt, self.pattern = looks.children

    def numbers(self, part) -> list[float]:
        return [float(found) for found in re.findall(r"<code>([+-]?[\d.]+)</code>", part.value)]


@torch.no_grad()
def without(model, heads) -> float:
    """The metric without some heads of CIRCUIT, one prompt at a time."""
    found = []
    for n, prompt in enumerate(PROMPTS):
        hooks = []
        for head in heads:
            names = AT[CIRCUIT.role(head)]
            at = [int(POSITIONS["S2"][n]) if name == "S2" else 6 for name in names]
            templates = ([TEMPLATES[0][n]], TEMPLATES[1])
            hooks += ml.ablation_hooks(
                model, prompt[None], [head], source=REFERENCE, templates=templates, positions=at
            )
        with ml.intervene(model, hooks):
            logits = model(prompt[None])[0, -1]
        found.append((logits[ANSWERS[n]] - logits[WRONG[n]]).item())
    return sum(found) / len(found)


def test_choosing_a_head_shows_what_it_does(tiny):
    hands = Hands(tiny)
    assert "Choose a head" in hands.told.value and hands.removal.value == ""
    assert hands.controls.layout.display == "none"
    hands.buttons["2.2"].click()
    assert hands.status.value == "" and hooks_left(tiny) == 0
    assert "2.2: late, at end" in hands.told.value and hands.controls.layout.display == ""
    assert "Its queries read 1.0 (-0.50)." in hands.told.value
    assert "It is read by the logits (+0.80)." in hands.told.value
    with torch.no_grad():
        before = METRIC(tiny(PROMPTS)).mean().item()
    first, _, last = hands.numbers(hands.removal)
    assert first == pytest.approx(before, abs=0.006)
    assert last == pytest.approx(without(tiny, [(2, 2)]), abs=0.006)
    hands.buttons["1.0"].click()
    assert hands.numbers(hands.removal)[-1] == pytest.approx(without(tiny, [(1, 0)]), abs=0.006)
    assert "chosen" in hands.buttons["1.0"].tooltip and "chosen" not in hands.buttons["2.2"].tooltip


def test_the_direct_contribution_is_that_of_direct_logit_attribution(tiny):
    trials = Trials(ready(tiny), CIRCUIT)
    expected = ml.direct_logit_attribution(tiny, PROMPTS, ANSWERS, WRONG, unit="head").per_prompt
    for head in CIRCUIT.heads:
        assert torch.allclose(trials.direct(head)[0], expected[:, head[0], head[1]], atol=1e-5)
    hands = Hands(tiny, start=(2, 3))
    own = re.search(r"Direct contribution: ([+-][\d.]+)", hands.removal.value)[1]
    assert float(own) == pytest.approx(expected[:, 2, 3].mean().item(), abs=0.006)
    assert trials.direct((0, 1))[1].abs().max() == 0  # it acts at S2, where nothing is read


@torch.no_grad()
def test_what_is_left_with_all_else_held_is_a_patch_of_the_last_stream(tiny):
    trials = Trials(ready(tiny), CIRCUIT)
    head, layer_z = (1, 0), "blocks.1.attn.hook_z"
    _, cache = tiny.run_with_cache(PROMPTS)
    _, usual = tiny.run_with_cache(REFERENCE)
    z = torch.stack([usual[layer_z][[n for n, t in enumerate(TEMPLATES[1]) if t == mine], -1, 0].mean(0) for mine in TEMPLATES[0]])  # fmt: skip
    moved = cache["resid_post", 2][:, -1].clone()
    moved += (z - cache[layer_z][:, -1, 0]) @ tiny.blocks[1].attn.W_O[0]
    if tiny.cfg.normalization_type.startswith("LN"):
        moved -= moved.mean(-1, keepdim=True)
    logits = moved / cache["ln_final.hook_scale"][:, -1] @ tiny.W_U + tiny.b_U
    expected = METRIC(logits[:, None])
    assert torch.allclose(trials.before + trials.direct(head)[1], expected, atol=1e-4)


def test_several_heads_are_removed_together_and_put_back(tiny):
    hands = Hands(tiny, start=(2, 2))
    hands.toggle.value = True
    assert hands.numbers(hands.together)[-1] == pytest.approx(without(tiny, [(2, 2)]), abs=0.006)
    hands.buttons["0.1"].click()
    assert hands.toggle.value is False and hands.toggle.description == "0.1 removed"
    hands.toggle.value = True
    both = without(tiny, [(2, 2), (0, 1)])
    assert hands.numbers(hands.together)[-1] == pytest.approx(both, abs=0.006)
    assert "removed" in hands.buttons["0.1"].tooltip and "removed" in hands.buttons["2.2"].tooltip
    hands.role.click()  # 0.3 too
    assert hands.numbers(hands.together)[-1] == pytest.approx(
        without(tiny, [(2, 2), (0, 1), (0, 3)]), abs=0.006
    )
    assert "mechlab-idle" in hands.role._dom_classes and not hands.role.disabled
    hands.toggle.value = False
    assert re.search(r"alone: 0\.3 \([+-][\d.]+\), 2\.2 \([+-][\d.]+\)\. These add up", hands.together.value)
    assert hands.numbers(hands.removal)[-1] == pytest.approx(
        without(tiny, [(0, 1)]), abs=0.006
    )  # still alone
    hands.back.click()
    assert "Nothing is removed" in hands.together.value
    assert "mechlab-idle" in hands.back._dom_classes and not hands.back.disabled
    assert not any("removed" in button.tooltip for button in hands.buttons.values())
    assert hooks_left(tiny) == 0


def test_attention_is_shown_for_any_prompt(gqa):
    hands = Hands(gqa, start=(2, 2))
    _, cache = gqa.run_with_cache(PROMPTS)
    pattern = cache["pattern", 2][:, 2]
    for row in (0, 3):
        hands.prompt.value = row
        assert f"{pattern[row, -1].max():.2f} on <code>" in hands.pattern.value.rpartition("<tr>")[2]
        assert "Attention of 2.2" in hands.pattern.value
    rows = torch.arange(4)
    share = pattern[rows, 6, POSITIONS["S2"]].mean()
    assert f"From end it looks at: S2 {share:.2f}" in hands.told.value


def test_heads_are_real_buttons_and_what_is_chosen_shows_by_shape(gqa):
    import ipywidgets

    hands = Hands(gqa, start=(1, 0))
    assert all(
        isinstance(button, ipywidgets.Button) and not button.disabled for button in hands.buttons.values()
    )
    assert list(hands.buttons) == ["0.1", "0.3", "1.0", "2.2", "2.3"]  # Tab goes up through the layers
    areas = [button.layout.grid_area for button in hands.buttons.values()]
    assert len(set(areas)) == 5
    assert hands.drawn.value.count("<title>") == 3 and 'aria-label="Circuit: 5 heads' in hands.drawn.value
    assert hands.drawn.value.count('rx="8"') == 1  # the frame of the chosen head
    assert 'stroke-dasharray="3 3"' not in hands.drawn.value
    hands.toggle.value = True
    assert hands.drawn.value.count('stroke-dasharray="3 3"') == 1


def test_an_error_in_a_click_is_a_sentence_and_leaves_no_hook(gqa):
    broken = []
    metric = lambda logits: METRIC(logits) / 0 * 0 if broken else METRIC(logits)
    hands = Hands(gqa, metric=metric)
    broken.append(True)
    hands.buttons["2.2"].click()
    assert 'role="alert"' in hands.status.value and "The metric is NaN" in hands.status.value
    assert hooks_left(gqa) == 0
    broken.clear()
    hands.buttons["2.2"].click()
    assert hands.status.value == "" and len(hands.numbers(hands.removal)) == 3


def test_clicks_in_two_threads_do_not_meet_each_other_or_a_cell(gqa, monkeypatch):
    """JupyterLab answers clicks in the main thread and changes in another; cells may be running meanwhile."""
    hands = Hands(gqa, start=(2, 2))
    alone, both = without(gqa, [(0, 1)]), without(gqa, [(0, 1), (2, 2)])
    monkeypatch.setattr(type(gqa), "hooks", None)  # a hook would be seen by every thread
    monkeypatch.setattr(type(gqa), "forward", None)
    hands.toggle.value = True
    threads = [Thread(target=hands.buttons["0.1"].click) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hands.toggle.value = True
    assert hands.numbers(hands.removal)[-1] == pytest.approx(alone, abs=0.006)
    assert hands.numbers(hands.together)[-1] == pytest.approx(both, abs=0.006)


def test_metrics_that_are_no_sum_have_no_direct_contribution(gqa):
    hands = Hands(gqa, metric=ml.log_prob(ANSWERS), start=(2, 2))
    assert "This metric is no sum over parts" in hands.removal.value
    assert len(hands.numbers(hands.removal)) == 2


def test_heads_that_act_everywhere_need_no_positions(gqa):
    hands = Hands(gqa, Circuit({"all": [(1, 1)]}), templates=([""] * 4, [""] * 6), positions={}, start=(1, 1))
    with torch.no_grad(), ml.intervene(gqa, ml.ablation_hooks(gqa, PROMPTS, [(1, 1)], source=REFERENCE)):
        expected = METRIC(gqa(PROMPTS)).mean().item()
    assert hands.numbers(hands.removal)[-1] == pytest.approx(expected, abs=0.006)
    assert "No edge of this circuit touches it." in hands.told.value


@pytest.mark.parametrize(
    ("circuit", "given", "message"),
    [
        (Circuit({"a": []}), {}, "The circuit has no heads"),
        (Circuit({"a": [(3, 0)]}), {}, "names head 3.0; the model has layers 0 to 2 and heads 0 to 3"),
        (Circuit({"a": [(0, 4)]}), {}, "names head 0.4"),
        (CIRCUIT, {"start": (1, 1)}, "Head 1.1 is not in the circuit"),
        (CIRCUIT, {"positions": {}}, "'early' acts at 'S2', and the positions given are none"),
        (CIRCUIT, {"positions": {"end": torch.tensor([6] * 4)}}, "'early' acts at 'S2', and the positions given are end"),
        (CIRCUIT, {"templates": (["a", "b", "a", "c"], TEMPLATES[1])}, "No reference prompt has the template 'c'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model_is_refused(gqa, circuit, given, message):
    with pytest.raises(ValueError, match=message):
        Hands(gqa, circuit, **given)


def test_the_circuit_that_was_found_fits_a_small_screen():
    found = ml.ioi.found_circuit()
    plan = lay_out(found, ["IO", "S1", "S1+1", "S2", "end"])
    width, height = pixels(found, plan)
    assert width <= 545 and height <= 600  # a panel of 330 pixels has room beside it from 900 on
    assert circuit_picture(found).figure.layout.height <= 645


def test_the_figure_is_plain_json():
    json.loads(circuit_picture(CIRCUIT).figure.to_json())
