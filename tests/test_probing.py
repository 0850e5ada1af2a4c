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


def test_intervals_are_over_whole_groups():
    groups = [f"g{n // 4:02}" for n in range(120)]
    features = torch.stack([random(30, 40).repeat_interleave(4, 0) + 0.1 * random(120, 40, seed=1)])
    labels = np.repeat(np.arange(30) % 2, 4)
    score = ml.probe_layers(features, labels, groups=groups).score
    means = score.per_prompt.reshape(30, 4, 1).mean(
        1
    )  # one value a group: the same interval without clusters
    by_group = ml.Scores.over_prompts(means, ("layer",), "x").interval()
    assert score.independent == 30 and torch.allclose(score.interval(), by_group, atol=1e-6)
    numbers = torch.arange(120) // 4  # a tensor names them as well
    assert torch.equal(ml.probe_layers(features, labels, groups=numbers).score.units, numbers)
    single = ml.probe_layers(features, labels).score
    assert single.units is None and single.independent == 120
    onto = ml.probe_layers(features, labels, on=(features[:, :9], labels[:9])).score
    assert onto.units is None and onto.per_prompt.shape == (9, 1)


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
    with pytest.raises(PromptError, match="texts is empty: give at least one text"):
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


def test_no_penalty_is_least_squares_and_an_almost_free_classifier():
    x = random(60, 4)
    truth = (x @ random(4, seed=1)).numpy() + random(60, seed=2).numpy()
    free = ml.probe_layers(x[None], truth, probe="ridge", penalty=0)
    plain = ml.probe_layers(x[None], truth, probe=LinearRegression())
    assert np.allclose(free.predictions, plain.predictions, atol=1e-4)
    with pytest.warns(FutureWarning, match=r"strength=\.\.\.\) is now penalty="):
        old = ml.probe_layers(x[None], truth, probe="ridge", strength=0)
    assert np.array_equal(old.predictions, free.predictions)
    features, labels, _ = planted()
    free = ml.probe_layers(features, labels, penalty=0)
    nearly = ml.probe_layers(features, labels, penalty=1e-6)
    assert (free.predictions == nearly.predictions).mean() > 0.97


def test_features_may_be_of_any_precision_and_carry_gradients():
    features, labels, _ = planted()
    wanted = ml.probe_layers(features, labels)
    for given in (features.double(), features.clone().requires_grad_()):
        assert (ml.probe_layers(given, labels).predictions == wanted.predictions).mean() > 0.99
    half = ml.probe_layers(features.bfloat16(), labels)
    assert (half.score.values - wanted.score.values).abs().max() < 0.06


def test_what_would_be_scored_on_something_else_is_refused():
    features, labels, _ = planted(40)
    for other, truth, says in (
        (
            features[:1],
            labels,
            r"on= is \(1, 40, 20\) with 40 labels; the probes are for 2 layers of width 20",
        ),
        (features[:, :, :5], labels, r"on= is \(2, 40, 5\)"),
        (features, labels[:39], "with 39 labels"),
        (features * float("nan"), labels, r"NaN or infinite activations in on="),
    ):
        with pytest.raises(ValueError, match=says):
            ml.probe_layers(features, labels, on=(other, truth))
    with pytest.raises(ValueError, match="Only logistic and ridge probes have a penalty"):
        ml.probe_layers(features, labels, probe="mass_mean", penalty=1.0)
    with pytest.raises(ValueError, match="penalty is -1; it is a number of at least 0"):
        ml.probe_layers(features, labels, penalty=-1)
    with pytest.raises(ValueError, match="labels are words such as 'a', and this probe fits numbers"):
        ml.probe_layers(features, np.array(["a", "b"] * 20), probe="ridge")
    with pytest.raises(ValueError, match=r'tells classes apart: use probe="ridge"'):
        ml.probe_layers(features, labels + 0.5)
    with pytest.raises(ValueError, match="NaN or infinite values among the labels"):
        ml.probe_layers(features, labels * float("nan"), probe="ridge")
    with pytest.raises(
        ValueError, match="7 parts cannot be made of classes of at most 6 examples: set folds=6"
    ):
        ml.probe_layers(features[:, :12], labels[:12], folds=7)
    with pytest.raises(ValueError, match="of 2 only one: give at least two of each"):
        ml.probe_layers(features, np.array([0, 1] * 19 + [0, 2]))
    with pytest.raises(ValueError, match=r"predictions are \(2, 39\), the truth \(40,\)"):
        ml.r_squared(np.zeros((2, 39)), np.arange(40.0))
    with pytest.raises(ValueError, match="within names the group of 3"):
        ml.r_squared(np.zeros((2, 40)), np.arange(40.0), within=[0, 1, 2])


def test_a_control_task_needs_two_classes():
    with pytest.raises(ValueError, match="labels of 1 classes: give one of each"):
        ml.control_labels(["a", "b"], [1, 1])
    with pytest.raises(ValueError, match="3 groups and 2 labels"):
        ml.control_labels(["a", "b", "c"], [0, 1])
    assert sorted(set(ml.control_labels(["a", "b"], [0, 1]))) == [0, 1]


def test_positions_and_means_of_streams_by_hand(tiny):
    texts = ["ab", "a longer text"]
    for skip in (None, 0, 2):
        found = ml.residual_streams(tiny, texts, pos="mean", skip=skip)
        for row, text in enumerate(texts):
            _, cache = tiny.run_with_cache(tiny.to_tokens(text))
            wanted = cache["resid_pre", 1][0, 1 if skip is None else skip :].mean(0)
            assert torch.allclose(found[1, row], wanted, atol=1e-5)
    many = [f"text number {n}" for n in range(5)] + ["another one"]
    assert torch.allclose(
        ml.residual_streams(tiny, many, batch=2), ml.residual_streams(tiny, many), atol=1e-5
    )
    with pytest.raises(ValueError, match="batch is 0"):
        ml.residual_streams(tiny, many, batch=0)


def test_what_ccs_cannot_search_is_refused():
    yes, no = random(6, 4), random(6, 4, seed=1)
    for given, says in (
        ((yes, no[:5]), r"yes is \(6, 4\) and no \(5, 4\)"),
        ((yes[:1], no[:1]), "two pairs or more"),
        ((yes * float("nan"), no), "NaN or infinite"),
        ((torch.ones(3, 4), torch.zeros(3, 4)), "All statements have the same activations"),
    ):
        with pytest.raises(ValueError, match=says):
            ml.contrast_consistent_search(*given)
    with pytest.raises(ValueError, match="restarts is 0"):
        ml.contrast_consistent_search(yes, no, restarts=0)
    half = ml.contrast_consistent_search(yes.bfloat16(), no.bfloat16(), restarts=1, steps=5)[0]
    assert (
        half.direction.dtype == torch.float32 and half.truth(yes.bfloat16(), no.bfloat16()).isfinite().all()
    )
