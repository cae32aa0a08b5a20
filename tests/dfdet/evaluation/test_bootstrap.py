import math

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

from dfdet.errors import ConfigError, DfdetError
from dfdet.evaluation import metrics
from dfdet.evaluation.aggregate import Units
from dfdet.evaluation.bootstrap import (
    METRICS,
    RANKING,
    Resampling,
    difference,
    estimates,
    point,
    replicates,
    weights,
    words,
)
from tests.dfdet.evaluation.scored_sets import units_of

THRESHOLD = 0.5


def straightforward(units: Units, resampling: Resampling, threshold: float):
    """Each resample written out row by row and given to scikit-learn."""
    drawn = weights(words(units.clusters), 0, resampling.resamples, resampling.seed)
    found = {name: np.full(resampling.resamples, np.nan) for name in METRICS}
    for number, counts in enumerate(drawn):
        rows = [row for row in range(len(units)) for _ in range(counts[units.cluster[row]])]
        label, score = units.label[rows], units.score[rows]
        if 0 < label.sum() < len(label):
            for name, value in by_scikit_learn(label, score, threshold).items():
                found[name][number] = value
    return found


def by_scikit_learn(label, score, threshold):
    alarms, hits, _ = roc_curve(label, score, drop_intermediate=False)
    fakes, reals = average_precision_score(label, score), average_precision_score(1 - label, -score)
    called = (score >= threshold).astype(int)
    return {
        "auroc": roc_auc_score(label, score),
        "ap": fakes,
        "ap_macro": (fakes + reals) / 2,
        "eer": metrics.equal_error_rate(label, score)[0],
        **{
            f"tpr_at_fpr_{text}": hits[alarms <= rate * (1 + 1e-12)].max()
            for text, rate in metrics.FALSE_ALARM_RATES.items()
        },
        "balanced_accuracy": balanced_accuracy_score(label, called),
        "f1": f1_score(label, called, zero_division=0),
    }


@st.composite
def clustered(draw):
    n = draw(st.integers(2, 30))
    score = draw(st.sampled_from([st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0]), st.just(0.5)]))
    return units_of(
        draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)),
        draw(st.lists(score, min_size=n, max_size=n)),
        draw(st.lists(st.integers(0, 8), min_size=n, max_size=n)),
    )


@settings(max_examples=25, deadline=None)
@given(clustered())
def test_every_resample_equals_a_straightforward_one(units):
    resampling = Resampling(resamples=6, seed=3)
    fast, slow = replicates(units, resampling, THRESHOLD), straightforward(units, resampling, THRESHOLD)
    reals = np.sum(units.label == 0)
    for name in METRICS:
        unresolved = name.startswith("tpr") and reals * metrics.FALSE_ALARM_RATES[name[11:]] < 1
        expected = np.full(6, np.nan) if unresolved else slow[name]
        assert fast[name] == pytest.approx(expected, abs=1e-12, nan_ok=True), name


def test_rates_of_false_alarms_that_the_set_resolves_equal_a_straightforward_bootstrap():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 260)
    units = units_of(label, np.round(rng.random(260) + 0.3 * label, 2) / 2, rng.integers(0, 60, 260))
    resampling = Resampling(resamples=40)
    fast, slow = replicates(units, resampling, 0.4), straightforward(units, resampling, 0.4)
    for name in ("tpr_at_fpr_1e-2", "tpr_at_fpr_5e-2", "eer"):
        assert np.isfinite(fast[name]).all()
        assert fast[name] == pytest.approx(slow[name], abs=1e-12)


def test_chunks_do_not_change_a_resample(monkeypatch):
    rng = np.random.default_rng(0)
    units = units_of(rng.integers(0, 2, 50), rng.random(50))
    whole = replicates(units, Resampling(resamples=100), THRESHOLD)
    monkeypatch.setattr("dfdet.evaluation.bootstrap._CELLS", 350)  # 7 resamples a chunk, 2 in the last
    parts = replicates(units, Resampling(resamples=100), THRESHOLD)
    assert all(np.array_equal(whole[name], parts[name], equal_nan=True) for name in METRICS)


