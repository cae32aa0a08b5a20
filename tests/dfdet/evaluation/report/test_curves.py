"""Points of curves that are drawn."""

from __future__ import annotations

import numpy as np
import pytest

from dfdet.evaluation.metrics import auroc
from dfdet.evaluation.report.curves import STEPS, operating_point, ranked, shares
from tests.dfdet.evaluation.scored_sets import units_of


def test_a_long_curve_keeps_its_shape_in_few_points() -> None:
    rng = np.random.default_rng(0)
    label = np.arange(20000) % 2
    score = rng.normal(label, 1)
    found = ranked(units_of(label, score))
    assert found is not None
    assert len(found.alarm_rate) <= 3 * STEPS + 2
    expected = auroc(label, score)
    assert np.trapezoid(found.hit_rate, found.alarm_rate) == pytest.approx(expected, abs=2e-3)
    assert (found.alarm_rate[0], found.hit_rate[0]) == (0, 0)
    assert (found.alarm_rate[-1], found.hit_rate[-1]) == (1, 1)
    assert np.sum((found.alarm_rate > 0) & (found.alarm_rate < 1e-2)) > 20  # what the logarithm shows


def test_a_short_curve_keeps_every_corner() -> None:
    found = ranked(units_of([1, 1, 0, 1, 0, 0], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]))
    assert found is not None
    assert found.alarm_rate.tolist() == pytest.approx([0, 0, 1 / 3, 1 / 3, 1])
    assert found.hit_rate.tolist() == pytest.approx([0, 2 / 3, 2 / 3, 1, 1])
    assert found.precision.tolist() == pytest.approx([1, 1, 2 / 3, 3 / 4, 1 / 2])


def test_one_class_has_no_curve() -> None:
    assert ranked(units_of([0, 0], [0.1, 0.2])) is None


def test_the_operating_point_counts_scores_at_the_threshold() -> None:
    units = units_of([1, 1, 0, 0], [0.9, 0.4, 0.5, 0.1])
    assert operating_point(units, 0.5) == (0.5, 0.5)


def test_shares_are_of_all_scores() -> None:
    found, edges = shares(np.array([0.0, 1.0, 1.0, 0.5]))
    assert (found[0], found[-1], found.sum()) == (25, 50, 100)
    assert (edges[0], edges[-1]) == (0, 1)
