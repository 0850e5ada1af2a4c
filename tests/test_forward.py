"""The forward pass by hand equals the bridge."""

import pytest
import torch

import mechlab as ml
from mechlab.runs import forward


def test_equal_to_the_tiny_bridge(gqa):
    tokens = gqa.to_tokens("When John and Mary went to the store, John gave a drink to")[0]
    expected = gqa(tokens[None])[0]
    assert torch.allclose(forward.forward(gqa, tokens), expected, atol=1e-4)


def test_every_part_equals_its_hook(gqa):
    _, cache = gqa.run_with_cache(torch.arange(1, 9)[None])
    theta = gqa.cfg.rope_parameters["rope_theta"]
    resid = cache["resid_pre", 1][0]
    x = forward.rms_norm(resid, gqa.cfg.eps)
    assert torch.allclose(x, cache["blocks.1.ln1.hook_normalized"][0], atol=1e-5)
    q, k = cache["q", 1][0], cache["k", 1][0]
    assert torch.allclose(forward.rotate(q, theta), cache["blocks.1.attn.hook_rot_q"][0], atol=1e-5)
    pattern = forward.attention_pattern(forward.rotate(q, theta), forward.rotate(k, theta))
    assert torch.allclose(pattern, cache["pattern", 1][0], atol=1e-5)
    written = forward.head_outputs(pattern, cache["v", 1][0], gqa.W_O[1])
    assert torch.allclose(written.sum(1), cache["attn_out", 1][0], atol=1e-5)
    assert torch.allclose(forward.block(gqa, 1, resid), cache["resid_post", 1][0], atol=1e-5)


@pytest.mark.model
def test_equal_to_smollm2(smollm2):
    tokens = smollm2.to_tokens("The capital of France is")[0]
    with torch.no_grad():
        assert torch.allclose(ml.forward.forward(smollm2, tokens), smollm2(tokens[None])[0], atol=1e-3)
