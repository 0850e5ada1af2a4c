"""Two prompts, every change written out: exact parts and rows, and exchanges equal to hooks by hand."""

import json

import pytest
import torch

import mechlab as ml
from mechlab.attribution.contrast import Contrast, kept_and_away
from mechlab.attribution.following import secant
from mechlab.runs.engines import run_of
from mechlab.runs.norms import Norm
from mechlab.runs.run import NotResumable
from tests.architectures import FAMILIES, bridge

METRIC = ml.logit_difference(50, 51)
KINDS = ("gqa", "gpt2")


def prompts(seed: int, pairs: int = 1, same: int = 2):
    base, source = torch.randint(5, 390, (2, pairs, 7), generator=torch.Generator().manual_seed(seed))
    source[:, :same] = base[:, :same]
    return base, source


@pytest.fixture(params=KINDS)
def contrast(request):
    return Contrast(ml.tiny(request.param), *prompts(3), METRIC)


def test_the_flow_is_the_whole_change(contrast):
    flow, model = contrast.flow(), contrast.model
    clean, other = (METRIC(model(run.tokens)) for run in (contrast.base, contrast.source))
    assert torch.allclose(flow.whole, clean - other, atol=1e-4)
    assert flow.gap.abs().max() < 1e-4 * flow.values.abs().sum()
    assert flow.at(part="metric").abs() < 1e-4  # this one is linear
    assert all(flow.at(part=part).abs() > 1e-3 for part in ("embeddings", "patterns", "norms"))


@pytest.mark.parametrize("kind", KINDS)
def test_several_pairs_are_each_their_own(kind):
    model, (base, source) = ml.tiny(kind), prompts(5, pairs=3)
    together = Contrast(model, base, source, METRIC)
    for row in range(3):
        alone = Contrast(model, base[row : row + 1], source[row : row + 1], METRIC)
        for scores in ("flow", "totals", "patterns"):
            ours, theirs = getattr(together, scores)().per_prompt[row], getattr(alone, scores)().per_prompt[0]
            assert torch.allclose(ours, theirs, atol=1e-4), scores


def test_a_metric_that_is_not_linear_is_whole_too():
    flow = Contrast(ml.tiny("gqa"), *prompts(3), ml.probability(50)).flow()
    assert flow.gap.abs().max() < 1e-5 and flow.at(part="metric").abs() > 1e-7


def test_a_neuron_of_the_last_layer_counts_as_by_hand(contrast):
    """Its change, times its row, through the last norm at the mean length of the two runs."""
    model, layer = contrast.model, contrast.model.cfg.n_layers - 1
    caches = [model.run_with_cache(run.tokens)[1] for run in (contrast.base, contrast.source)]
    a, b = (cache[f"blocks.{layer}.mlp.hook_post"][0, -1] for cache in caches)
    scales = [(x - x.mean(-1) if model.cfg.normalization_type.startswith("LN") else x) for x in
              (cache[f"blocks.{layer}.hook_resid_post"][0, -1] for cache in caches)]  # fmt: skip
    length = sum((x.pow(2).mean() + model.cfg.eps).rsqrt() for x in scales) / 2
    direction = model.W_U[:, 50] - model.W_U[:, 51]
    if model.cfg.normalization_type.startswith("LN"):
        direction = direction - direction.mean()
    by_hand = (a - b) * (model.blocks[layer].mlp.W_out @ direction) * length
    assert torch.allclose(contrast.totals().values[layer, -1], by_hand, atol=1e-4)
    assert torch.allclose(contrast.totals("mlp").values[layer, -1], by_hand.sum(), atol=1e-4)


@pytest.mark.parametrize("target", [(1, 6, 5), (2, 4, 11), (0, 3, 0)])
def test_a_row_adds_up_to_the_neurons_own_change(contrast, target):
    layer, pos, neuron = target
    row = contrast.direct([target, (2, 6, 1)])
    name = f"blocks.{layer}.mlp.hook_post"
    a, b = (
        contrast.model.run_with_cache(run.tokens)[1][name][0, pos, neuron]
        for run in (contrast.base, contrast.source)
    )
    assert torch.allclose(row.change[0], a - b, atol=1e-5)
    assert row.gap.abs().max() < 1e-4
    assert not row.neurons[0, layer:].any() and not row.neurons[0, :, pos + 1 :].any()  # causes come before
    assert not row.embeddings[0, pos + 1 :].any()
    if layer:
        assert row.neurons[0, :layer].abs().max() > 1e-4


