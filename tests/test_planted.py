"""Planted circuits: they do the task by the heads of the plan, traps fool whom they should, bad plans are named."""

from dataclasses import replace

import pytest
import torch

import mechlab as ml
from mechlab.circuits.planted.compiling import compiled
from mechlab.circuits.planted.models import CORRUPTIONS, planted, score_against
from mechlab.circuits.planted.plan import ONE, Head, Match, Move, Plan, Rule, Table, edges_of
from mechlab.circuits.planted.tasks import NAMES, TASKS
from mechlab.circuits.planted.traps import TRAPS, dialled

IMPOSSIBLE = {("sum", "negative"), ("sum", "constant"), ("ioi", "gated"), ("induction", "gated")}
CELLS = [(task, trap) for task in TASKS for trap in TRAPS if (task, trap) not in IMPOSSIBLE]


@pytest.fixture(scope="module")
def models():
    return {(task, trap): planted(task, trap) for task, trap in CELLS}


def by_head(scores):
    """Sizes [layer, head], whatever positions there are."""
    values = scores.values if scores.values.ndim == 2 else scores.values.sum(scores.dims.index("pos"))
    return ml.Scores(values, ("layer", "head"), "score")


def patched(circuit, corruption, *, noise=False):
    """Each head patched alone: into the corrupted run, or the corrupted one into the clean."""
    asked = circuit.prompts(24, corruption=corruption)
    runs = (asked.clean, asked.corrupted) if noise else (asked.corrupted, asked.clean)
    found = ml.activation_patching(circuit.model, *runs, asked.metric, site="z")
    return score_against(by_head(found), circuit.truth, excluded=circuit.open)


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
@torch.no_grad()
def test_a_planted_model_does_its_task(models, cell):
    """Also where a trap was set: behaviour does not tell."""
    circuit = models[cell]
    asked = circuit.prompts(40, seed=3)
    difference = asked.metric(circuit.model(asked.clean))
    assert (difference > 0).float().mean() >= 0.85 and difference.mean() > 1.2
    assert asked.metric(circuit.model(asked.corrupted)).mean() < -1.2
    third = circuit.prompts(40, seed=3, corruption="third")
    assert abs(asked.metric(circuit.model(third.corrupted)).mean()) < 0.9


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_heads_look_and_move_as_the_plan_says(seed):
    circuit = planted("ioi", seed=seed)
    text = "Ann and Ben went , Ann gave to"
    _, cache = circuit.model.run_with_cache(text)
    look = lambda name, pos: (
        cache["pattern", circuit.heads[name][0]][0, circuit.heads[name][1], pos].argmax().item()
    )
    assert look("duplicate", 6) == 1 and look("duplicate", 3) == 0
    assert look("S-inhibition", 8) == 6 and look("name mover", 8) == 3
    assert circuit.model.to_string(circuit.model(text)[0, -1].argmax()[None]) == "Ben"


@torch.no_grad()
def test_a_head_by_hand():
    """One head that takes the word before to the answer: attention and what is written, on every word."""
    words = ("<begin>", *"abcdef")
    head = Head("previous", 0, (Match("pos", "pos", shift=-1),), (Move("token", "answer", 0.5),))
    model, where = compiled(Plan(words, 8, {}, (head,), layers=1, slots=2, gain=3.0), noise=0.0)
    layer, slot = where["previous"]
    logits, cache = model.run_with_cache("a b c d")
    pattern = cache["pattern", layer][0, slot]
    assert torch.allclose(pattern[1:].diagonal(), torch.ones(4), atol=0.03)
    for pos, before in ((2, "a"), (3, "b"), (4, "c")):
        raised = logits[0, pos] - logits[0, pos].mean()
        assert raised.argmax() == words.index(before)
        assert raised.max() - raised.sort().values[-2] == pytest.approx(1.5, abs=0.1)


def test_no_axis_gives_the_plan_away():
    """What the name mover writes is spread over the stream, and the norm takes nothing away."""
    circuit = planted("ioi")
    layer, head = circuit.heads["name mover"]
    written = circuit.model.W_O[layer, head]
    share = written.pow(2).max(1).values / written.pow(2).sum(1).clamp_min(1e-9)
    assert share.max() < 0.2 and written.sum(1).abs().max() < 1e-3


def test_the_places_are_drawn_anew_and_the_truth_follows():
    places = {tuple(planted("ioi", seed=seed).heads.values()) for seed in range(6)}
    assert len(places) > 3
    circuit = planted("ioi", "decoy", seed=2)
    assert int(circuit.truth.sum()) == 3 and len(circuit.heads) == 6
    assert planted("ioi", "backup").open.sum() == 1


