"""Toy models: the published geometry, dimensionality by hand, no superposition without a nonlinearity; bad input."""

import pytest
import torch

import mechlab as ml


def test_the_geometry_of_the_paper():
    toy = ml.train_toy_models(5, 2, density=(1.0, 0.3, 0.1), seed=0)
    shares = toy.dimensionality.values
    assert (shares[1].sort().values - torch.tensor([0.0, 0.5, 0.5, 0.5, 0.5])).abs().max() < 0.05
    assert (shares[2] - 0.4).abs().max() < 0.03
    assert (toy.norms.values[0] > 0.7).sum() <= 3
    assert toy.loss[2] < toy.loss[1] < toy.loss[0]
    assert (shares.sum(1) <= 2.01).all()


def test_a_linear_model_keeps_as_many_features_as_it_has_dimensions():
    importance = 0.7 ** torch.arange(8)
    given = {"density": (1.0, 0.05), "importance": importance, "steps": 1500}
    linear = ml.train_toy_models(8, 3, linear=True, **given)
    assert ((linear.W @ linear.W.transpose(1, 2)).diagonal(dim1=1, dim2=2).sum(1) - 3).abs().max() < 0.3
    rectified = ml.train_toy_models(8, 3, **given)
    assert (rectified.norms.values[1] > 0.5).sum() > 3


def test_dimensionality_by_hand():
    pair = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]])
    assert torch.allclose(ml.feature_dimensionality(pair), torch.tensor([0.5, 0.5, 1.0]))
    assert ml.feature_dimensionality(torch.zeros(1, 2)).item() == 0


def test_the_same_seed_trains_the_same_models_and_leaves_random_numbers_alone():
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    a, b = (ml.train_toy_models(3, 2, density=(0.5,), steps=20, seed=4) for _ in range(2))
    assert torch.equal(a.W, b.W) and torch.equal(torch.rand(1), before)


def test_directions_are_drawn_in_a_plane_only():
    toy = ml.train_toy_models(3, 2, density=(0.5, 0.1), steps=20)
    picture = ml.plot_directions(toy, [1])
    assert len(picture.figure.data) == 1 and "density 0.1: lengths" in picture.text
    with pytest.raises(ValueError, match="3 hidden dimensions"):
        ml.plot_directions(ml.train_toy_models(4, 3, density=(0.5,), steps=5))


def test_impossible_models_are_refused():
    with pytest.raises(ValueError, match="every density above 0"):
        ml.train_toy_models(3, 2, density=(0.0,))
    with pytest.raises(ValueError, match="5 features and 3 importances"):
        ml.train_toy_models(5, 2, importance=torch.ones(3))


def test_examples_of_ones_own_decide_who_shares_a_line():
    def apart(count, generator):
        """0 and 1 are never present together, nor are 2 and 3."""
        u = torch.rand(count, 2, generator=generator)
        present = torch.stack([u[:, 0] < 0.3, u[:, 0] > 0.7, u[:, 1] < 0.3, u[:, 1] > 0.7], 1)
        return present * torch.rand(count, 4, generator=generator)

    toy = ml.train_toy_models(4, 2, density=(0.3,) * 8, sample=apart, steps=600, seed=1)
    best = toy.loss.argmin()
    rebuilt = apart(5000, torch.Generator().manual_seed(9))
    error = (rebuilt @ toy.W[best] @ toy.W[best].T + toy.b[best]).relu() - rebuilt
    assert error.pow(2).mean() == pytest.approx(toy.loss[best].item(), abs=2e-3)
    assert torch.cosine_similarity(toy.W[best, 0], toy.W[best, 1], dim=0) < -0.95
    with pytest.raises(ValueError, match=r"\(512, 4\) is needed"):
        ml.train_toy_models(4, 2, sample=lambda count, generator: torch.zeros(count, 3), steps=1)
