"""Causal tracing: the short way against whole runs with hooks, and what must hold for any fact."""

import pytest
import torch

import mechlab as ml
from mechlab.runs import engines
from tests.test_hooks import hooks_left
from tests.test_runs import Refuses

METRIC = ml.probability(7)


@pytest.fixture(scope="module")
def prompt():
    return torch.randint(5, 60, (1, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("site", "window"), [("resid_pre", 1), ("attn_out", 1), ("mlp_out", 2), ("mlp_out", 3)]
)
def test_the_short_way_is_the_plain_way(tiny, prompt, site, window, monkeypatch):
    given = {"site": site, "window": window, "samples": 3}
    found = ml.causal_tracing(tiny, prompt, METRIC, subject=[2, 3], **given)
    monkeypatch.setattr(engines, "Fast", Refuses)
    with pytest.warns(UserWarning, match="slower, the same numbers"):
        plain = ml.causal_tracing(tiny, prompt, METRIC, subject=[2, 3], **given)
    assert torch.allclose(found.per_prompt, plain.per_prompt, atol=1e-5)
    assert found.baselines == pytest.approx(plain.baselines, abs=1e-5)
    assert plain.per_prompt.abs().max() > 1e-3
    assert hooks_left(tiny) == 0


def test_one_state_by_hand(gqa, prompt):
    """Restoring the stream at (layer 1, position 3), written out."""
    found = ml.causal_tracing(gqa, prompt, METRIC, subject=[2, 3], samples=2, noise=2.0, seed=5)
    noise = torch.zeros(2, 8, 32)
    drawn = torch.randn(2, 2, 32, generator=torch.Generator().manual_seed(5))
    noise[:, 2:4] = 2.0 * gqa.W_E.detach().std() * drawn
    with torch.no_grad():
        _, cache = gqa.run_with_cache(prompt)
        corrupt = ("blocks.0.hook_resid_pre", lambda x, hook: x + noise)

        def restore(x, hook):
            x = x.clone()
            x[:, 3] = cache["resid_pre", 1][0, 3]
            return x

        with ml.intervene(gqa, [corrupt]):
            corrupted = METRIC(gqa(prompt.expand(2, -1)))
        with ml.intervene(gqa, [corrupt, ("blocks.1.hook_resid_pre", restore)]):
            restored = METRIC(gqa(prompt.expand(2, -1)))
    assert torch.allclose(found.per_prompt[:, 1, 3], restored - corrupted, atol=1e-5)


def test_the_whole_subject_restored_at_the_start_is_the_clean_run(tiny, prompt):
    found = ml.causal_tracing(tiny, prompt, METRIC, subject=[4], samples=4)
    whole = found.baselines["clean"] - found.baselines["corrupted"]
    assert found.values[0, 4] == pytest.approx(
        whole, abs=1e-5
    )  # one token: its embedding set back is everything
    assert torch.equal(found.values[:, :4], torch.zeros(3, 4))  # never corrupted
    assert found.per_prompt.shape == (4, 3, 8) and found.interval().shape == (2, 3, 8)


def test_a_wide_window_restores_at_least_what_it_holds(tiny, prompt):
    narrow = ml.causal_tracing(tiny, prompt, METRIC, subject=[2, 3], site="mlp_out", samples=2, layers=[1])
    wide = ml.causal_tracing(
        tiny, prompt, METRIC, subject=[2, 3], site="mlp_out", samples=2, layers=[1], window=3
    )
    assert not torch.allclose(narrow.values, wide.values, atol=1e-4)


def test_some_positions_are_those_of_the_whole_map(tiny, prompt):
    whole = ml.causal_tracing(tiny, prompt, METRIC, subject=[2, 3], samples=2)
    some = ml.causal_tracing(tiny, prompt, METRIC, subject=[2, 3], samples=2, positions=[7, 1, 3])
    assert torch.equal(some.values, whole.values[:, [7, 1, 3]])
    assert list(some.labels["pos"]) == [whole.labels["pos"][p] for p in (7, 1, 3)]


def test_no_noise_is_no_effect(tiny, prompt):
    found = ml.causal_tracing(tiny, prompt, METRIC, subject=[2], noise=0.0, samples=2)
    assert found.values.abs().max() < 1e-5


def test_where_a_subject_stands(tiny):
    prompt = "When John and Mary went to the store, John gave a drink to"
    texts = tiny.to_str_tokens(prompt)
    assert ml.subject_positions(tiny, prompt, "Mary") == [texts.index(" Mary")]
    assert ml.subject_positions(tiny, prompt, "John") == [len(texts) - 1 - texts[::-1].index(" John")]
    several = ml.subject_positions(tiny, prompt, "the store")
    assert "".join(texts[p] for p in several).strip() == "the store"
    assert ml.subject_positions(tiny, prompt, "When")[0] == 1  # the model's first token is no subject
    with pytest.raises(ml.PromptError, match="'Paris' does not occur in the prompt"):
        ml.subject_positions(tiny, prompt, "Paris")
    with pytest.raises(ml.PromptError, match="'' does not occur"):
        ml.subject_positions(tiny, prompt, "")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"site": "z"}, "site is 'z'"),
        ({"window": 3}, "1 for the stream"),
        ({"subject": []}, "positions between 0 and 7"),
        ({"subject": [8]}, r"positions between 0 and 7: got 1 prompts and \[8\]"),
        ({"positions": [9]}, r"got 1 prompts and \[2, 9\]"),
        ({"layers": [3]}, "the model has layers 0 to 2"),
    ],
)
def test_bad_input_is_named(gqa, prompt, given, message):
    with pytest.raises(ValueError, match=message):
        ml.causal_tracing(gqa, prompt, METRIC, subject=given.pop("subject", [2]), **given)
