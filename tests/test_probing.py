"""Probes: planted directions are found, floors are floors, groups stay together, CCS finds what is planted; bad input."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

import mechlab as ml
from mechlab.discovery import probing
from mechlab.prompts import PromptError


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(n=120, d=20, strength=3.0, seed=0):
    """Two layers: noise alone, and noise with a direction for the label."""
    labels = np.arange(n) % 2
    direction = random(d, seed=seed + 1)
    direction /= direction.norm()
    noise = random(n, d, seed=seed)
    return (
        torch.stack([noise, noise + strength * torch.tensor(2 * labels - 1)[:, None] * direction]),
        labels,
        direction,
    )


@pytest.mark.parametrize("probe", ["logistic", "mass_mean"])
def test_a_planted_direction_is_found(probe):
    features, labels, direction = planted()
    found = ml.probe_layers(features, labels, probe=probe)
    assert found.score.values[0] < 0.65 and found.score.values[1] > 0.93
    assert found.score.per_prompt.shape == (120, 2) and found.predictions.shape == (2, 120)
    assert torch.cosine_similarity(found.directions[1], direction, dim=0) > 0.85


def test_numbers_are_scored_by_r_squared():
    x = random(200, 10)
    truth = np.stack([(x @ random(10, seed=1)).numpy(), random(200, seed=2).numpy()], 1)
    found = ml.probe_layers(x[None], truth, probe="ridge", penalty=1.0)
    assert found.score.dims == ("layer", "target") and found.directions is None
    assert found.score.values[0, 0] > 0.98 and found.score.values[0, 1] < 0.1
    mean = ml.r_squared(np.broadcast_to(truth.mean(0), (1, 200, 2)), truth)
    assert mean.values.abs().max() < 1e-6 and ml.r_squared(truth[None], truth).values.min() == 1


def test_within_groups_knowing_the_group_is_worth_nothing():
    groups = np.array(list("abc") * 20)
    truth = np.array([{"a": 0.0, "b": 5.0, "c": 9.0}[g] for g in groups]) + random(60).numpy()
    means = np.array([truth[groups == g].mean() for g in groups])
    assert ml.r_squared(means[None], truth).values.item() > 0.8
    assert abs(ml.r_squared(means[None], truth, within=groups).values.item()) < 1e-6


def test_a_probe_recalls_groups_unless_they_are_held_out():
    groups = [f"g{n // 4}" for n in range(120)]
    features = torch.stack([random(30, 40).repeat_interleave(4, 0) + 0.1 * random(120, 40, seed=1)])
    labels = ml.control_labels(groups, np.arange(120) % 2)
    assert all(len({labels[i] for i in range(4 * g, 4 * g + 4)}) == 1 for g in range(30))
    assert ml.probe_layers(features, labels).score.values > 0.95
    assert ml.probe_layers(features, labels, groups=groups).score.values < 0.75


def test_transfer_scores_other_examples():
    features, labels, _ = planted()
    other, same = planted(seed=0)[0][:, :40], labels[:40]
    found = ml.probe_layers(features, labels, on=(other, 1 - same))
    assert found.predictions.shape == (2, 40) and found.score.values[1] < 0.1


def test_any_scikit_learn_estimator_can_be_a_probe():
    x = random(50, 3)
    found = ml.probe_layers(x[None], (x @ torch.ones(3)).numpy(), probe=LinearRegression())
    assert found.score.values > 0.999


def test_streams_of_texts_of_different_lengths(tiny):
    texts = ["ab", "a longer text", "ab", "x"]
    found = ml.residual_streams(tiny, texts)
    assert found.shape == (4, 4, 32) and torch.allclose(found[:, 0], found[:, 2], atol=1e-5)
    for row, text in enumerate(texts):
        _, cache = tiny.run_with_cache(tiny.to_tokens(text))
        assert torch.allclose(found[1, row], cache["resid_pre", 1][0, -1], atol=1e-5)
        assert torch.allclose(found[3, row], cache["resid_post", 2][0, -1], atol=1e-5)
    with pytest.raises(PromptError, match=r"pos is 30, and prompt 0 has \d tokens: positions 0 to"):
        ml.residual_streams(tiny, texts, pos=30)
    with pytest.raises(PromptError, match="texts is list; give a text, several texts, or tokens"):
        ml.residual_streams(tiny, [])
    assert torch.equal(ml.residual_streams(tiny, "ab"), ml.residual_streams(tiny, ["ab"]))
    with pytest.raises(PromptError, match="has 102 tokens; this model reads at most 64"):
        ml.residual_streams(tiny, ["x", " John" * 100 + " Mary"])


def test_a_model_with_random_weights_is_another_one_of_the_same_shape(gqa):
    blank = ml.random_weights(gqa)
    assert blank.cfg.d_model == gqa.cfg.d_model and blank.tokenizer is gqa.tokenizer
    assert not torch.allclose(blank(torch.ones(1, 3).long()), gqa(torch.ones(1, 3).long()))
    again = ml.random_weights(gqa)
    assert torch.equal(blank(torch.ones(1, 3).long()), again(torch.ones(1, 3).long()))


def test_ccs_finds_a_planted_truth_and_says_nothing_about_its_sign():
    truth = torch.arange(200) % 2
    direction = random(16, seed=3)
    says = (2 * truth - 1)[:, None] * direction
    base = random(200, 16)
    yes, no = base + says + 5, base - says - 3
    found = ml.contrast_consistent_search(yes, no, restarts=3)
    assert [probe.loss for probe in found] == sorted(probe.loss for probe in found)
    right = ((found[0].truth(yes, no) > 0.5).long() == truth).float().mean()
    assert max(right, 1 - right) > 0.95 and found[0].loss < 0.1


def test_what_cannot_be_probed_is_refused():
    features, labels, _ = planted(20)
    with pytest.raises(ValueError, match="All labels are 1"):
        ml.probe_layers(features, np.ones(20, dtype=int))
    with pytest.raises(ValueError, match="20 examples of 11 classes"):
        ml.probe_layers(features, np.arange(20) % 11)
    with pytest.raises(ValueError, match="20 examples, 19 labels"):
        ml.probe_layers(features, labels[:19])
    with pytest.raises(ValueError, match="20 labels and 3 groups"):
        ml.probe_layers(features, labels, groups=["a", "b", "c"])
    with pytest.raises(ValueError, match="There are 2 groups, too few"):
        ml.probe_layers(features, labels, groups=["a", "b"] * 10)
    with pytest.raises(ValueError, match="no example of class 2: a group holds all"):
        ml.probe_layers(features, np.array([0, 1] * 8 + [2] * 4), groups=[f"g{n // 4}" for n in range(20)])
    with pytest.raises(ValueError, match="NaN or infinite activations"):
        ml.probe_layers(features * float("nan"), labels)
    with pytest.raises(ValueError, match=r"must be \[layer, example, d_model\]"):
        probing._check(features[0], labels, None)
    with pytest.raises(ValueError, match="one of logistic, ridge, mass_mean"):
        ml.probe_layers(features, labels, probe="forest")
    with pytest.raises(ValueError, match="there are 3"):
        ml.probe_layers(features, np.arange(20) % 3, probe="mass_mean")
