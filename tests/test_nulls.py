"""Null directions: drawn as said, by means that are written here in another way."""

import pytest
import torch

import mechlab as ml


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lopsided(examples=400, width=16):
    """Streams that fill few directions: the first is ten times as wide as the last."""
    return drawn(examples, width) * torch.linspace(10, 1, width)


def test_every_shuffled_direction_is_a_difference_of_means_over_some_split():
    streams, labels = drawn(6, 4), torch.tensor([0, 0, 0, 0, 1, 1])
    splits = [(i, j) for i in range(6) for j in range(i)]
    others = lambda pair: [k for k in range(6) if k not in pair]
    possible = torch.stack([streams[list(p)].mean(0) - streams[others(p)].mean(0) for p in splits])
    found = ml.null_directions(streams, labels, count=40)
    distance = (found[:, None] - possible[None]).norm(dim=-1)
    assert found.shape == (40, 4) and distance.min(1).values.max() < 1e-5
    assert len({*distance.argmin(1).tolist()}) > 10  # and not always the same split


def test_whole_units_are_dealt_out():
    streams = torch.eye(6)
    labels, units = torch.tensor([0, 0, 1, 1, 0, 0]), torch.tensor([7, 7, 3, 3, 9, 9])
    for each in ml.null_directions(streams, labels, units=units, count=12):
        assert each[0] == each[1] and each[2] == each[3] and each[4] == each[5]
        assert (each > 0).sum() == 2


def test_shuffled_directions_lie_where_the_streams_do_and_isotropic_ones_do_not():
    streams = lopsided()
    labels = (torch.arange(len(streams)) % 2).long()
    first = lambda found: (found[:, 0].abs() / found.norm(dim=1)).mean().item()
    shares = {
        kind: first(ml.null_directions(streams, labels if kind == "shuffled" else None, kind=kind, count=200))
        for kind in ("shuffled", "covariance", "isotropic", "rows")
    }
    assert shares["isotropic"] < 0.25 < min(shares[kind] for kind in ("shuffled", "covariance", "rows"))


def test_noise_has_the_covariance_of_the_streams():
    streams = lopsided(300, 5) + 3
    found = ml.null_directions(streams, kind="covariance", count=20_000)
    assert torch.allclose(torch.cov(found.T), torch.cov(streams.T), atol=3)
    assert found.mean(0).abs().max() < 0.5  # and none of their mean


def test_rows_are_rows_each_once():
    streams = drawn(9, 4)
    found = ml.null_directions(streams, kind="rows", count=9)
    assert sorted(found[:, 0].tolist()) == sorted(streams[:, 0].tolist())


def test_length_and_the_part_at_right_angles():
    streams, real = drawn(50, 8), drawn(8, seed=1)
    found = ml.null_directions(streams, kind="covariance", length=3, apart_from=real)
    assert torch.allclose(found.norm(dim=1), torch.tensor(3.0)) and (found @ real).abs().max() < 1e-4


def test_seeds_repeat_and_differ():
    one, again, other = (ml.null_directions(drawn(9, 4), kind="isotropic", seed=s) for s in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.allclose(one.norm(dim=1), torch.ones(20))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": None}, "needs one label for each row"),
        ({"labels": torch.zeros(6, dtype=torch.long)}, "both of them"),
        (
            {"labels": torch.tensor([0, 1, 0, 1, 0, 1]), "units": torch.tensor([0, 0, 1, 1, 2, 2])},
            "both labels",
        ),
        ({"labels": torch.tensor([0, 1, 0, 1, 0, 1]), "kind": "rows"}, "has no use for them"),
        ({"kind": "rows", "count": 7}, "6 rows, and 7"),
        ({"kind": "random"}, "kind"),
        ({"kind": "isotropic", "count": 0}, "count"),
    ],
)
def test_what_cannot_be_drawn_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ml.null_directions(drawn(6, 4), **given)


def test_nan_is_refused():
    with pytest.raises(ValueError, match="finite"):
        ml.null_directions(torch.full((6, 4), float("nan")), kind="covariance")
