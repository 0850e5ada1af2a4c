"""Taking a run up in the middle: the numbers of a full run, for every layer, position and kind of patch."""

import pytest
import torch

import mechlab as ml
from mechlab.intervention.resume import NotResumable, Resume
from tests.test_hooks import hooks_left


@pytest.fixture(scope="module", params=["gqa", "gpt2"])
def run(request):
    model = ml.tiny(request.param)
    base, source = torch.randint(5, 60, (2, 3, 9), generator=torch.Generator().manual_seed(0))
    return model, base, source, Resume(model, base), Resume(model, source)


def test_the_first_run_is_the_models(run):
    model, base, _, kept, _ = run
    with torch.no_grad():
        logits, cache = model.run_with_cache(base)
    assert torch.allclose(kept.logits, logits, atol=1e-4)
    for layer in range(model.cfg.n_layers):
        assert torch.allclose(kept.resid_pre[layer], cache["resid_pre", layer], atol=1e-4)
        assert torch.allclose(kept.resid_mid[layer], cache["resid_mid", layer], atol=1e-4)
        assert torch.allclose(kept.z[layer], cache["z", layer], atol=1e-4)
    assert hooks_left(model) == 0


@pytest.mark.parametrize("first", [0, 4, 8])
@pytest.mark.parametrize("middle", [False, True])
def test_a_changed_stream_gives_the_logits_of_a_full_run(run, first, middle):
    model, base, _, kept, other = run
    prompts = torch.tensor([2, 0, 0, 1])
    for layer in range(model.cfg.n_layers):
        there = (other.resid_mid if middle else other.resid_pre)[layer][prompts]
        found = kept.run(layer, prompts, there[:, first:], first, middle=middle, positions=slice(None))
        # the bridge's hook_resid_mid changes what the MLP reads and not the stream, so attention is changed instead
        name = f"blocks.{layer}.hook_{'attn_out' if middle else 'resid_pre'}"
        value = there - kept.resid_pre[layer][prompts] if middle else there
        put = lambda x, hook, value=value: torch.cat([x[:, :first], value[:, first:]], 1)
        with torch.no_grad(), ml.intervene(model, [(name, put)]):
            expected = model(base[prompts])[:, first:]
        assert torch.allclose(found, expected, atol=1e-4)
        assert (found - kept.logits[prompts][:, first:]).abs().max() > 1e-3  # something did change
        assert torch.equal(kept.run(layer, prompts, there[:, first:], first, middle=middle), found[:, -1:])


def test_one_head_of_another_run(run):
    model, base, _, kept, other = run
    prompts = torch.arange(len(base))
    for layer in range(model.cfg.n_layers):
        W_O = model.blocks[layer].attn.W_O
        for head in range(model.cfg.n_heads):
            change = (other.z - kept.z)[layer][:, 5:, head] @ W_O[head]
            found = kept.run(layer, prompts, kept.resid_mid[layer][:, 5:] + change, 5, middle=True)
            put = lambda z, hook, layer=layer, head=head: torch.cat(
                [
                    z[:, :, :head],
                    torch.cat([z[:, :5, head : head + 1], other.z[layer][:, 5:, head : head + 1]], 1),
                    z[:, :, head + 1 :],
                ],
                2,
            )
            with torch.no_grad(), ml.intervene(model, [(f"blocks.{layer}.attn.hook_z", put)]):
                assert torch.allclose(found, model(base)[:, -1:], atol=1e-4)


def test_what_cannot_be_taken_up_is_refused(run):
    model, base, _, kept, _ = run
    with pytest.raises(ValueError, match="2 positions from position 4 on; prompts have 9"):
        kept.run(0, torch.tensor([0]), kept.resid_pre[0][:1, 4:6], 4)
    act = model.cfg.act_fn
    try:
        model.cfg.act_fn = "relu"
        with pytest.raises(NotResumable, match="other logits than the model"):
            Resume(model, base)
        model.cfg.act_fn = "softplus"
        with pytest.raises(NotResumable, match="does not know 'softplus'"):
            Resume(model, base)
    finally:
        model.cfg.act_fn = act


@pytest.mark.model
def test_on_the_model_of_the_course(smollm2):
    base = smollm2.to_tokens(["When John and Mary went to the store, John gave a drink to"])
    source = smollm2.to_tokens(["When John and Mary went to the store, Mary gave a drink to"])
    kept, other = Resume(smollm2, base), Resume(smollm2, source)
    prompts = torch.tensor([0])
    for layer, head in ((23, 3), (16, 0)):
        change = (other.z - kept.z)[layer][:, :, head] @ smollm2.blocks[layer].attn.W_O[head]
        found = kept.run(layer, prompts, kept.resid_mid[layer] + change, 0, middle=True)[:, -1]
        with torch.no_grad():
            _, cache = smollm2.run_with_cache(source, names_filter=lambda name: name.endswith("hook_z"))
            with ml.intervene(smollm2, ml.replace_head(smollm2, (layer, head), cache)):
                assert torch.allclose(found, smollm2(base)[:, -1], atol=1e-3)
