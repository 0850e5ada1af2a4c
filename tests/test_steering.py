"""Steering: the fast sweep against hooks, what must hold for any vector, the monitor, and bad input."""

import pytest
import torch

import mechlab as ml
from mechlab.intervention.steering import push_effects
from mechlab.runs import engines
from tests.test_hooks import hooks_left
from tests.test_runs import Refuses

POSITIVE = ["When John and Mary went to the store", "John gave a drink to Mary", "the store is Paris"]
NEGATIVE = ["the capital of France is Paris", "Tom and Anna went to France", "France is the capital"]
METRIC = ml.logit_difference(7, 9)


@pytest.fixture(scope="module")
def base():
    return torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def text():
    return torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("position", [-1, "mean"])
def test_the_vector_is_the_difference_of_means(tiny, position):
    vectors = ml.contrast_vectors(tiny, POSITIVE, NEGATIVE, pos=position)
    for layer in range(3):
        means = []
        for texts in (POSITIVE, NEGATIVE):
            found = []
            for words in texts:
                with torch.no_grad():
                    stream = tiny.run_with_cache(words)[1]["resid_pre", layer][0]
                found.append(stream[-1] if position == -1 else stream[1:].mean(0))
            means.append(torch.stack(found).mean(0))
        expected = means[0] - means[1]
        assert torch.allclose(vectors.directions[layer] * vectors.gaps[layer], expected, atol=1e-4)
        assert vectors.directions[layer].norm() == pytest.approx(1, abs=1e-4)
    assert hooks_left(tiny) == 0


def test_a_strength_is_equally_long_whatever_the_vector_was_made_from(tiny):
    last, mean = (ml.contrast_vectors(tiny, POSITIVE, NEGATIVE, pos=p) for p in (-1, "mean"))
    assert torch.equal(last.lengths, mean.lengths)
    for layer in range(3):
        found = []
        for words in (*POSITIVE, *NEGATIVE):
            with torch.no_grad():
                found += list(tiny.run_with_cache(words)[1]["resid_pre", layer][0, 1:].norm(dim=-1))
        assert mean.lengths[layer].item() == pytest.approx(torch.stack(found).mean().item(), rel=1e-4)
        assert mean.step(layer, 0.5).norm() == pytest.approx(last.step(layer, 0.5).norm().item(), rel=1e-4)


def test_swapped_sets_turn_the_vector_round(gqa):
    one, other = ml.contrast_vectors(gqa, POSITIVE, NEGATIVE), ml.contrast_vectors(gqa, NEGATIVE, POSITIVE)
    assert torch.allclose(one.directions, -other.directions, atol=1e-5)
    assert torch.allclose(one.lengths, other.lengths)


def test_the_sweep_is_what_the_hooks_do(tiny, base, text):
    vectors = ml.contrast_vectors(tiny, POSITIVE, NEGATIVE)
    found = ml.steering_sweep(
        tiny, base, METRIC, vectors=vectors, layers=[1, 2], strengths=[-0.5, 0, 1], text=text
    )
    with torch.no_grad():
        start = tiny(base)
        for i, layer in enumerate((1, 2)):
            for j, strength in enumerate((-0.5, 0, 1)):
                with ml.intervene(tiny, vectors.hooks(layer, strength)):
                    steered, said = tiny(base), tiny(text)
                assert torch.allclose(
                    found.effect.per_prompt[:, i, j], METRIC(steered) - METRIC(start), atol=1e-4
                )
                loss = [
                    -x[:, 1:-1].log_softmax(-1).gather(-1, text[:, 2:, None])[..., 0].mean(1)
                    for x in (said, tiny(text))
                ]
                ratio = (loss[0] - loss[1]).mean().exp()
                assert found.cost.values[i, j] == pytest.approx(ratio.item(), rel=1e-3)
    assert torch.allclose(found.effect.values[:, 1], torch.zeros(2), atol=1e-4)
    assert torch.allclose(found.cost.values[:, 1], torch.ones(2), atol=1e-4)
    assert list(found.table().columns[:3]) == ["layer", "strength", "effect"] and len(found.table()) == 6
    assert "perplexity" in found.plot().text
    assert hooks_left(tiny) == 0


def test_several_pushes_at_once_are_what_the_sweep_does(tiny, base, text):
    vectors = ml.contrast_vectors(tiny, POSITIVE, NEGATIVE)
    given = {"layers": [1], "strengths": [-0.5, 1], "text": text}
    sweep = ml.steering_sweep(tiny, base, METRIC, vectors=vectors, **given)
    pushes = torch.stack([vectors.step(1, -0.5), vectors.step(1, 1)])
    assert torch.allclose(
        push_effects(tiny, base, METRIC, pushes, layer=1), sweep.effect.values[0], atol=1e-4
    )
    with pytest.raises(ValueError, match="layer"):
        push_effects(tiny, base, METRIC, pushes, layer=3)