def test_changes_are_of_the_neurons_themselves(contrast):
    caches = [contrast.model.run_with_cache(run.tokens)[1] for run in (contrast.base, contrast.source)]
    wanted = torch.stack([caches[0]["post", n][0] - caches[1]["post", n][0] for n in range(3)])
    assert torch.allclose(contrast.changes().values, wanted, atol=1e-5)


def test_rows_are_the_same_in_any_company(contrast):
    targets = [(2, p, n) for p in range(2, 7) for n in range(20)]
    together = contrast.direct(targets)
    alone = contrast.direct(targets[70:71])
    assert len(together.change) == 100 and torch.allclose(together.neurons[70], alone.neurons[0], atol=1e-5)


def by_hand(contrast, chosen, kept: bool):
    """The share of the change left: chosen neurons have source's values, or all the others."""
    theirs = contrast.model.run_with_cache(contrast.source.tokens)[1]

    def hook(layer):
        def run(x, hook):
            swap = chosen[layer] ^ kept
            return torch.where(swap[None], theirs[hook.name], x)

        return f"blocks.{layer}.mlp.hook_post", run

    hooks = [hook(layer) for layer in range(contrast.model.cfg.n_layers)]
    found = METRIC(contrast.model.run_with_hooks(contrast.base.tokens, fwd_hooks=hooks))
    return (found - contrast.source.value(METRIC)) / contrast.change


def test_kept_and_away_is_a_run_with_hooks(contrast):
    totals = contrast.totals()
    curves = kept_and_away(contrast, totals, [0, 5, 40, totals.values.numel()])
    for column, size in ((1, 5), (2, 40)):
        chosen = torch.zeros(totals.values.numel(), dtype=torch.bool)
        chosen[totals.values.flatten().abs().topk(size).indices] = True
        chosen = chosen.view(totals.values.shape)
        for what, kept in (("kept", True), ("away", False)):
            wanted = by_hand(contrast, chosen, kept)
            assert torch.allclose(curves.at(what=what)[column], wanted, atol=1e-4), (what, size)
    assert curves.at(what="away", size="0") == pytest.approx(1, abs=1e-5)
    assert curves.at(what="kept", size=str(totals.values.numel())) == pytest.approx(1, abs=1e-5)
    none, every = curves.at(what="kept", size="0"), curves.at(what="away", size=str(totals.values.numel()))
    assert none == pytest.approx(every.item(), abs=1e-5)  # what goes past all neurons


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_adds_up_or_is_refused(name):
    """Parallel blocks, norms behind, capped logits, biases, shared values: the same exact sum."""
    model, (base, source) = bridge(name), prompts(9, pairs=2)
    if name == "Mixtral":
        with pytest.raises(NotResumable, match="Changes are followed through matrices"):
            Contrast(model, base, source, METRIC)
        return
    contrast = Contrast(model, base, source, METRIC)
    assert contrast.flow().gap.abs().max() < 1e-4 * (1 + contrast.flow().per_prompt.abs().sum(1).max())
    one = Contrast(model, base[:1], source[:1], METRIC).direct([(1, 5, 3), (2, 6, 7)])
    assert one.gap.abs().max() < 1e-4 * (1 + one.change.abs().max())


def test_secants_are_exact_and_finite_where_both_are_equal():
    x = torch.tensor([-30.0, -1.0, 0.0, 0.5, 0.5, 12.0, 1e-6])
    y = torch.tensor([20.0, -1.0, 0.0, 0.4, 0.5 + 1e-7, 12.0, -1e-6])
    for f in (torch.nn.functional.silu, torch.relu, torch.tanh):
        slope = secant(f, x, y)
        assert slope.isfinite().all() and torch.allclose(slope * (x - y), f(x) - f(y), atol=1e-5)
    assert secant(torch.nn.functional.silu, x, x)[2] == pytest.approx(0.5)


@pytest.mark.parametrize("centred", [False, True])
def test_the_secant_of_a_norm_is_exact(centred):
    chance = torch.Generator().manual_seed(1)
    x, y, slope, weight = torch.randn(4, 3, 16, generator=chance)
    norm = Norm(centred, 1e-5, weight[0], y[0])
    back, length = norm.secant(3 * x, y, slope)
    wanted = (slope * (norm(3 * x) - norm(y))).sum(-1)
    assert (
        torch.allclose((back * (3 * x - y)).sum(-1) + length, wanted, atol=1e-4) and length.abs().min() > 1e-3
    )


