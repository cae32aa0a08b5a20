"""Frames to a verdict: aggregation, temperature, and where the threshold comes from."""

from __future__ import annotations

import math

import pytest

from dfdet.errors import ConfigError
from dfdet.evaluation.threshold import Threshold
from dfdet.prediction.verdict import Rule, combine, judge, rule_of


def fitted(**more) -> Threshold:
    values = {"threshold": 0.4, "temperature": 2.0, "level": "video", "eer": 0.125} | more
    return Threshold(set_name="dfdc-val", set_fingerprint="f", frames=10, **values)


@pytest.mark.parametrize(
    ("how", "score"),
    [("mean", 0.5), ("median", 0.4), ("max", 0.9), ("top1", 0.9), ("top2", 0.7), ("top9", 0.5)],
)
def test_frames_are_aggregated(how: str, score: float) -> None:
    assert combine([0.2, 0.9, 0.4, 0.5], how) == pytest.approx(score if how != "median" else 0.45)


def test_an_unknown_aggregation_is_refused() -> None:
    with pytest.raises(ConfigError, match="give mean, median, max, or topK"):
        combine([0.1], "mode")


def test_the_score_at_the_threshold_is_fake_and_below_it_real() -> None:
    rule = rule_of(fitted())
    assert judge([0.4], [0.0], rule).verdict == "fake"
    assert judge([0.3999], [0.0], rule).verdict == "real"


def test_the_probability_is_the_mean_of_the_frames_calibrated_ones() -> None:
    said = judge([0.5, 0.9], [0.0, 2 * math.log(3)], rule_of(fitted()))
    assert said.score == pytest.approx(0.7)
    assert said.probability == pytest.approx((0.5 + 0.75) / 2)


def test_without_a_threshold_there_are_scores_and_no_verdict() -> None:
    said = judge([0.9], [2.0], rule_of(None))
    assert (said.score, said.probability, said.verdict) == (0.9, None, None)
    assert "no threshold.json" in rule_of(None).origin


def test_the_origin_names_set_level_and_error() -> None:
    assert (
        rule_of(fitted()).origin
        == "fitted to mean scores of videos of the validation set 'dfdc-val', EER 12.5%"
    )


@pytest.mark.parametrize(("level", "how"), [("frame", "mean"), ("video", "max")])
def test_a_threshold_of_other_scores_than_those_it_meets_says_so(level: str, how: str) -> None:
    assert rule_of(fitted(level=level), None, how).origin.endswith(
        f"; applied to the {how} over frames of a file"
    )


def test_a_users_threshold_goes_before_and_keeps_the_temperature() -> None:
    assert rule_of(fitted(), 0.9) == Rule(0.9, 2.0, "--threshold")


@pytest.mark.parametrize("given", [-0.1, 1.5, math.nan])
def test_a_threshold_that_is_no_score_is_refused(given: float) -> None:
    with pytest.raises(ConfigError, match="a score lies in 0 to 1"):
        rule_of(None, given)


def test_a_threshold_of_another_aggregation_says_so() -> None:
    fitted = Threshold(
        threshold=0.4,
        temperature=1.0,
        level="video",
        aggregate="max",
        eer=0.1,
        set_name="v",
        set_fingerprint="f",
        frames=8,
    )
    assert rule_of(fitted, aggregate="max").origin.startswith("fitted to max scores of videos")
    assert "applied to" not in rule_of(fitted, aggregate="max").origin
    assert rule_of(fitted).origin.endswith("applied to the mean over frames of a file")