def test_a_model_of_another_kind_gives_the_same_numbers(tiny, base, text, monkeypatch):
    vectors = ml.contrast_vectors(tiny, POSITIVE, NEGATIVE)
    given = {"layers": [0, 2], "strengths": [0.3, 2], "text": text}
    fast = ml.steering_sweep(tiny, base, METRIC, vectors=vectors, **given)
    monkeypatch.setattr(engines, "Fast", Refuses)
    with torch.no_grad(), pytest.warns(UserWarning, match="slower, the same numbers"):
        plain = ml.steering_sweep(tiny, base, METRIC, vectors=vectors, **given)
    assert torch.allclose(fast.effect.per_prompt, plain.effect.per_prompt, atol=1e-4)
    assert torch.allclose(fast.cost.per_prompt, plain.cost.per_prompt, rtol=1e-3)


def test_the_first_token_is_left_alone_and_a_new_token_is_not(gqa):
    vectors = ml.contrast_vectors(gqa, POSITIVE, NEGATIVE)
    ((_, add),) = vectors.hooks(1, 0.5)
    x = torch.zeros(2, 4, 32)
    assert torch.equal(add(x, None)[:, 0], x[:, 0])
    assert torch.allclose(
        add(x, None)[:, 1:].norm(dim=-1), (0.5 * vectors.lengths[1]).expand(2, 3), rtol=1e-4
    )
    assert (add(x[:, :1], None).norm(dim=-1) > 0).all()


def test_random_and_own_directions_have_the_same_length(gqa):
    vectors = ml.contrast_vectors(gqa, POSITIVE, NEGATIVE)
    random, own = vectors.random(seed=3), vectors.along(torch.arange(32.0))
    for other in (random, own):
        assert other.step(2, 0.7).norm() == pytest.approx(vectors.step(2, 0.7).norm().item(), rel=1e-4)
    assert torch.equal(random.directions, vectors.random(seed=3).directions)
    assert not torch.equal(random.directions, vectors.random(seed=4).directions)


def test_a_monitor_keeps_to_its_false_alarms(gqa):
    vectors = ml.contrast_vectors(gqa, POSITIVE, NEGATIVE)
    monitor = ml.Monitor.fit(gqa, vectors, 2, POSITIVE, NEGATIVE, false_alarms=0.0)
    assert not monitor.flags(gqa, NEGATIVE).any()
    assert monitor.flags(gqa, POSITIVE).any()
    high = monitor.projections(gqa, NEGATIVE).sort().values
    loose = ml.Monitor.fit(gqa, vectors, 2, POSITIVE, NEGATIVE, false_alarms=0.34)
    assert high[1] < loose.threshold <= high[2]  # one of three may be wrong
    with pytest.raises(ValueError, match="does not tell the validation texts apart"):
        ml.Monitor.fit(gqa, vectors, 2, NEGATIVE, POSITIVE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": 3}, "There is no layer 3"),
        ({"strength": float("inf")}, "overflows"),
        ({"strength": float("nan")}, "overflows"),
        ({"strength": 1e30}, "1 is already as long as the stream itself"),
    ],
)
def test_bad_input_is_named(gqa, change, message):
    vectors = ml.contrast_vectors(gqa, POSITIVE, NEGATIVE)
    with pytest.raises(ValueError, match=message):
        vectors.hooks(**({"layer": 1, "strength": 0.1} | change))


def test_no_direction_is_refused(gqa):
    with pytest.raises(ValueError, match="have the same mean"):
        ml.contrast_vectors(gqa, POSITIVE, POSITIVE)
    with pytest.raises(ValueError, match="zero or NaN"):
        ml.contrast_vectors(gqa, POSITIVE, NEGATIVE).along(torch.zeros(32))
    with pytest.raises(ValueError, match="at least one text"):
        ml.contrast_vectors(gqa, POSITIVE, [])
    with pytest.raises(ValueError, match='a number, or "mean"'):
        ml.contrast_vectors(gqa, POSITIVE, NEGATIVE, pos="last")


@pytest.mark.model
def test_more_cheerful_on_the_model_of_the_course(smollm2):
    good = [f"The film was {word}." for word in ("wonderful", "great", "excellent", "lovely")]
    bad = [f"The film was {word}." for word in ("terrible", "bad", "awful", "boring")]
    vectors = ml.contrast_vectors(smollm2, good, bad, pos="mean")
    base = smollm2.to_tokens(["I think the new restaurant is", "My friend said the play was"])
    metric = ml.logit_difference(ml.single_token(smollm2, " great"), ml.single_token(smollm2, " terrible"))
    text = ml.own_text(smollm2, length=33, count=2)
    found = ml.steering_sweep(
        smollm2, base, metric, vectors=vectors, layers=[12], strengths=[-0.2, 0.2], text=text
    )
    assert found.effect.values[0, 1] > 0.3 > -0.3 > found.effect.values[0, 0]
    assert (found.cost.values < 3).all()
