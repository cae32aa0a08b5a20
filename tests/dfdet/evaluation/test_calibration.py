import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from dfdet.errors import ConfigError, DfdetError
from dfdet.evaluation import calibration, threshold
from tests.dfdet.evaluation.scored_sets import scored_set


def drawn(n=4000, temperature=1.0):
    """Labels drawn from sigmoid(z), and what a model says that takes z times the temperature."""
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, n)
    label = (rng.random(n) < 1 / (1 + np.exp(-z))).astype(int)
    return label, 1 / (1 + np.exp(-z * temperature))


def test_brier_and_log_loss_equal_scikit_learn():
    label, said = drawn()
    found = calibration.measure(label, said)
    assert found.brier == pytest.approx(brier_score_loss(label, said), abs=1e-12)
    assert found.log_loss == pytest.approx(log_loss(label, said), abs=1e-12)


def test_probabilities_of_0_and_1_have_a_finite_log_loss_as_in_scikit_learn():
    label, said = [0, 1, 1], [0.0, 1.0, 0.0]
    assert calibration.measure(label, said).log_loss == pytest.approx(log_loss(label, said), rel=1e-9)


@pytest.mark.parametrize(("binning", "strategy"), [("width", "uniform"), ("mass", "quantile")])
def test_bins_equal_those_of_scikit_learn(binning, strategy):
    label, said = drawn(1504)  # no edge falls on a score
    found = calibration.reliability(label, said, binning, 10)
    true, mean = calibration_curve(label, said, n_bins=10, strategy=strategy)
    assert found.confidence == pytest.approx(mean, abs=1e-12)
    assert found.fakes == pytest.approx(true, abs=1e-12)


def test_bins_of_equal_mass_hold_equally_many():
    label, said = drawn(1501)
    found = calibration.reliability(label, said, "mass", 15)
    assert sum(found.counts) == 1501 and max(found.counts) - min(found.counts) <= 1
    assert (found.edges[0], found.edges[-1]) == (said.min(), said.max())


def test_expected_calibration_error_by_hand():
    found = calibration.reliability([0, 1, 1, 1], [0.1, 0.2, 0.7, 0.9], "width", 2)
    assert found.edges == (0.0, 0.5, 1.0) and found.counts == (2, 2)
    assert found.confidence == pytest.approx((0.15, 0.8)) and found.fakes == (0.5, 1.0)
    assert found.ece == pytest.approx((0.35 + 0.2) / 2)


def test_an_empty_bin_has_no_confidence_and_does_not_count():
    found = calibration.reliability([0, 1], [0.1, 0.9], "width", 4)
    assert found.counts == (1, 0, 0, 1) and found.confidence[1] is None and found.fakes[2] is None
    assert found.ece == pytest.approx(0.1)
    assert found.rows()[1] == {"low": 0.25, "high": 0.5, "confidence": None, "fakes": None, "count": 0}


def test_bounds_belong_to_the_bin_above_and_1_to_the_last():
    found = calibration.reliability([0, 1, 1], [0.0, 0.5, 1.0], "width", 2)
    assert found.counts == (1, 2)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.2, 0.2 + 2**-54, 0.7, 1.0])), min_size=1),
    st.sampled_from(["mass", "width"]),
    st.randoms(use_true_random=False),
)
def test_ties_stay_together_whatever_the_order(rows, binning, random):
    shuffled = random.sample(rows, len(rows))
    first, second = (
        calibration.reliability(*zip(*each, strict=True), binning, 5) for each in (rows, shuffled)
    )
    assert first.edges == second.edges and first.counts == second.counts
    assert first.ece == pytest.approx(second.ece, abs=1e-12)
    assert sum(first.counts) == len(rows) and 0 <= first.ece <= 1


def test_one_video_and_equal_scores_are_one_bin():
    for n in (1, 5):
        found = calibration.reliability([1] * n, [0.3] * n, "mass")
        assert found.counts == (n,) and found.edges == (0.3, 0.3) and found.ece == pytest.approx(0.7)


def test_the_true_probabilities_are_calibrated_and_overconfident_ones_are_not():
    true, over = calibration.measure(*drawn()), calibration.measure(*drawn(temperature=4))
    assert true.mass.ece < 0.03 < 0.1 < over.mass.ece
    assert true.width.ece < 0.03 < 0.1 < over.width.ece
    assert true.flat().keys() == {"brier", "log_loss", "ece", "ece_width"}
    assert all(true.flat()[name] < over.flat()[name] for name in true.flat())


def test_a_fitted_temperature_lowers_the_log_loss_of_frames():
    scored = scored_set(videos=300, strength=0.5)
    temperature = threshold.fit_temperature(scored.column("label"), scored.column("logit"))
    found = calibration.before_and_after(scored, temperature)
    before, after = found.frame
    assert after.log_loss < before.log_loss and after.mass.ece < before.mass.ece
    assert sum(found.video[0].mass.counts) == 300 and sum(before.mass.counts) == 1200


def test_a_temperature_of_1_changes_nothing():
    found = calibration.before_and_after(scored_set(), 1.0)
    assert found.frame[0] == found.frame[1] and found.video[0] == found.video[1]


def test_videos_are_aggregated_as_asked():
    scored = scored_set()
    mean, most = (calibration.before_and_after(scored, 1.0, how).video[0] for how in ("mean", "max"))
    assert most.mass.confidence[-1] > mean.mass.confidence[-1]
    with pytest.raises(ConfigError, match="aggregate=least"):
        calibration.before_and_after(scored, 1.0, "least")


def test_nothing_has_no_calibration():
    assert calibration.measure([], []) is None
    with pytest.raises(DfdetError, match="no probabilities"):
        calibration.reliability([], [])


@pytest.mark.parametrize(("said", "cause"), [([np.nan, 0.5], "NaN"), ([1.5, 0.5], "outside 0 to 1")])
def test_what_is_no_probability_is_refused(said, cause):
    with pytest.raises(DfdetError, match=cause):
        calibration.measure([0, 1], said)