def test_bad_input_is_named():
    model, (base, source) = ml.tiny("gqa"), prompts(3)
    with pytest.raises(ValueError, match="base and source are the same tokens"):
        Contrast(model, base, base, METRIC)
    with pytest.raises(ValueError, match="no change to follow"):
        Contrast(model, base, source, lambda logits: 0 * METRIC(logits))
    with pytest.raises(ValueError):
        Contrast(model, base, source[:, :-1], METRIC)
    contrast = Contrast(model, base, source, METRIC)
    with pytest.raises(ValueError, match="no neuron 48 at position 3: 48 neurons, 7 positions"):
        contrast.direct([(1, 3, 48)])
    with pytest.raises(ValueError, match=r"layer"):
        contrast.direct([(3, 3, 4)])
    with pytest.raises(ValueError, match="size of 2000 is asked for"):
        kept_and_away(contrast, contrast.totals(), [2000])
    with pytest.raises(ValueError, match="A ranking of neurons has the dims"):
        kept_and_away(contrast, contrast.totals("head"), [2])
    with pytest.raises(ValueError, match="unit"):
        contrast.totals("layer")
    with pytest.raises(ValueError, match="belongs to one pair"):
        Contrast(model, *prompts(3, pairs=2), METRIC).direct([(1, 3, 4)])
    edited = run_of(model, base).changed([ml.Put("mlp_out", 1, torch.zeros(1, 1, 1, 32))])
    with pytest.raises(ValueError, match="without edits"):
        Contrast(model, edited, source, METRIC)


@pytest.fixture(scope="module")
def capital():
    model = ml.load()
    metric = ml.logit_difference(*(model.to_single_token(word) for word in (" Paris", " Berlin")))
    return Contrast(model, "The capital of France is", "The capital of Germany is", metric)


@pytest.mark.model
def test_a_fact_is_spread_over_hundreds_of_neurons(capital):
    assert capital.change.item() == pytest.approx(12.4514, abs=1e-3)
    assert capital.flow().gap.abs() < 1e-4
    found = kept_and_away(capital, capital.totals(), [60, 1000])
    assert found.at(what="away").tolist() == pytest.approx([0.52, 0.07], abs=0.02)
    assert found.at(what="kept").tolist() == pytest.approx([0.115, 0.68], abs=0.02)
    chance = ml.Scores(
        torch.rand(tuple(capital.totals().values.shape), generator=torch.Generator().manual_seed(0)),
        ("layer", "pos", "neuron"),
        "chance",
    )
    assert kept_and_away(capital, chance, [1000]).at(what="away").item() > 0.9


@pytest.mark.model
def test_agreement_is_in_a_few_dozen_neurons_and_random_weights_add_up_as_well():
    model = ml.load()
    metric = ml.logit_difference(*(model.to_single_token(word) for word in (" are", " is")))
    pair = "The keys to the old cabinet", "The key to the old cabinet"
    contrast = Contrast(model, *pair, metric)
    found = kept_and_away(contrast, contrast.totals(), [25, 60])
    assert found.at(what="kept").tolist() == pytest.approx([0.52, 0.86], abs=0.03)
    assert found.at(what="away").tolist() == pytest.approx([0.165, 0.06], abs=0.03)
    random = Contrast(ml.random_weights(model), *pair, metric)
    assert random.flow().gap.abs() < 1e-3  # just as complete
    theirs = kept_and_away(random, random.totals(), [60]).at(what="kept").item()
    assert abs(theirs) < 0.5


# --- the graph ---

NODES = [(0, 3, 4), (0, 6, 11), (1, 4, 7), (1, 6, 2), (2, 6, 5), (2, 6, 9)]


def test_rows_of_a_graph_add_up_also_when_it_is_pruned(contrast):
    graph = ml.attribution_graph(contrast, NODES[::-1])
    assert graph.nodes == NODES and len(graph.links) == len(NODES) + 1
    for each in (graph, graph.prune(0.5), graph.prune(1e-6)):
        assert torch.allclose(each.links.sum(1), each.change, atol=1e-4)
        assert torch.allclose(each.change[-1:], contrast.change, atol=1e-4)
    reached = dict(zip(NODES, graph.influence()[: len(NODES)].tolist(), strict=True))
    for keep in (0.3, 0.6, 0.95, 1.0):  # the fewest that hold the share
        kept = graph.prune(keep).nodes
        held = sorted((reached[node] for node in kept), reverse=True)
        assert sum(held) >= keep * sum(reached.values()) - 1e-6 > sum(held[:-1]) - 1e-5
        assert set(kept) <= set(NODES) and min(held) >= max(
            [reached[n] for n in NODES if n not in kept], default=0
        )
    assert len(graph.prune(1e-6).nodes) == 1


