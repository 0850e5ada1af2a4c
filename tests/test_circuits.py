"""Circuits: knock-outs against hooks, the three criteria, pruning, and attribution against what it estimates."""

import copy
import math

import pytest
import torch

import mechlab as ml
from mechlab.circuits.circuits import CircuitError
from mechlab.circuits.ioi import ALIGNED, TEMPLATES
from mechlab.runs.engines import run_of
from mechlab.runs.run import Put
from tests.test_hooks import hooks_left

pytestmark = pytest.mark.filterwarnings("ignore:.*several tokens", "ignore:.*may be chance")
CIRCUIT = ml.Circuit(
    {"early": [(0, 1), (1, 3)], "late": [(2, 0), (2, 2)]}, {"early": ["S2"], "late": ["end", "S1"]}
)


@pytest.fixture(scope="module")
def prompts(tiny):
    return ml.ioi_prompts(tiny, 8, templates=(ALIGNED[0], TEMPLATES[9]), seed=1)


@pytest.fixture(scope="module")
def reference(tiny):
    return ml.ioi_prompts(tiny, 24, templates=(ALIGNED[0], TEMPLATES[9]), seed=2).corrupted("abc")


@pytest.fixture(scope="module")
def knockouts(tiny, prompts, reference):
    return ml.CircuitRuns(tiny, prompts, reference)


def able(knockouts):
    """The same, for a metric on which this random model is "able": its sign is turned where it is negative."""
    sign = knockouts.intact.sign()
    turned = copy.copy(knockouts)
    inner = knockouts.metric
    turned.metric = lambda logits: inner(logits) * sign
    turned.intact = knockouts.intact * sign
    return turned


def with_hooks(model, prompts, reference, kept, more=()):
    """The metric with every head outside `kept` at its template's mean, by hooks on whole runs."""
    with torch.no_grad():
        _, cache = model.run_with_cache(reference.tokens, names_filter=lambda name: name.endswith("hook_z"))
    same = torch.tensor([[a == b for b in reference.templates] for a in prompts.templates]).float()
    same = same / same.sum(1, keepdim=True)
    hooks = [*more]
    for layer in range(model.cfg.n_layers):
        mean = torch.einsum("pr,rqhd->pqhd", same, cache["z", layer])
        hooks.append(
            (
                f"blocks.{layer}.attn.hook_z",
                lambda z, hook, m=mean, k=kept[layer]: torch.where(k[..., None], z, m),
            )
        )
    with torch.no_grad(), ml.intervene(model, hooks):
        return prompts.metric(model(prompts.tokens))


# --- the circuit itself -------------------------------------------------------------------------------------------


def test_a_circuit_knows_its_heads():
    assert CIRCUIT.heads == [(0, 1), (1, 3), (2, 0), (2, 2)]
    assert CIRCUIT.role((2, 2)) == "late" and CIRCUIT.positions((0, 1)) == ("S2",)
    smaller = CIRCUIT.without([(0, 1), (1, 3)])
    assert smaller.heads == [(2, 0), (2, 2)] and set(smaller.at) == {"late"}
    assert ml.Circuit.of([(1, 1), (0, 2), (1, 1)]).heads == [(0, 2), (1, 1)]
    assert ml.Circuit.of([(1, 1)]).positions((1, 1)) is None


def test_removed_heads_take_their_edges_along():
    edges = [ml.Edge((0, 1), (2, 0), "v", 0.2), ml.Edge((2, 0), None, "logits", 0.5)]
    circuit = ml.Circuit(CIRCUIT.roles, CIRCUIT.at, edges)
    assert [e.receiver for e in circuit.without([(0, 1)]).edges] == [None]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (({"a": [(0, 1)], "b": [(0, 1)]},), "0.1 has two roles"),
        (({"a": [(0, 1)]}, {"b": ["end"]}), "`at` names 'b'"),
        (({"a": [(0, 1)]}, {}, [ml.Edge((0, 1), (2, 2), "q")]), "an end outside the circuit"),
    ],
)
def test_a_circuit_that_cannot_be(given, message):
    with pytest.raises(CircuitError, match=message):
        ml.Circuit(*given)


def test_overlap():
    assert ml.overlap([(0, 1), (1, 1)], [(1, 1), (2, 0)]) == pytest.approx(1 / 3)
    assert ml.overlap([(0, 1)], [(0, 1)]) == 1 and ml.overlap([(0, 1)], []) == 0
    with pytest.raises(CircuitError, match="Both circuits are empty"):
        ml.overlap([], [])


