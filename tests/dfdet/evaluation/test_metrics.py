from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    roc_auc_score,
    roc_curve,
)

from dfdet.errors import DfdetError
from dfdet.evaluation import metrics


@st.composite
def labelled_scores(draw):
    n = draw(st.integers(2, 60))
    labels = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n).filter(lambda x: 0 < sum(x) < len(x)))
    score = draw(
        st.sampled_from(
            [
                st.floats(0, 1, width=32),
                st.sampled_from([0.0, 0.25, 1.0]),  # ties
                st.just(0.5),  # all equal
                st.floats(-1e300, 1e300),
                st.sampled_from([1.0, 1.0 - 2**-53, 5e-324, 0.0, -0.0]),  # neighbours
            ]
        )
    )
    return np.array(labels), np.array(draw(st.lists(score, min_size=n, max_size=n)))


@settings(max_examples=300, deadline=None)
@given(labelled_scores())
def test_ranking_metrics_equal_scikit_learn(case):
    labels, scores = case
    assert metrics.auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    fakes, reals = average_precision_score(labels, scores), average_precision_score(1 - labels, -scores)
    assert metrics.average_precision(labels, scores) == pytest.approx(fakes, abs=1e-12)
    assert metrics.average_precision_macro(labels, scores) == pytest.approx((fakes + reals) / 2, abs=1e-12)


@settings(max_examples=300, deadline=None)
@given(labelled_scores(), st.sampled_from([0.05, 0.1, 0.25, 1 / 3, 0.5, 1.0]))
def test_tpr_at_fpr_equals_the_best_point_of_scikit_learns_curve(case, fpr):
    labels, scores = case
    alarms, hits, _ = roc_curve(labels, scores, drop_intermediate=False)
    expected = (
        hits[alarms <= fpr * (1 + 1e-12)].max() if np.sum(labels == 0) * fpr * (1 + 1e-12) >= 1 else None
    )
    assert metrics.tpr_at_fpr(labels, scores, fpr) == (
        expected if expected is None else pytest.approx(expected)
    )


@settings(max_examples=300, deadline=None)
@given(labelled_scores())
def test_equal_error_rate_lies_on_scikit_learns_curve(case):
    labels, scores = case
    alarms, hits, _ = roc_curve(labels, scores, drop_intermediate=False)
    along = np.linspace(0, 1, 2001)  # both rates between neighbouring points
    rates = [np.concatenate([a + along * (b - a) for a, b in pairwise(x)]) for x in (alarms, 1 - hits)]
    at = np.argmin(np.abs(rates[0] - rates[1]))
    eer, threshold = metrics.equal_error_rate(labels, scores)
    assert eer == pytest.approx((rates[0][at] + rates[1][at]) / 2, abs=1e-3)
    alarm = np.mean(scores[labels == 0] >= threshold)
    miss = np.mean(scores[labels == 1] < threshold)
    points = np.abs(alarms - (1 - hits))[1:]
    assert abs(alarm - miss) == pytest.approx(points.min(), abs=1e-12)  # no threshold is nearer


@settings(max_examples=200, deadline=None)
@given(labelled_scores(), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_thresholded_metrics_equal_scikit_learn(case, threshold):
    labels, scores = case
    called = (scores >= threshold).astype(int)
    expected = balanced_accuracy_score(labels, called)
    assert metrics.balanced_accuracy(labels, scores, threshold) == pytest.approx(expected)
    assert metrics.f1(labels, scores, threshold) == pytest.approx(f1_score(labels, called, zero_division=0))


def test_large_float32_set_equals_scikit_learn():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 200_000)
    scores = (1 / (1 + np.exp(-3 * (generator.normal(size=200_000) + labels)))).astype(np.float32)
    assert metrics.auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert metrics.average_precision(labels, scores) == pytest.approx(
        average_precision_score(labels, scores), abs=1e-12
    )


def test_equal_error_threshold_is_in_the_middle_of_the_gap():
    assert metrics.equal_error_rate([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]) == (0.0, pytest.approx(0.4))


def test_equal_error_threshold_separates_neighbouring_floats():
    low, high = 0.5, np.nextafter(0.5, 1)
    eer, threshold = metrics.equal_error_rate([0, 1], [low, high])
    assert (eer, threshold) == (0.0, high)


