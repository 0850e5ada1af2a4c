"""Neurons: scores written out by hand, knock-outs beside plain hooks, matched random neurons, bad input."""

import pytest
import torch

import mechlab as ml
from mechlab.attribution import neurons as module
from tests.test_hooks import hooks_left
from tests.test_logits import BASE, RIGHT, biased  # noqa: F401  (a fixture)


def readout(model, x):
    return x - x.mean(-1, keepdim=True) if model.cfg.normalization_type.startswith("LN") else x


@torch.no_grad()
def test_value_neuron_scores_are_the_definition(biased, monkeypatch):  # noqa: F811
    monkeypatch.setattr(module, "EXACT", 10_000)
    found = ml.value_neuron_scores(biased, BASE, RIGHT)
    _, cache = biased.run_with_cache(BASE)
    for row, layer, neuron in ((0, 0, 3), (1, 1, 40), (2, 2, 11)):
        scale = cache["ln_final.hook_scale"][row, -1]
        before = cache["resid_mid", layer][row, -1]
        written = cache["post", layer][row, -1, neuron] * biased.W_out[layer, neuron]
        log_p = lambda x: (readout(biased, x) / scale @ biased.W_U + biased.b_U).log_softmax(-1)[RIGHT[row]]  # noqa: B023
        assert torch.allclose(
            found.per_prompt[row, layer, neuron], log_p(before + written) - log_p(before), atol=1e-4
        )


def test_quiet_neurons_may_be_scored_to_second_order(tiny, monkeypatch):
    close = ml.value_neuron_scores(tiny, BASE, RIGHT)
    monkeypatch.setattr(module, "EXACT", 10_000)
    exact = ml.value_neuron_scores(tiny, BASE, RIGHT)
    monkeypatch.setattr(module, "EXACT", 4)
    rough = ml.value_neuron_scores(tiny, BASE, RIGHT)
    assert torch.allclose(close.per_prompt, exact.per_prompt, atol=0.005)
    error = (rough.per_prompt - exact.per_prompt).abs()
    assert 0 < error.max() < 0.3 * exact.per_prompt.abs().max()


@pytest.mark.model
def test_the_estimate_is_within_five_thousandths_of_a_nat_on_the_real_model(smollm2, monkeypatch):
    base = smollm2.to_tokens(["The capital of France is"])
    close = ml.value_neuron_scores(smollm2, base, " Paris", layers=[15, 23, 27, 29])
    monkeypatch.setattr(module, "EXACT", 1536)
    exact = ml.value_neuron_scores(smollm2, base, " Paris", layers=[15, 23, 27, 29])
    assert (close.values - exact.values).abs().max() < 0.005
    assert exact.values[24].abs().max() == 0 < exact.values[29].abs().max()


def test_comparing_with_nothing_broken_finds_nothing_lost(tiny):
    assert ml.comparative_neuron_scores(tiny, BASE, RIGHT, []).values.abs().max() == 0

    def zero(z, hook):
        return torch.zeros_like(z)

    hooks = [("blocks.1.attn.hook_z", zero)]
    lost = ml.comparative_neuron_scores(tiny, BASE, RIGHT, hooks)
    assert lost.values[1:].abs().max() > 0 and hooks_left(tiny) == 0
    plain, broken = (
        ml.value_neuron_scores(tiny, BASE, RIGHT),
        ml.value_neuron_scores(tiny, BASE, RIGHT, hooks=hooks),
    )
    assert torch.allclose(lost.per_prompt, plain.per_prompt - broken.per_prompt)


@torch.no_grad()
@pytest.mark.parametrize("row", ["gate", "in"])
def test_query_scores_and_everything_else_make_up_the_pre_activation(row, tiny):
    if row == "gate" and not tiny.cfg.gated_mlp:
        with pytest.raises(ValueError, match="this model has only in"):
            ml.query_neuron_scores(tiny, BASE, [(2, 5)], [1.0], row=row)
        return
    value = (2, 5)
    found = ml.query_neuron_scores(tiny, BASE, [value], [2.0], row=row)
    _, cache = tiny.run_with_cache(BASE)
    mlp = tiny.blocks[2].mlp
    key = (mlp.W_gate if row == "gate" else mlp.W_in)[:, 5]
    total = readout(tiny, cache["resid_mid", 2][:, -1]) @ key
    # Shares of the embedding, attention and biases: with the neurons' shares they make 1, times the weight 2.
    others = cache["hook_embed"][:, -1]
    if "hook_pos_embed" in cache:
        others = others + cache["hook_pos_embed"][:, -1]
    for layer in range(3):
        others = others + cache["attn_out", layer][:, -1]
    for layer in range(2):
        rows = cache["post", layer][:, -1] @ tiny.W_out[layer]
        others = others + cache["mlp_out", layer][:, -1] - rows  # the bias of the MLP
    shares = 2.0 * (readout(tiny, others) @ key) / total
    assert torch.allclose(found.per_prompt.flatten(1).sum(1) + shares, torch.full((3,), 2.0), atol=1e-3)
    assert found.per_prompt[:, 2].abs().max() == 0  # not its own layer