def test_roc_is_the_chance_that_a_head_of_the_circuit_ranks_higher():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 5, generator=generator)
    truth = [(0, 0), (2, 3), (3, 1)]
    table, area = ml.roc(ml.Scores(values, ("layer", "head"), "x"), truth)
    inside = [values[head].abs().item() for head in truth]
    outside = [
        values[layer, h].abs().item() for layer in range(4) for h in range(5) if (layer, h) not in truth
    ]
    wins = sum(a > b for a in inside for b in outside) / (len(inside) * len(outside))
    assert area == pytest.approx(wins)
    assert table["true positive rate"].iloc[-1] == 1 and table["false positive rate"].iloc[0] == 0
    with pytest.raises(CircuitError, match=r"no head 9\.0"):
        ml.roc(ml.Scores(values, ("layer", "head"), "x"), [(9, 0)])
    with pytest.raises(CircuitError, match="inside the circuit and heads outside"):
        ml.roc(ml.Scores(values, ("layer", "head"), "x"), [])


# --- knock-outs ---------------------------------------------------------------------------------------------------


def test_knockouts_are_those_of_hooks_on_whole_runs(tiny, prompts, reference, knockouts):
    kept = knockouts.keeping(CIRCUIT)
    found = knockouts.measure([CIRCUIT, None, ml.Circuit({})])
    assert torch.allclose(found[0], with_hooks(tiny, prompts, reference, kept), atol=1e-5)
    assert torch.allclose(found[1], knockouts.intact, atol=1e-6)
    assert torch.allclose(found[2], with_hooks(tiny, prompts, reference, torch.zeros_like(kept)), atol=1e-5)
    removed = knockouts.removing([CIRCUIT])[0]
    assert torch.allclose(removed, with_hooks(tiny, prompts, reference, ~kept), atol=1e-5)
    assert (removed - found[0]).abs().max() > 1e-3
    assert hooks_left(tiny) == 0


def test_each_prompt_keeps_its_own_position(prompts, knockouts):
    kept = knockouts.keeping(CIRCUIT)
    for row in range(len(prompts)):
        assert kept[0, row, :, 1].nonzero()[:, 0].tolist() == [prompts.positions["S2"][row].item()]
        late = {prompts.positions[name][row].item() for name in ("S1", "end")}
        assert {*kept[2, row, :, 0].nonzero()[:, 0].tolist()} == late
    assert len({*prompts.positions["S2"].tolist()}) > 1  # the templates differ, so a union would show
    assert kept.sum() == len(prompts) * (2 * 1 + 2 * 2)


def test_zero_and_resample(tiny, prompts, reference):
    zero = ml.CircuitRuns(tiny, prompts, reference, "zero")
    assert zero.z.abs().max() == 0 and zero.mlp_out.abs().max() == 0
    drawn = ml.CircuitRuns(tiny, prompts, reference, "resample", seed=3)
    rows = run_of(tiny, reference.tokens).at("z", 1)
    for row in range(len(prompts)):
        theirs = [n for n, t in enumerate(reference.templates) if t == prompts.templates[row]]
        assert any(torch.allclose(drawn.z[1, row], rows[n], atol=1e-5) for n in theirs)
    assert not torch.equal(drawn.z, ml.CircuitRuns(tiny, prompts, reference, "resample", seed=4).z)


def test_mlps_can_be_part_of_a_circuit(tiny, prompts, reference, knockouts):
    from dataclasses import replace

    some = replace(CIRCUIT, mlps=(0, 2))
    found = knockouts.measure([some, replace(CIRCUIT, mlps=(0, 1, 2))])
    assert torch.allclose(found[1], knockouts.measure([CIRCUIT])[0], atol=1e-5)
    with torch.no_grad():
        _, cache = tiny.run_with_cache(reference.tokens)
    same = torch.tensor([[a == b for b in reference.templates] for a in prompts.templates]).float()
    same = same / same.sum(1, keepdim=True)
    mean = torch.einsum("pr,rqd->pqd", same, cache["mlp_out", 1])
    held = [("blocks.1.hook_mlp_out", lambda x, hook: mean)]
    plain = with_hooks(tiny, prompts, reference, knockouts.keeping(CIRCUIT), held)
    assert torch.allclose(found[0], plain, atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("circuit", "message"),
    [
        (ml.Circuit.of([(3, 0)]), "names head 3.0; the model has layers 0 to 2"),
        (ml.Circuit({"a": [(0, 1)]}, {"a": ["verb"]}), "no position 'verb'; they have 'IO', 'S1'"),
    ],
)
def test_a_circuit_the_model_or_the_prompts_do_not_have(knockouts, circuit, message):
    with pytest.raises(CircuitError, match=message):
        knockouts.measure([circuit])