def test_equal_scores_have_an_error_rate_of_half():
    assert metrics.equal_error_rate([0, 1, 1], [0.5, 0.5, 0.5])[0] == 0.5


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_gives_none(label):
    labels, scores = [label] * 3, [0.1, 0.2, 0.3]
    found = metrics.compute("val", "s", labels, scores, [0, 0, 1], [label] * 3, ["real", "DF"], 0.5)
    assert set(found.values()) == {None}


def test_no_sample_gives_none():
    assert metrics.auroc([], []) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_counted_and_refused(bad):
    with pytest.raises(DfdetError, match="2 of 3 scores"):
        metrics.auroc([0, 1, 1], [bad, 0.5, bad])


@pytest.mark.parametrize(
    ("labels", "scores"), [([0, 1], [0.5]), ([0, 2], [0.1, 0.5]), ([[0, 1]], [[0.1, 0.2]])]
)
def test_labels_that_do_not_fit_are_refused(labels, scores):
    with pytest.raises(DfdetError):
        metrics.auroc(labels, scores)


@pytest.mark.parametrize(("reals", "resolved"), [(99, False), (100, True)])
def test_rate_that_too_few_reals_resolve_is_none(reals, resolved):
    labels, scores = np.repeat([0, 1], [reals, 10]), np.arange(reals + 10.0)
    assert metrics.tpr_at_fpr(labels, scores, 0.01) == (1.0 if resolved else None)


def test_video_scores_are_means_of_frames():
    codes, labels, means = metrics.video_scores([7, 3, 7, 3], [1, 0, 1, 0], [0.2, 0.0, 0.6, 1.0])
    assert codes.tolist() == [3, 7]
    assert labels.tolist() == [0, 1]
    assert means.tolist() == pytest.approx([0.5, 0.4])


def test_video_of_both_labels_is_refused():
    with pytest.raises(DfdetError, match="code 4"):
        metrics.video_scores([4, 4], [0, 1], [0.5, 0.5])


def _set():
    generator = np.random.default_rng(1)
    video = generator.permutation(np.repeat(np.arange(60), 5))
    method = video % 3  # real, DF, F2F
    labels = (method > 0).astype(int)
    scores = np.clip(generator.normal(0.4 + 0.1 * method, 0.2), 0, 1)
    return labels, scores, video, method


def test_compute_names_every_metric_of_the_contract():
    found = metrics.compute("test", "cdf", *_set(), ["real", "DF", "F2F", "absent"], threshold=0.5)
    names = [
        "auroc",
        "ap",
        "ap_macro",
        "eer",
        "tpr_at_fpr_1e-3",
        "tpr_at_fpr_1e-2",
        "tpr_at_fpr_5e-2",
        "balanced_accuracy",
        "f1",
    ]
    expected = {f"test/cdf/{level}/{name}" for level in ("frame", "video") for name in names}
    assert found.keys() == expected | {"test/cdf/video/auroc/DF", "test/cdf/video/auroc/F2F"}
    assert all(value is None or type(value) is float for value in found.values())


def test_compute_without_a_threshold_fits_none_on_the_set():
    found = metrics.compute("test", "cdf", *_set(), ["real", "DF", "F2F"])
    assert not any(name.endswith(("f1", "balanced_accuracy")) for name in found)


def test_method_rows_rank_its_fakes_against_all_reals():
    labels, scores, video, method = _set()
    found = metrics.compute("test", "cdf", labels, scores, video, method, ["real", "DF", "F2F"])
    means = np.array([scores[video == code].mean() for code in range(60)])
    keep = np.arange(60) % 3 != 2
    expected = roc_auc_score(np.arange(60)[keep] % 3 > 0, means[keep])
    assert found["test/cdf/video/auroc/DF"] == pytest.approx(expected, abs=1e-12)


def test_order_of_samples_does_not_matter():
    labels, scores, video, method = _set()
    order = np.random.default_rng(2).permutation(len(labels))
    first = metrics.compute("t", "s", labels, scores, video, method, ["real", "DF", "F2F"], 0.5)
    again = metrics.compute(
        "t", "s", labels[order], scores[order], video[order], method[order], ["real", "DF", "F2F"], 0.5
    )
    assert again == pytest.approx(first, abs=1e-12)


def test_one_video_of_each_class():
    found = metrics.compute(
        "t", "s", [0, 0, 1, 1], [0.1, 0.9, 0.8, 0.4], [0, 0, 1, 1], [0, 0, 1, 1], ["real", "DF"]
    )
    assert found["t/s/video/auroc"] == 1.0
    assert found["t/s/frame/auroc"] == 0.5