def test_a_link_is_the_row_of_its_target(contrast):
    graph, row = ml.attribution_graph(contrast, NODES), contrast.direct([(2, 6, 5)])
    assert torch.allclose(
        graph.links[4, :6], torch.stack([row.neurons[0, layer, pos, n] for layer, pos, n in NODES]), atol=1e-5
    )
    assert not graph.links[4, 4:6].any()  # none from itself, or from its own layer
    assert graph.top(3)["change"].abs().is_monotonic_decreasing
    assert set(graph.top(50)["to"]) <= {*map(graph.label, graph.targets)}


def test_influence_is_the_sum_over_all_paths(contrast):
    """By the matrix that adds up paths of every length: (I − A)⁻¹ − I."""
    graph = ml.attribution_graph(contrast, NODES)
    count, size = len(NODES), len(graph.sources) + 1
    A = torch.zeros(size, size)
    A[:count, :-1], A[-1, :-1] = graph.links[:-1].abs(), graph.links[-1].abs()
    A = A / A.sum(1, keepdim=True).clamp_min(1e-12)
    B = torch.linalg.inv(torch.eye(size) - A) - torch.eye(size)
    assert torch.allclose(graph.influence(), B[-1, :-1], atol=1e-5)
    wrong = torch.tensor([s.kind in ("other neurons", "patterns", "norms") for s in graph.sources])
    ends = torch.arange(size - 1) >= count
    found = graph.scores()
    assert found["replacement"] == pytest.approx(
        float(B[-1, :-1][ends & ~wrong].sum() / B[-1, :-1][ends].sum()), abs=1e-5
    )
    reached = torch.cat([B[-1, :count], torch.ones(1)])
    right = torch.cat([A[:count, :-1], A[-1:, :-1]])[:, ~wrong].sum(1)
    assert found["completeness"] == pytest.approx(float((reached * right).sum() / reached.sum()), abs=1e-5)
    assert graph.influence()[ends].sum() == pytest.approx(1, abs=1e-5)  # every path begins somewhere


# What the published viewers ask of a file: required keys and their types.
NODE = {
    "node_id": str,
    "feature": int,
    "layer": str,
    "ctx_idx": int,
    "feature_type": str,
    "jsNodeId": str,
    "clerp": str,
}
NODE |= {
    "influence": float,
    "token_prob": float,
    "is_target_logit": bool,
    "run_idx": int,
    "reverse_ctx_idx": int,
}
METADATA = {
    "slug": str,
    "scan": str,
    "transcoder_list": list,
    "prompt_tokens": list,
    "prompt": str,
    "node_threshold": float,
}


def test_the_file_is_what_viewers_of_graphs_read(contrast, tmp_path):
    graph = ml.attribution_graph(contrast, NODES, name="A − B")
    graph.to_json(tmp_path / "graph.json", slug="capital", scan="tiny", labels={NODES[0]: "plural"})
    whole = json.loads((tmp_path / "graph.json").read_text(encoding="utf-8"))
    assert set(whole) == {"metadata", "qParams", "nodes", "links"}
    assert {key: type(whole["metadata"][key]) for key in METADATA} == METADATA
    assert {"pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"} == set(whole["qParams"])
    for node in whole["nodes"]:
        assert {key: type(node[key]) for key in NODE} == NODE
        assert node["feature_type"] in (
            "cross layer transcoder",
            "mlp reconstruction error",
            "embedding",
            "logit",
        )
        assert 0 <= node["ctx_idx"] < len(whole["metadata"]["prompt_tokens"])
    ids = [node["node_id"] for node in whole["nodes"]]
    assert len(set(ids)) == len(ids) and {link["source"] for link in whole["links"]} <= set(ids)
    assert len(
        {node["feature"] for node in whole["nodes"] if node["feature_type"].startswith("cross")}
    ) == len(NODES)
    arrived = dict.fromkeys(ids, 0.0)
    for link in whole["links"]:
        assert set(link) == {"source", "target", "weight"} and type(link["weight"]) is float
        arrived[link["target"]] += link["weight"]
    for node in whole["nodes"]:
        if node["activation"] is not None:
            assert arrived[node["node_id"]] == pytest.approx(node["activation"], abs=1e-3)
    (last,) = [node for node in whole["nodes"] if node["is_target_logit"]]
    assert last["clerp"] == 'Output "A − B" (p=1.000)' and last["layer"] == "3"
    assert "plural" in [node["clerp"] for node in whole["nodes"]]


def test_a_graph_needs_a_metric_that_is_linear():
    bent = Contrast(ml.tiny("gqa"), *prompts(3), ml.probability(50))
    with pytest.raises(ValueError, match="not linear in the logits"):
        ml.attribution_graph(bent, NODES)
    with pytest.raises(ValueError, match=r"keep is 0\.0"):
        ml.attribution_graph(Contrast(ml.tiny("gqa"), *prompts(3), METRIC), NODES).prune(0.0)