def test_a_template_without_reference_is_refused(tiny, prompts):
    other = ml.ioi_prompts(tiny, 4, templates=ALIGNED[:1]).corrupted("abc")
    with pytest.raises(CircuitError, match="No reference prompt has the template 'template 2"):
        ml.CircuitRuns(tiny, prompts, other)
    with pytest.raises(ValueError, match="how is 'noise'"):
        ml.CircuitRuns(tiny, prompts, other, "noise")


# --- the three criteria -------------------------------------------------------------------------------------------


def test_intervals_draw_pairs_together(knockouts):
    values = torch.tensor([1.0, -1.0] * 4)  # within each pair they cancel, so the mean is known exactly
    assert str(knockouts.mean(values)) == "0.00 [0.00, 0.00]"
    other = torch.arange(8.0)
    assert knockouts.mean(other).low < 3.5 < knockouts.mean(other).high
    assert knockouts.ratio(2 * other, other).mean == pytest.approx(2)
    assert knockouts.ratio(2 * other, other).high == pytest.approx(2)


def test_the_whole_model_is_faithful_and_nothing_is_not(knockouts):
    turned = able(knockouts)
    whole = ml.Circuit.of([(layer, head) for layer in range(3) for head in range(4)])
    found = ml.faithfulness(turned, [whole, CIRCUIT])
    assert found[0].share.mean == pytest.approx(1, abs=1e-4) and found[0].accuracy == 1
    expected = turned.measure([CIRCUIT])[0]
    assert found[1].share.mean == pytest.approx((expected.mean() / turned.intact.mean()).item(), abs=1e-4)
    assert found[1].share.low < found[1].share.mean < found[1].share.high
    assert "of it is left" in str(found[1])


def test_a_model_that_cannot_do_the_task_has_no_circuit(knockouts):
    chance = copy.copy(knockouts)
    chance.intact = torch.tensor([1.0, -1.2, 0.5, -0.3, 2.0, -2.1, 0.1, 0.2])
    for asked in (
        lambda: ml.faithfulness(chance, [CIRCUIT]),
        lambda: ml.prune(chance, 0.1),
        lambda: ml.minimality(chance, CIRCUIT),
    ):
        with pytest.raises(
            CircuitError, match=r"not different from zero on these 8 prompts\. There is no circuit to find"
        ):
            asked()


def test_completeness_compares_the_circuit_with_the_model(knockouts):
    table = ml.completeness(knockouts, CIRCUIT, {"late": [(2, 0), (2, 2)], "one": [(0, 1)]})
    late = ml.Circuit({"late": [(2, 0), (2, 2)]}, {"late": ["end", "S1"]})
    early = ml.Circuit({"early": [(0, 1), (1, 3)]}, {"early": ["S2"]})
    assert table["model without K"][0] == pytest.approx(knockouts.removing([late])[0].mean().item(), abs=2e-3)
    assert table["circuit without K"][0] == pytest.approx(
        knockouts.measure([early])[0].mean().item(), abs=2e-3
    )
    gap = table["circuit without K"] - table["model without K"]
    assert ((table["gap"] - gap).abs() < 2e-3).all()
    assert (table["95 % low"] <= table["gap"]).all() and (table["gap"] <= table["95 % high"]).all()


def test_the_greedy_gap_is_at_least_that_of_every_single_head(knockouts):
    single = ml.completeness(knockouts, CIRCUIT, {str(head): [head] for head in CIRCUIT.heads})["gap"].abs()
    heads, gap = ml.greedy_gap(knockouts, CIRCUIT, candidates=4, steps=3)
    assert abs(gap) >= single.max() - 1e-3
    again = ml.completeness(knockouts, CIRCUIT, {"K": heads})["gap"][0]
    assert gap == pytest.approx(again, abs=2e-3)


def test_minimality_finds_what_a_head_is_needed_for(knockouts):
    turned = able(knockouts)
    table = ml.minimality(turned, CIRCUIT)
    assert table["head"].tolist() == ["0.1", "1.3", "2.0", "2.2"]
    for row in table.itertuples():
        head = tuple(int(n) for n in row.head.split("."))
        alone = turned.measure([CIRCUIT.without([head])])[0] - turned.measure([CIRCUIT])[0]
        assert abs(row.change) >= abs(alone.mean().item()) - 2e-3  # K may be empty
        change = turned.measure([CIRCUIT.without([*row.K, head])]) - turned.measure([CIRCUIT.without(row.K)])
        assert row.change == pytest.approx(change.mean().item(), abs=2e-3)
    sets = dict(zip(CIRCUIT.heads, table["K"], strict=True))
    assert ml.minimality(turned, CIRCUIT, sets)["change"].tolist() == table["change"].tolist()