@torch.no_grad()
def test_knock_out_is_zeros_in_the_named_places(tiny):
    metric, chosen = ml.log_prob(RIGHT), [(0, 3), (2, 1), (2, 7)]
    for position in (None, -1):
        found = ml.ablate_neurons(tiny, BASE, metric, chosen, pos=position, draws=4)

        def zero(x, hook, pos=position):
            x = x.clone()
            for layer, index in chosen:
                if hook.name == f"blocks.{layer}.mlp.hook_post":
                    x[:, slice(None) if pos is None else pos, index] = 0
            return x

        with tiny.hooks(fwd_hooks=[(f"blocks.{n}.mlp.hook_post", zero) for n in range(3)]):
            by_hand = metric(tiny(BASE))
        assert torch.allclose(found.after, by_hand) and torch.allclose(found.before, metric(tiny(BASE)))
        assert found.random.shape == (4, 3) and "in 4 draws" in repr(found)
    nothing = ml.ablate_neurons(tiny, BASE, metric, [], draws=2)
    assert torch.equal(nothing.after, nothing.before) and hooks_left(tiny) == 0


@torch.no_grad()
def test_random_neurons_are_of_the_same_layers_others_and_about_as_loud(tiny):
    _, cache = tiny.run_with_cache(BASE)
    chosen = [(0, 3), (0, 4), (2, 7)]
    loud = lambda n: (cache["post", n[0]][:, :, n[1]].abs().mean() * tiny.W_out[n].norm()).item()
    everywhere = torch.ones(BASE.shape, dtype=torch.bool)
    quietest = sorted(range(tiny.cfg.d_mlp), key=lambda n: loud((1, n)))
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        drawn = module._matched(tiny, cache, chosen, everywhere, generator)
        assert [layer for layer, _ in drawn] == [0, 0, 2]
        assert not set(drawn) & set(chosen) and len(set(drawn)) == 3
        (match,) = module._matched(tiny, cache, [(1, quietest[0])], everywhere, generator)
        assert match[1] in quietest[1:21]


def test_value_tokens_are_the_row_through_the_unembedding(tiny):
    table = ml.value_tokens(tiny, (1, 9), k=4)
    effect = (tiny.W_out[1, 9] @ tiny.W_U).detach()
    assert table["raises"].tolist() == [tiny.to_string([i]) for i in effect.topk(4).indices.tolist()]
    assert table["lowered by"][0] == pytest.approx(-effect.min().item(), abs=0.006)
    turned = ml.value_tokens(tiny, (1, 9), k=4, activation=-2.0)
    assert turned["raises"].tolist() == table["lowers"].tolist()
    assert turned["raised by"][0] == pytest.approx(-2 * effect.min().item(), abs=0.006)


def test_bad_input_is_one_clear_sentence(tiny):
    count = tiny.cfg.d_mlp
    with pytest.raises(ValueError, match=f"no neuron {count} in layer 0"):
        ml.ablate_neurons(tiny, BASE, ml.log_prob(RIGHT), [(0, count)])
    with pytest.raises(ValueError, match="no neuron 0 in layer 3: layers go from 0 to 2"):
        ml.value_tokens(tiny, (3, 0))
    every = [(1, n) for n in range(count)]
    with pytest.raises(ValueError, match="Every neuron of layer 1 is chosen"):
        ml.ablate_neurons(tiny, BASE, ml.log_prob(RIGHT), every)
    with pytest.raises(ValueError, match="one number per prompt"):
        ml.ablate_neurons(tiny, BASE, lambda logits: logits.mean(), [(0, 1)])
    with pytest.raises(ValueError, match="this model has layers 0 to 2"):
        ml.value_neuron_scores(tiny, BASE, RIGHT, layers=[3])


def test_they_run_on_a_folder_in_hugging_face_format(folder):
    model = ml.load(folder[0], quiet=True)
    scores = ml.value_neuron_scores(model, BASE, RIGHT)
    best = [
        (int(i) // model.cfg.d_mlp, int(i) % model.cfg.d_mlp) for i in scores.values.flatten().topk(3).indices
    ]
    ml.query_neuron_scores(model, BASE, best, [1.0] * 3, row="in")
    assert ml.ablate_neurons(model, BASE, ml.log_prob(RIGHT), best, draws=2).after.shape == (3,)
