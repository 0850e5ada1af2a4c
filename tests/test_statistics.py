"""Intervals over clusters, shares, and what chance gives."""

import pytest
import torch

from mechlab.statistics import Estimate, bootstrap, estimate, permutation_p, wilson


def test_rows_of_a_cluster_are_drawn_together():
    """Ten rows that are five twice are as sure as five; taken for independent they would look surer."""
    five = torch.tensor([1.0, 3.0, 2.0, 8.0, 6.0])
    twice, units = five.repeat_interleave(2), torch.arange(5).repeat_interleave(2)
    clustered = bootstrap(twice, units)
    assert torch.allclose(clustered, bootstrap(five), atol=1e-5)
    apart = bootstrap(twice)
    assert apart[1] - apart[0] < 0.85 * (clustered[1] - clustered[0])
    assert clustered[0] < five.mean() < clustered[1]


def test_the_interval_is_the_normal_one_for_many_rows():
    rows = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 0.5])
    low, high = bootstrap(rows)
    expected = 2 * 1.96 * rows.std(0) / 4000**0.5
    assert torch.allclose(high - low, expected, rtol=0.1)


def test_a_ratio_of_means_has_its_own_interval():
    top, bottom = torch.tensor([2.0, 4.0, 6.0, 8.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    found = estimate(top, over=bottom)
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0), abs=1e-5)
    assert estimate(top).low < 5 < estimate(top).high


def test_clusters_of_unequal_size_count_by_their_rows():
    rows, units = torch.tensor([0.0, 0.0, 0.0, 4.0]), torch.tensor([7, 7, 7, 2])
    assert estimate(rows, units).mean == 1.0
    assert bootstrap(rows, units).tolist() == [0.0, 4.0]


def test_one_cluster_has_no_interval():
    with pytest.raises(ValueError, match="at least two independent rows, and there are 1"):
        bootstrap(torch.ones(4), torch.zeros(4, dtype=torch.long))
    one = estimate(torch.tensor([1.0, 3.0]), torch.tensor([5, 5]))
    assert one.mean == 2.0 and one.low != one.low and str(one) == "2.00 [no interval]"
    assert str(Estimate(1.0, 0.5, 1.5)) == "1.00 [0.50, 1.50]"


def test_wilson():
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-3)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-3)
    with pytest.raises(ValueError, match="3 of 2 is no share"):
        wilson(3, 2)


def test_a_p_value_counts_what_was_found():
    null = torch.arange(19.0)
    assert permutation_p(100.0, null) == 0.05 and permutation_p(-1.0, null) == 1.0
    assert permutation_p(18.0, null) == pytest.approx(2 / 20)


def test_nan_is_no_find_and_has_no_interval():
    null = torch.arange(19.0)
    assert permutation_p(30.0, null) == 0.05
    for found, draws in (
        (float("nan"), null),
        (1.0, torch.tensor([])),
        (1.0, torch.tensor([float("nan"), 0])),
    ):
        with pytest.raises(ValueError, match="there must be some, and none of them NaN"):
            permutation_p(found, draws)
    with pytest.raises(ValueError, match="NaN or infinite values among the rows"):
        bootstrap(torch.tensor([1.0, float("nan")]))
    with pytest.raises(ValueError, match="3 rows, and units names the cluster of 2"):
        bootstrap(torch.ones(3), torch.tensor([0, 1]))