def test_direct_contributions_are_those_of_direct_logit_attribution(tiny):
    prompts = ml.ioi_prompts(tiny, 4, templates=ALIGNED[:1])
    reference = ml.ioi_prompts(tiny, 8, templates=ALIGNED[:1], seed=5).corrupted("abc")
    prompts = prompts.rows([0, 1])
    knockouts = ml.CircuitRuns(tiny, prompts, reference)
    same = ml.direct_logit_attribution(tiny, prompts.tokens, prompts.io, prompts.s, unit="head")
    assert torch.allclose(ml.direct_contributions(knockouts).per_prompt, same.per_prompt, atol=1e-5)
    gone = ml.Circuit.of([(0, 0), (1, 2)])
    hooks = [
        (f"blocks.{layer}.attn.hook_z", lambda z, hook, n=n, layer=layer: torch.cat([z[:, :, :n], knockouts.z[layer][:, :, n : n + 1], z[:, :, n + 1 :]], 2))
        for layer, n in gone.heads
    ]  # fmt: skip
    with ml.intervene(tiny, hooks):
        without = ml.direct_logit_attribution(tiny, prompts.tokens, prompts.io, prompts.s, unit="head")
    assert torch.allclose(ml.direct_contributions(knockouts, gone).per_prompt, without.per_prompt, atol=1e-5)


# --- finding without looking --------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ["mean", "prompt"])
def test_pruning(knockouts, error):
    turned = able(knockouts)
    assert ml.prune(turned, math.inf, error=error).heads == []
    assert len(ml.prune(turned, -math.inf, error=error).heads) == 12
    pruned = {limit: ml.prune(turned, limit, error=error) for limit in (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)}
    threshold, some = next((limit, each) for limit, each in pruned.items() if 0 < len(each.heads) < 12)
    found = turned.measure([some])[0] - turned.intact
    size = found.mean().abs() if error == "mean" else found.abs().mean()
    assert size <= threshold * 12 * turned.intact.mean().abs() + 1e-5  # each head may cost so much


def test_a_run_with_knock_outs_can_be_taken_up_on_entering_any_layer(knockouts):
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(knockouts.z.shape[:4], generator=generator) < 0.5
    whole, run = knockouts.measure_kept(kept[None]), knockouts.run.changed(knockouts.edits(kept[None]))
    assert torch.allclose(run.value(knockouts.metric), whole[0], atol=1e-4)
    for layer in range(len(kept)):
        above = [put for put in knockouts.edits(kept[None]) if put.layer >= layer]
        assert torch.allclose(run.edited(knockouts.metric, above), whole, atol=1e-4), layer


def test_pruning_among_candidates_with_positions(knockouts):
    turned = able(knockouts)
    candidates = {(0, 1): ("S2",), (2, 2): ("end", "S1"), (1, 0): ("IO",)}
    kept = ml.prune(turned, -math.inf, candidates=candidates)
    assert {head: kept.positions(head) for head in kept.heads} == candidates
    assert set(ml.prune(turned, 0.001, candidates=candidates).heads) <= set(candidates)
    with pytest.raises(ValueError, match="error is 'median'; it must be one of"):
        ml.prune(turned, 0.1, error="median")


# --- attribution --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair():
    generator = torch.Generator().manual_seed(3)
    base = torch.randint(5, 60, (3, 8), generator=generator)
    source = base.clone()
    source[:, 3:5] = torch.randint(5, 60, (3, 2), generator=generator)
    return base, source


METRIC = ml.logit_difference([7, 8, 9], [11, 12, 13])


@pytest.mark.parametrize("steps", [1, 3])
def test_the_edges_of_a_head_add_up_to_its_own_score(tiny, pair, steps):
    nodes = ml.attribution_patching(tiny, *pair, METRIC, steps=steps)
    edges = ml.edge_attribution(tiny, *pair, METRIC, steps=steps)
    senders = edges.labels["sender"]
    for layer, head in [(0, 0), (0, 3), (1, 2), (2, 1)]:
        total = edges.values[senders.index(f"{layer}.{head}")].sum()
        assert total == pytest.approx(
            nodes.values[layer, head].item(), abs=1e-4 * nodes.values.abs().max().item() + 1e-6
        )
    for number, sender in enumerate(senders):  # nothing runs backwards
        for place, reader in enumerate(edges.labels["reader"]):
            at = (
                -1
                if sender == "embed"
                else int(sender.removeprefix("mlp ").split(".")[0]) + 0.5 * ("mlp" in sender)
            )
            to = (
                9
                if reader == "logits"
                else int(reader.removeprefix("mlp ").split(".")[0].split(" ")[0]) + 0.25 * ("mlp" in reader)
            )
            if at >= to:
                assert edges.values[number, place] == 0