@pytest.mark.parametrize("task", TASKS)
def test_plain_circuits_are_found(models, task):
    for corruption in CORRUPTIONS:
        found = patched(models[task, "plain"], corruption)
        assert found["auroc"] == 1 and found["weakest true"] > 0.35 and found["strongest false"] < 0.15


@pytest.mark.parametrize("task", ["ioi", "induction"])
def test_each_trap_fools_whom_it_should(models, task):
    """OR hides from taking away one, AND from putting in one; what cancels is accused by everybody."""
    either, both = models[task, "or"], models[task, "and"]
    assert (
        patched(either, "third", noise=True)["weakest true"] < 0.25 < patched(either, "third")["weakest true"]
    )
    assert (
        patched(both, "third")["weakest true"]
        < 0.35
        < 0.6
        < patched(both, "third", noise=True)["weakest true"]
    )
    assert patched(models[task, "cancel"], "flip")["strongest false"] > 0.9
    assert patched(models[task, "decoy"], "flip")["strongest false"] < 0.15
    sharp = models[task, "saturated"]
    asked = sharp.prompts(24)
    guessed = ml.attribution_patching(sharp.model, asked.corrupted, asked.clean, asked.metric)
    assert score_against(by_head(guessed), sharp.truth)["weakest true"] < 0.1  # slopes are next to nothing
    assert patched(sharp, "flip")["weakest true"] > 0.9


def test_true_edges_are_those_of_the_plan():
    circuit = planted("ioi")
    assert set(edges_of(circuit.plan)) == {
        ("duplicate", "S-inhibition", "k"),
        ("duplicate", "S-inhibition", "v"),
        ("duplicate", "name mover", "k"),
        ("S-inhibition", "name mover", "q"),
        ("name mover", "logits", "logits"),
    }
    asked = circuit.prompts(16, corruption="third")
    found = ml.edge_attribution(circuit.model, asked.clean, asked.corrupted, asked.metric, steps=8)
    edges = circuit.true_edges(found)
    assert (
        edges.sum() == 5 and score_against(found, edges)["average precision"] < 1
    )  # embeddings are no edges here
    heads = torch.tensor([name[0].isdigit() for name in found.labels["sender"]])
    assert score_against(found, edges, excluded=(~heads)[:, None].expand_as(edges))["average precision"] > 0.8


def test_the_mlp_of_the_sum_is_an_edge_too():
    circuit = planted("sum")
    asked = circuit.prompts(16)
    found = ml.edge_attribution(circuit.model, asked.clean, asked.corrupted, asked.metric, steps=8)
    named = [
        (found.labels["sender"][s], found.labels["reader"][r])
        for s, r in circuit.true_edges(found).nonzero().tolist()
    ]
    assert ("mlp 1", "logits") in named and sum(reader == "mlp 1 in" for _, reader in named) == 2


def test_the_dial_leaves_behaviour_and_blinds_the_slope():
    plan, ratios = TASKS["ioi"].plan(), []
    for gain in (1.0, 1.5, 3.0):
        model, heads = compiled(dialled(plan, gain))
        circuit = replace(planted("ioi"), model=model, heads=heads)
        asked = circuit.prompts(24)
        assert asked.metric(model(asked.clean)).mean() > 2.8
        guess = ml.attribution_patching(model, asked.corrupted, asked.clean, asked.metric)
        ratios.append(score_against(by_head(guess), circuit.truth)["weakest true"])
    assert ratios[0] > 0.2 > 0.1 > max(ratios[1:])


