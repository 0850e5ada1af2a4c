"""One prompt with patterns and norms held: the parts are the metric, by autograd through a frozen pass by hand."""

import pytest
import torch
from einops import einsum

import mechlab as ml
from mechlab.attribution.frozen import RULES, FrozenRun
from mechlab.runs.run import NotResumable
from tests.architectures import FAMILIES, bridge

METRIC = ml.logit_difference(50, 51)
TOKENS = torch.randint(5, 390, (1, 7), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("rule", RULES)
def test_every_family_adds_up_or_is_refused(name, rule):
    model = bridge(name)
    if name == "Mixtral":
        with pytest.raises(NotResumable, match="followed through matrices"):
            FrozenRun(model, TOKENS, METRIC, rule=rule)
        return
    flow = (frozen := FrozenRun(model, TOKENS, METRIC, rule=rule)).flow()
    assert flow.values.sum() == pytest.approx(METRIC(model(TOKENS)).item(), abs=1e-3)
    assert flow.gap.abs().max() < 1e-4 * (1 + flow.per_prompt.abs().sum())
    rows = frozen.direct([(1, 5, 3), (2, 6, 7)])
    wanted = [
        model.run_with_cache(TOKENS)[1][f"blocks.{n}.mlp.hook_post"][0, n + 4, 4 * n - 1] for n in (1, 2)
    ]
    assert torch.allclose(rows.change, torch.stack(wanted), atol=1e-4) and rows.gap.abs().max() < 1e-4
    assert not rows.patterns.any()


def frozen_pass(model, tokens, held, leaves):
    """The metric of the tiny grouped-query model, patterns, lengths and slopes of neurons from a real run."""
    cache, x = held, leaves["embed"]
    scale = lambda name: (cache[name].pow(2).mean(-1, keepdim=True) + model.cfg.eps).rsqrt()
    for n in range(model.cfg.n_layers):
        block, at = model.blocks[n], f"blocks.{n}."
        read = x * scale(at + "hook_resid_pre")
        V = block.attn.W_V.repeat_interleave(model.cfg.n_heads // len(block.attn.W_V), 0)
        v = einsum(read, V, "b key d, h d e -> b key h e")
        z = einsum(cache[at + "attn.hook_pattern"], v, "b h q key, b key h e -> b q h e")
        x = x + einsum(z, block.attn.W_O, "b q h e, h e d -> b q d")
        read = x * scale(at + "hook_resid_mid")
        g, u = cache[at + "mlp.hook_pre"], cache[at + "mlp.hook_pre_linear"]
        opens, carries = torch.sigmoid(g) * u / 2, torch.nn.functional.silu(g) / 2  # the half rule
        leaves[n] = opens * (read @ block.mlp.W_gate) + carries * (read @ block.mlp.W_in)
        leaves[n].retain_grad()
        x = x + leaves[n] @ block.mlp.W_out
    last = x * scale(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post")
    return METRIC(last @ model.W_U + model.b_U).sum()


def test_totals_are_gradient_times_activation_of_the_frozen_pass():
    model = ml.tiny("gqa")
    _, cache = model.run_with_cache(TOKENS)
    leaves = {"embed": cache["blocks.0.hook_resid_pre"].detach().clone().requires_grad_()}
    with torch.enable_grad():
        value = frozen_pass(model, TOKENS, cache, leaves)
        value.backward()
    frozen = FrozenRun(model, TOKENS, METRIC)
    assert value.item() == pytest.approx(frozen.change.item(), abs=1e-4)
    totals = frozen.totals()
    for layer in range(model.cfg.n_layers):
        wanted = (leaves[layer].grad * leaves[layer])[0]
        assert torch.allclose(totals.values[layer], wanted, atol=1e-4) and wanted.abs().max() > 1e-2
    through = (leaves["embed"].grad * leaves["embed"]).sum().item()
    assert frozen.flow().at(part="embeddings").item() == pytest.approx(through, abs=1e-4)


def test_the_rules_differ_and_agree_on_the_sum():
    model = ml.tiny("gqa")
    half, gate, into = (FrozenRun(model, TOKENS, METRIC, rule=rule) for rule in ("half", "gate", "in"))
    values = [each.totals().values for each in (half, gate, into)]
    assert (values[1] - values[2]).abs().max() > 1e-2
    assert torch.equal(half.change, gate.change)
    last = [each[-1] for each in values]  # behind the last neurons no rule is asked
    assert torch.allclose(last[0], last[1], atol=1e-5) and torch.allclose(last[1], last[2], atol=1e-5)


def test_a_graph_of_one_prompt_has_no_errors_but_neurons_left_out():
    frozen = FrozenRun(ml.tiny("gpt2"), TOKENS, METRIC)
    graph = ml.attribution_graph(frozen, [(0, 3, 4), (1, 6, 2), (2, 6, 9)])
    assert torch.allclose(graph.links.sum(1), graph.change, atol=1e-4)
    assert {source.kind for source in graph.sources} == {"neuron", "embedding", "biases", "other neurons"}
    assert 0 < graph.scores()["replacement"] < 1


def test_bad_input_is_named():
    model = ml.tiny("gqa")
    with pytest.raises(ValueError, match="rule"):
        FrozenRun(model, TOKENS, METRIC, rule="both")
    with pytest.raises(ValueError, match="nothing to follow"):
        FrozenRun(model, TOKENS, lambda logits: 0 * METRIC(logits))
    with pytest.raises(ValueError, match="no neuron 48"):
        FrozenRun(model, TOKENS, METRIC).direct([(1, 3, 48)])