def test_nodes_are_transformerlens_attribution(pair):
    from transformer_lens.tools.analysis.attribution_patching import attribution_patch

    model = ml.tiny("gpt2").requires_grad_()  # TransformerLens asks for it
    base, source = (each[:1] for each in pair)
    metric = ml.logit_difference([7], [11])
    theirs = attribution_patch(model, source, base, lambda logits: metric(logits).sum())
    mine = ml.attribution_patching(model, base, source, metric)
    gap = mine.baselines["source"] - mine.baselines["base"]
    found = {}
    for node, score in theirs.node_scores.items():  # theirs are for each position
        if node.kind == "attn_head_out":
            found[node.layer, node.head] = found.get((node.layer, node.head), 0) + score
    assert len(found) == 12
    for (layer, head), score in found.items():
        assert mine.values[layer, head].item() * gap == pytest.approx(score, abs=1e-4)


def test_edges_are_transformerlens_edges(pair):
    from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch

    model = ml.tiny("gpt2").requires_grad_()  # TransformerLens asks for it
    base, source = (each[:1] for each in pair)
    metric = ml.logit_difference([7], [11])
    config = EdgeAttributionConfig(granularity="edge")
    theirs = attribution_patch(model, source, base, lambda logits: metric(logits).sum(), config=config)
    mine = ml.edge_attribution(model, base, source, metric)
    nodes = ml.attribution_patching(model, base, source, metric)
    gap = nodes.baselines["source"] - nodes.baselines["base"]
    found = {}
    for (writer, reader), score in theirs.edge_scores.items():
        if writer.kind == "embed":
            continue
        sender = f"mlp {writer.layer}" if writer.kind == "mlp_out" else f"{writer.layer}.{writer.head}"
        into = (
            f"{reader.layer}.{reader.head} {reader.kind[0]}"
            if reader.head is not None
            else f"mlp {reader.layer} in"
        )
        edge = sender, "logits" if reader.kind == "logits" else into
        found[edge] = found.get(edge, 0) + score
    assert len(found) > 100
    for (sender, reader), score in found.items():
        row, column = mine.labels["sender"].index(sender), mine.labels["reader"].index(reader)
        assert mine.values[row, column].item() * gap == pytest.approx(score, abs=1e-4)


def test_for_a_small_change_the_estimate_is_the_patch(pair):
    """Between two runs that differ by little, first order is everything."""
    gqa = ml.tiny("gqa").to(torch.float64)
    base = run_of(gqa, pair[0])
    far = run_of(gqa, pair[1], like=base)
    start = base.at("resid_pre", 0).lerp(far.at("resid_pre", 0), 1e-4)
    near = run_of(gqa, pair[1], embedded=start, like=base)
    estimate = ml.attribution_patching(gqa, base, near, METRIC)
    gap = estimate.baselines["source"] - estimate.baselines["base"]
    for layer, head in [(0, 1), (1, 2), (2, 3)]:
        one = (torch.arange(4) == head)[None, None, None]
        patched = base.edited(METRIC, [Put("z", layer, near.at("z", layer)[None], one)])[0]
        exact = patched.mean() - base.value(METRIC).mean()
        assert estimate.values[layer, head].item() * gap == pytest.approx(exact.item(), rel=0.03, abs=1e-10)


def test_by_position_the_parts_add_up(tiny, pair):
    whole = ml.attribution_patching(tiny, *pair, METRIC)
    parts = ml.attribution_patching(tiny, *pair, METRIC, by=("pos", "head"))
    assert parts.dims == ("layer", "pos", "head")
    assert torch.allclose(parts.values.sum(1), whole.values, atol=1e-5)
    assert torch.equal(parts.values[:, :3], torch.zeros(3, 3, 4))  # before the first difference
    with pytest.raises(ValueError, match="steps is 0"):
        ml.attribution_patching(tiny, *pair, METRIC, steps=0)


