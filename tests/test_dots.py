"""Dot plots: a row for each name, its interval, its group, the lines that were drawn before."""

import pytest

import mechlab as ml


def test_a_dot_plot_has_intervals_groups_lines_and_a_twin():
    rows = {"late": (0.6, 0.4, 0.8), "name mover": (-0.4, -0.6, -0.3), "alone": (0.1,)}
    groups = {"late": "roles", "name mover": "roles", "alone": "others"}
    picture = ml.dots(rows, "gap (logits)", groups=groups, limits=[-0.5, 0.5])
    roles, others = picture.figure.data
    assert list(roles.y) == ["late", "name mover"] and list(others.y) == ["alone"]
    assert roles.error_x.array == pytest.approx((0.2, 0.1))
    assert roles.error_x.arrayminus == pytest.approx((0.2, 0.2))
    assert others.error_x.array == others.error_x.arrayminus == (0,)
    assert roles.marker.symbol != others.marker.symbol and picture.figure.layout.showlegend
    assert [line.x0 for line in picture.figure.layout.shapes] == [0, -0.5, 0.5]
    assert list(picture.figure.layout.yaxis.categoryarray) == ["alone", "name mover", "late"]
    assert "gap (logits), 3 rows. Lines at -0.5, 0.5." in picture.text
    assert picture.figure.layout.xaxis.title.text == "logits"  # the title says the rest
    assert "late +0.60 [0.40, 0.80]" in picture.text and picture.text.endswith("alone +0.10.")


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="no row"):
        ml.dots({}, "gap (logits)")