def test_scores_are_judged_by_pairs_and_shares():
    scores = ml.Scores(torch.tensor([[4.0, -2.0], [1.0, 0.5]]), ("layer", "head"), "x")
    truth = torch.tensor([[True, False], [True, False]])
    found = score_against(scores, truth)
    assert found["auroc"] == pytest.approx(3 / 4) and found["weakest true"] == pytest.approx(0.25)
    assert found["strongest false"] == pytest.approx(0.5)
    assert found["average precision"] == pytest.approx((1 + 2 / 3) / 2)
    spared = score_against(scores, truth, excluded=torch.tensor([[False, True], [False, False]]))
    assert spared["auroc"] == 1 and spared["strongest false"] == pytest.approx(0.125)
    with pytest.raises(ValueError, match="one of the two is missing"):
        score_against(scores, torch.zeros(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"truth is of \(2,\)"):
        score_against(scores, torch.tensor([True, False]))
    with pytest.raises(ValueError, match="All scores are 0"):
        score_against(ml.Scores(torch.zeros(2, 2), ("layer", "head"), "x"), truth)


def test_bad_plans_are_named():
    words, head = (
        ("<begin>", "a", "b"),
        Head("one", 0, (Match("token", "token"),), (Move("token", "answer"),)),
    )
    plan = lambda **more: Plan(**{"words": words, "positions": 8, "channels": {}, "heads": (head,), **more})
    with pytest.raises(ValueError, match="does not say what nowhere is"):
        plan(heads=(replace(head, move=(Move("token", "nowhere"),)),))
    with pytest.raises(ValueError, match="Layer 0 has 1 heads, and the plan asks for 2"):
        plan(heads=(head, replace(head, name="two")), slots=1)
    with pytest.raises(ValueError, match="is in layer 9, and there are 4"):
        plan(heads=(replace(head, layer=9),))
    with pytest.raises(ValueError, match="same name"):
        plan(heads=(head, head))
    with pytest.raises(ValueError, match="stands there twice"):
        plan(words=("<begin>", "a", "a"))
    rule = Rule({"token": 1}, {"answer": (2, 1.0)})
    with pytest.raises(ValueError, match="A layer has one MLP"):
        plan(tables=(Table("x", 1, (rule,)), Table("y", 1, (rule,))))
    with pytest.raises(ValueError, match="token has 3 codes and pos 8: they cannot be matched"):
        compiled(plan(heads=(replace(head, match=(Match("token", "pos"),)),)))
    with pytest.raises(ValueError, match="reads 1 codes and writes to a channel of 3"):
        compiled(plan(heads=(replace(head, move=(Move(ONE, "answer"),)),)))
    for name in ("one", "pos", "answer"):
        with pytest.raises(ValueError, match=f"channel '{name}' is there already"):
            plan(channels={name: 3})
    with pytest.raises(ValueError, match="token has 3 codes, from 0 on, and 3 is none"):
        plan(tables=(Table("x", 1, (Rule({"token": 3}, {"answer": (0, 1.0)}),)),))
    with pytest.raises(ValueError, match="answer has 3 codes, from 0 on, and -1 is none"):
        plan(tables=(Table("x", 1, (Rule({"token": 0}, {"answer": (-1, 1.0)}),)),))
    with pytest.raises(ValueError, match="pos has 8 codes, from 0 on, and 9 is none"):
        plan(heads=(replace(head, match=(Match("pos", "pos", shift=-9),)),))
    with pytest.raises(ValueError, match="no part 'two'"):
        plan().part("two")
    for task, trap in IMPOSSIBLE:
        with pytest.raises(ValueError, match=r"This trap needs an? (head|MLP)"):
            planted(task, trap)
    with pytest.raises(ValueError, match="trap"):
        planted("ioi", "no such trap")
    with pytest.raises(ValueError, match="corruption"):
        planted("ioi").prompts(4, corruption="swap")


def test_a_plan_of_ones_own_is_planted():
    words, head = ("<begin>", "a", "b"), Head("one", 0, (Match("pos", "pos"),), (Move("token", "answer"),))
    plan = Plan(words, 4, {}, (head,))
    circuit = planted(plan, seed=2)
    ids = circuit.tokens(["a b", "b a"])
    assert ids.tolist() == [[0, 1, 2], [0, 2, 1]] and circuit.truth.sum() == 1
    assert circuit.model(ids).argmax(-1)[:, 1:].tolist() == [[1, 2], [2, 1]]
    silent = [("blocks.0.attn.hook_z", lambda z, hook: 0 * z)]  # four positions, less than hooks are tried on
    with ml.intervene(circuit.model, silent):
        assert not torch.equal(circuit.model(ids).argmax(-1)[:, 1:], ids[:, 1:])
    dial = planted("ioi", lambda plan: dialled(plan, 2.0))
    assert dial.plan.heads[0].match[0].gain == 10.0
    with pytest.raises(ValueError, match="no word zebra"):
        circuit.tokens(["a zebra"])
    with pytest.raises(ValueError, match="equally many"):
        circuit.tokens(["a", "a b"])
    with pytest.raises(ValueError, match="at most 3 words"):
        circuit.tokens(["a b a b"])
    with pytest.raises(ValueError, match="your own"):
        circuit.prompts()
    with pytest.raises(TypeError, match="takes a plan and gives a plan"):
        planted("ioi", lambda plan: None)


def test_names_are_balanced():
    rows = TASKS["ioi"].rows(20, torch.Generator().manual_seed(1))
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        assert (one.answer, one.rival) == (other.rival, other.answer) and one.clean[0] == other.clean[0]
        assert {*one.clean} & {*NAMES} == {one.answer, one.rival} and one.third[5] not in (
            one.answer,
            one.rival,
        )