def halved(model, tokens, metric):
    """The gradient for each layer's z, the half rule by hand: hooks put ½ (gate as it is) + ½ (gate held) there."""
    found, names = {}, [f"blocks.{n}.attn.hook_z" for n in range(model.cfg.n_layers)]

    def look(x, hook):
        found[hook.name] = x if x.requires_grad else x.requires_grad_()
        return found[hook.name]

    def mixed(x, hook):
        gate, up = (found[hook.name.replace("hook_post", f"hook_{site}")] for site in ("pre", "pre_linear"))
        silu = torch.nn.functional.silu
        return (gate * torch.sigmoid(gate).detach() * up.detach() + silu(gate).detach() * up) / 2

    start = ("blocks.0.hook_resid_pre", lambda x, hook: x.detach().clone().requires_grad_())
    hooks = [start, *((name, look) for name in names)]
    for n in range(model.cfg.n_layers):
        hooks += [(f"blocks.{n}.mlp.hook_{site}", look) for site in ("pre", "pre_linear")]
        hooks += [(f"blocks.{n}.mlp.hook_post", mixed)]
    with torch.enable_grad(), model.hooks(fwd_hooks=hooks):
        total = metric(model(tokens)).sum()
    return torch.autograd.grad(total, [found[name] for name in names])


@pytest.mark.parametrize("engine", ["fast", "plain"])
def test_the_half_rule_by_hand(pair, engine):
    """For silu act(gate) / gate is its sigmoid; values are as they were, and elsewhere nothing is halved."""
    model = ml.tiny("gqa")
    run, source = (run_of(model, each, engine=engine) for each in pair)
    expected = halved(model, pair[0], METRIC)
    for mine, theirs in zip(run.site_gradients(METRIC, rule="half"), expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5, rtol=1e-3)
    plain = ml.attribution_patching(model, run, source, METRIC)
    half = ml.attribution_patching(model, run, source, METRIC, rule="half")
    assert (plain.values[:2] - half.values[:2]).abs().max() > 1e-4 and plain.baselines == half.baselines
    edges = ml.edge_attribution(model, run, source, METRIC, rule="half")  # and they still add up
    for layer, head in [(0, 0), (1, 2), (2, 1)]:
        total = edges.at(sender=f"{layer}.{head}").sum()
        assert total == pytest.approx(half.values[layer, head].item(), abs=1e-4)
    gpt2 = ml.tiny("gpt2")
    one, two = (
        ml.attribution_patching(gpt2, *pair, METRIC, rule=rule).values for rule in ("gradient", "half")
    )
    assert torch.equal(one, two)
    with pytest.raises(ValueError, match="rule is 'relp'; it must be one of"):
        ml.attribution_patching(gpt2, *pair, METRIC, rule="relp")


@pytest.mark.parametrize("act", ["silu", "gelu", "relu"])
def test_half_of_a_product_goes_to_each_factor(act):
    """Step times slope: for both factors changed from 0 on, with a gate whose ratio is held, it is the whole."""
    from mechlab.runs.matrices import ACTIVATIONS, by_half_rule

    gate, up = torch.tensor([[0.7, -1.2, 0.0, 3.0]] * 2) * torch.tensor([[1.0], [1.5]])
    gate, up = gate.requires_grad_(), up.requires_grad_()
    value = ACTIVATIONS[act](gate) * up
    found = by_half_rule(value, gate, up, ACTIVATIONS[act])
    assert torch.equal(found, value)
    slopes = torch.autograd.grad(found.sum(), (gate, up))
    assert torch.allclose(slopes[0] * gate + slopes[1] * up, value, atol=1e-6)
    assert torch.allclose(slopes[0] * gate, slopes[1] * up, atol=1e-6)