def test_order_of_rows_and_codes_of_clusters_do_not_matter():
    rng = np.random.default_rng(0)
    label, score, cluster = rng.integers(0, 2, 60), rng.random(60), rng.integers(0, 9, 60)
    units, order = units_of(label, score, cluster), rng.permutation(60)
    shuffled = units.take(order)
    renamed = Units(
        **vars(shuffled) | {"cluster": 8 - shuffled.cluster, "clusters": tuple(reversed(units.clusters))}
    )
    first, second = (replicates(each, Resampling(50), THRESHOLD) for each in (units, renamed))
    for name in METRICS:
        assert first[name] == pytest.approx(second[name], abs=1e-12, nan_ok=True)


def test_a_seed_gives_one_and_another_seed_another_draw():
    names = words([f"c{number}" for number in range(20)])
    assert np.array_equal(weights(names, 5, 9, 1), weights(names, 0, 20, 1)[5:9])
    assert not np.array_equal(weights(names, 0, 20, 1), weights(names, 0, 20, 2))


def test_counts_are_poisson_of_mean_one():
    drawn = weights(words([f"c{number}" for number in range(300)]), 0, 2000, 0)
    share = np.bincount(drawn.reshape(-1), minlength=12) / drawn.size
    expected = [math.exp(-1) / math.factorial(count) for count in range(12)]
    assert share == pytest.approx(expected, abs=2e-3)
    correlation = np.corrcoef(drawn.T)[np.triu_indices(300, 1)]
    assert np.abs(correlation).max() < 6 / math.sqrt(2000) and abs(correlation.mean()) < 1e-3


def test_interval_agrees_with_a_multinomial_cluster_bootstrap():
    rng = np.random.default_rng(1)
    cluster = np.repeat(np.arange(80), 3)
    label = np.tile([0, 1, 1], 80)
    score = rng.normal(size=80)[cluster] + rng.normal(size=240) + label
    units = units_of(label, score, cluster)
    drawn = []
    for _ in range(3000):
        rows = (rng.integers(0, 80, 80)[:, None] * 3 + np.arange(3)).reshape(-1)
        drawn.append(metrics.auroc(label[rows], score[rows]))
    found = estimates(point(units), replicates(units, Resampling(3000)), 0.95, 80)["auroc"]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.low, found.high) == (pytest.approx(low, abs=0.006), pytest.approx(high, abs=0.006))
    assert found.value == metrics.auroc(label, score) and found.resamples == 3000


def test_interval_covers_the_true_value_as_often_as_it_says():
    """Videos of a person share their level, which an interval over videos alone would miss."""
    rng = np.random.default_rng(0)
    true = 0.5 * (1 + math.erf(1 / math.sqrt(2 * (1 + 1)) / math.sqrt(2)))  # P(N(1, 2) - N(0, 2) > 0)
    inside = {"person": 0, "video": 0}
    trials, people, videos = 100, 40, 6
    for _ in range(trials):
        person = np.repeat(np.arange(people), videos)
        label = (person % 2).astype(int)
        score = rng.normal(size=people)[person] + rng.normal(size=people * videos) + label
        for name, cluster in (("person", person), ("video", None)):
            units = units_of(label, score, cluster)
            drawn = replicates(units, Resampling(200))
            found = estimates(point(units), drawn, 0.95, people)["auroc"]
            inside[name] += found.low <= true <= found.high
    assert 0.88 <= inside["person"] / trials <= 1.0
    assert inside["video"] / trials < 0.85


def test_point_values_are_those_of_the_metrics():
    rng = np.random.default_rng(0)
    label, score = rng.integers(0, 2, 100), rng.random(100)
    found = point(units_of(label, score), 0.4)
    assert found["auroc"] == metrics.auroc(label, score) and found["f1"] == metrics.f1(label, score, 0.4)
    assert found["tpr_at_fpr_1e-3"] is None and set(found) == set(METRICS)
    without = point(units_of(label, score))
    assert without["f1"] is None and without["balanced_accuracy"] is None


@pytest.mark.parametrize(("label", "score"), [([], []), ([1], [0.5]), ([0, 0, 0], [0.1, 0.2, 0.3])])
def test_one_class_or_nothing_has_no_metric_and_no_interval(label, score):
    units = units_of(label, score)
    found = estimates(point(units, 0.5), replicates(units, Resampling(20), 0.5), 0.95, len(label))
    assert all((e.value, e.low, e.high, e.resamples) == (None, None, None, 0) for e in found.values())