@pytest.mark.parametrize("engine", ["fast", "plain"])
@pytest.mark.parametrize("site", ["q", "k"])
def test_the_softmax_computed_again_by_hand(tiny, pair, site, engine):
    """AtP*: the new pattern from hooks of the whole model, times the gradient for the pattern from autograd."""
    base, source = (run_of(tiny, each, engine=engine) for each in pair)
    found = ml.attribution_patching(tiny, base, source, METRIC, site=site, exact_softmax=True)
    gap, cache = found.baselines["source"] - found.baselines["base"], tiny.run_with_cache(pair[1])[1]
    for layer in range(3):
        names = f"blocks.{layer}.attn.hook_{site}", f"blocks.{layer}.attn.hook_pattern"
        old, seen = tiny.run_with_cache(pair[0])[1][names[1]], {}

        def look(x, hook, seen=seen):
            seen["x"] = x.detach().requires_grad_()
            return seen["x"]

        with torch.enable_grad(), tiny.hooks(fwd_hooks=[(names[1], look)]):
            slope = torch.autograd.grad(METRIC(tiny(pair[0])).sum(), seen["x"])[0]
        put = (names[0], lambda x, hook: cache[hook.name])
        with tiny.hooks(fwd_hooks=[put, (names[1], lambda x, hook, seen=seen: seen.update(new=x))]):
            tiny(pair[0])
        expected = ((seen["new"] - old) * slope).sum((2, 3)).mean(0) / gap
        expected = expected.unflatten(0, (found.values.shape[1], -1)).sum(1)
        assert torch.allclose(found.values[layer], expected, atol=1e-4), layer
    apart = ml.attribution_patching(
        tiny, base, source, METRIC, site=site, exact_softmax=True, by=("pos", "head")
    )
    if site == "q":  # a query changes its own row alone
        assert torch.allclose(apart.values.sum(1), found.values, atol=1e-4)
    assert torch.equal(apart.values[0, :3], torch.zeros_like(apart.values[0, :3]))
    slopes = ml.attribution_patching(tiny, base, source, METRIC, site=site)
    assert not torch.allclose(slopes.values, found.values, atol=1e-5)
    with pytest.raises(ValueError, match="site is 'z'; it must be one of"):
        ml.attribution_patching(tiny, base, source, METRIC, exact_softmax=True)


def test_for_a_small_change_queries_and_keys_are_the_patch_however_they_are_guessed(pair):
    gqa = ml.tiny("gqa").to(torch.float64)
    base = run_of(gqa, pair[0])
    start = base.at("resid_pre", 0).lerp(run_of(gqa, pair[1], like=base).at("resid_pre", 0), 1e-4)
    near = run_of(gqa, pair[1], embedded=start, like=base)
    for site in ("q", "k", "v"):
        exact = ml.activation_patching(gqa, base, near, METRIC, site, by=("head",), normalized=False).values
        for asked in ({}, {"exact_softmax": True} if site != "v" else {}):
            guess = ml.attribution_patching(gqa, base, near, METRIC, site=site, **asked)
            guess = guess.values * (guess.baselines["source"] - guess.baselines["base"])
            assert torch.allclose(guess, exact, atol=0.03 * exact.abs().max().item(), rtol=0.03)


@pytest.mark.parametrize("engine", ["fast", "plain"])
def test_dropped_layers_by_hand(tiny, pair, engine):
    """GradDrop: sizes of the guesses, each with what one layer writes cut out of the gradient, over L − 1."""
    base, source = (run_of(tiny, each, engine=engine) for each in pair)
    found = ml.attribution_patching(tiny, base, source, METRIC, drop=True)
    gap, sizes = found.baselines["source"] - found.baselines["base"], 0
    ours, theirs = (tiny.run_with_cache(each)[1] for each in pair)
    names = [f"blocks.{n}.attn.hook_z" for n in range(3)]
    for dropped in range(3):
        seen = {}

        def look(x, hook, seen=seen):
            seen[hook.name] = x.detach().requires_grad_() if not x.requires_grad else x
            return seen[hook.name]

        cut = [
            (f"blocks.{dropped}.hook_{site}", lambda x, hook: x.detach()) for site in ("attn_out", "mlp_out")
        ]
        start = ("blocks.0.hook_resid_pre", lambda x, hook: x.detach().clone().requires_grad_())
        hooks = [start, *((name, look) for name in names), *cut]
        with torch.enable_grad(), tiny.hooks(fwd_hooks=hooks):
            total = METRIC(tiny(pair[0])).sum()
        slopes = torch.autograd.grad(total, [seen[name] for name in names], materialize_grads=True)
        parts = [((theirs[n] - ours[n]) * s).sum((1, 3)) for n, s in zip(names, slopes, strict=True)]
        sizes = sizes + torch.stack(parts, 1).abs() / 2
    assert torch.allclose(found.per_prompt, sizes / gap, atol=1e-4)