def test_one_cluster_alone_has_a_value_but_no_interval():
    units = units_of([0, 1, 1], [0.1, 0.2, 0.05], [0, 0, 0])
    found = estimates(point(units), replicates(units, Resampling(20)), 0.95, 1)["auroc"]
    assert (found.value, found.low, found.high) == (0.5, None, None)


def test_resamples_of_one_class_are_left_out_and_counted():
    units = units_of([0, 1, 1, 1, 1, 1, 1, 1, 1], np.linspace(0, 1, 9))
    found = estimates(point(units), replicates(units, Resampling(2000)), 0.95, 9)["auroc"]
    assert found.resamples == pytest.approx(2000 * (1 - math.exp(-1)), abs=80)  # that drew the only real
    assert (found.low, found.high) == (1.0, 1.0)


def test_no_interval_of_less_than_half_of_the_resamples():
    units = units_of([0, 1], [0.1, 0.9])  # both are drawn in (1 - 1/e)^2 = .40 of the resamples
    found = estimates(point(units), replicates(units, Resampling(2000)), 0.95, 2)["auroc"]
    assert (found.value, found.low, found.resamples) == (1.0, None, 0)


def test_without_a_threshold_only_ranking_metrics_are_resampled():
    drawn = replicates(units_of([0, 1] * 20, np.linspace(0, 1, 40)), Resampling(10))
    assert {name for name in METRICS if np.isfinite(drawn[name]).any()} <= set(RANKING)


def test_nan_is_refused():
    with pytest.raises(DfdetError, match="1 of 2 scores are NaN"):
        point(units_of([0, 1], [np.nan, 0.5]))


@pytest.mark.parametrize("bad", [{"resamples": 0}, {"confidence": 1.0}, {"confidence": 0.0}])
def test_a_resampling_out_of_range_is_refused(bad):
    with pytest.raises(ConfigError, match="at least one resample"):
        Resampling(**bad)


def paired(gap, seed=0, noise=1.0):
    """Two checkpoints on 100 videos of 50 people: errors of theirs are alike, the first is better by gap."""
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(50), 2)
    label = np.tile([0, 1], 50)
    shared = 2 * rng.normal(size=50)[person] * rng.choice([-1, 1], 100)
    return [
        units_of(label, shared + noise * rng.normal(size=100) + shift * label, person)
        for shift in (1 + gap, 1.0)
    ]


def compared(first, second, resamples=500):
    drawn = [replicates(units, Resampling(resamples))["auroc"] for units in (first, second)]
    return difference((point(first)["auroc"], point(second)["auroc"]), tuple(drawn), 0.95, 50)


def test_a_checkpoint_against_itself_has_no_difference():
    first, _ = paired(0)
    found = compared(first, first)
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_a_clear_difference_has_the_least_p_value_and_an_interval_off_zero():
    found = compared(*paired(2.5, noise=0.3))
    assert found.value > 0.1 and found.low > 0 and found.p == 2 / 501
    back = compared(*reversed(paired(2.5, noise=0.3)))
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_errors_in_common_do_not_hide_a_difference():
    first, second = paired(0.6, noise=0.1)
    alone = [estimates(point(u), replicates(u, Resampling(500)), 0.95, 50)["auroc"] for u in (first, second)]
    assert alone[0].low < alone[1].high  # intervals meet
    assert compared(first, second).p < 0.01


def test_p_values_of_equal_checkpoints_are_uniform():
    p = np.array([compared(*paired(0, seed), resamples=150).p for seed in range(150)])
    assert np.mean(p <= 0.1) == pytest.approx(0.1, abs=0.08) and np.mean(p <= 0.5) == pytest.approx(
        0.5, abs=0.12
    )


def test_a_difference_without_a_value_or_with_one_cluster_has_no_test():
    drawn = (np.full(9, 0.5), np.full(9, 0.4))
    assert difference((None, 0.4), drawn, 0.95, 50) == difference((0.4, None), drawn, 0.95, 50)
    alone = difference((0.5, 0.4), drawn, 0.95, 1)
    assert alone.value == pytest.approx(0.1) and (alone.low, alone.p) == (None, None)


def test_thousands_of_resamples_of_thousands_of_videos_are_done():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 3000)
    units = units_of(label, rng.normal(size=3000) + label, rng.integers(0, 1000, 3000))
    found = estimates(point(units), replicates(units, Resampling(2000)), 0.95, 1000)
    assert all(found[name].resamples == 2000 for name in RANKING)
    assert found["auroc"].low < 0.76 < found["auroc"].high