# --- one edge, really patched ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["fast", "plain"])
def test_an_edge_into_an_mlp_by_hand(tiny, pair, engine):
    """One MLP reads what one head wrote on source, and all that comes later is live."""
    base, source = (run_of(tiny, each, engine=engine) for each in pair)
    edges = [
        ("0.1", "mlp 1 in"),
        ("1.2", "mlp 1 in"),
        ("0.3", "mlp 2 in"),
        ("mlp 0", "mlp 2 in"),
        ("embed", "mlp 0 in"),
    ]
    found = ml.edge_patching(tiny, base, source, METRIC, edges, normalized=False)
    ours, theirs = (tiny.run_with_cache(each)[1] for each in pair)
    for number, (sender, reader) in enumerate(edges):
        to = int(reader.split()[1])
        if sender == "embed":
            change = theirs["blocks.0.hook_resid_pre"] - ours["blocks.0.hook_resid_pre"]
        elif sender.startswith("mlp"):
            change = theirs["blocks.0.hook_mlp_out"] - ours["blocks.0.hook_mlp_out"]
        else:
            layer, head = map(int, sender.split("."))
            name = f"blocks.{layer}.attn.hook_z"
            change = (theirs[name] - ours[name])[:, :, head] @ tiny.blocks[layer].attn.W_O[head]
        middle = ours[f"blocks.{to}.hook_resid_post"] - ours[f"blocks.{to}.hook_mlp_out"] + change
        block = tiny.blocks[to]
        with torch.no_grad():
            written = block.mlp(block.ln2(middle))
            with tiny.hooks(fwd_hooks=[(f"blocks.{to}.hook_mlp_out", lambda x, hook, w=written: w)]):
                expected = METRIC(tiny(pair[0]))
        off = expected - base.value(METRIC)
        assert torch.allclose(found.per_prompt[:, number], off, atol=1e-4), (sender, reader)
        assert off.abs().max() > 1e-4


@pytest.mark.parametrize("engine", ["fast", "plain"])
def test_edges_into_heads_and_logits_are_path_patching_with_held_mlps(tiny, pair, engine):
    base, source = (run_of(tiny, each, engine=engine) for each in pair)
    asked = {"frozen_mlps": True, "normalized": False}
    kv = tiny.cfg.n_key_value_heads or 4
    group = "kv" if kv != 4 else ""
    for site, receivers, reader in (
        ("q", [(2, 1)], "2.1 q"),
        ("k", [(2, n) for n in range(4 // kv)], f"2.{group}0 k"),
        ("v", [(1, n) for n in range(4 // kv)], f"1.{group}0 v"),
    ):
        senders = ["0.0", "1.3"] if reader[0] == "2" else ["0.0"]
        heads = [[tuple(map(int, sender.split(".")))] for sender in senders]
        paths = ml.path_patching(tiny, base, source, METRIC, receivers, site, senders=heads, **asked)
        edges = [(sender, reader) for sender in senders]
        found = ml.edge_patching(tiny, base, source, METRIC, edges, normalized=False)
        assert torch.allclose(found.values, paths.values, atol=1e-4), reader
        assert found.labels["edge"][0] == f"0.0 → {reader}"
    direct = ml.path_patching(tiny, base, source, METRIC, **asked)
    found = ml.edge_patching(
        tiny, base, source, METRIC, [("1.2", "logits"), ("0.1", "logits")], normalized=False
    )
    assert torch.allclose(found.values, torch.stack([direct.values[1, 2], direct.values[0, 1]]), atol=1e-4)


def test_for_a_small_change_every_edge_is_as_guessed(pair):
    gqa = ml.tiny("gqa").to(torch.float64)
    base = run_of(gqa, pair[0])
    start = base.at("resid_pre", 0).lerp(run_of(gqa, pair[1], like=base).at("resid_pre", 0), 1e-4)
    near = run_of(gqa, pair[1], embedded=start, like=base)
    edges = [
        ("embed", "1.2 q"),
        ("0.3", "1.kv0 k"),
        ("mlp 0", "2.kv1 v"),
        ("1.1", "mlp 1 in"),
        ("mlp 1", "logits"),
    ]
    guess = ml.edge_attribution(gqa, base, near, METRIC)
    exact = ml.edge_patching(gqa, base, near, METRIC, edges).values
    guesses = torch.stack([guess.at(sender=sender, reader=reader) for sender, reader in edges])
    assert torch.allclose(guesses.to(exact), exact, rtol=0.05, atol=1e-3 * exact.abs().max().item())


def test_edges_that_are_not_there_are_refused(tiny, pair):
    for edge, said in (
        (("1.2", "1.0 q"), "1.2 cannot send to 1.0 q"),
        (("mlp 1", "mlp 1 in"), "mlp 1 cannot send to mlp 1 in"),
        (("9.0", "logits"), "sender is '9.0'"),
        (("embed", "2.9 q"), "reader is '2.9 q'"),
    ):
        with pytest.raises(ValueError, match=said):
            ml.edge_patching(tiny, *pair, METRIC, [edge])
    with pytest.raises(ValueError, match="There is no edge to patch"):
        ml.edge_patching(tiny, *pair, METRIC, [])
