import numpy as np
import pytest
from optuna.trial import TrialState, create_trial

from dfdet.evaluation.seeds import t_interval
from dfdet.sweep.finals import choose, choose_baseline, compare, conclude, conclude_search, winner


def searched(*scores, published=None, state=TrialState.COMPLETE):
    """Trials numbered from 0 with these scores; ``published`` maps numbers to names."""
    trials = []
    for number, score in enumerate(scores):
        attrs = {"published": published[number]} if published and number in published else {}
        value = score if state == TrialState.COMPLETE and score is not None else None
        trial = create_trial(
            state=state if score is not None else TrialState.FAIL, value=value, user_attrs=attrs
        )
        trial.number = number
        trials.append(trial)
    return trials


def last_run(setting, seed, score, published=None):
    attrs = {"setting": setting, "seed": seed} | ({"published": published} if published else {})
    if score is None:
        return create_trial(state=TrialState.FAIL, user_attrs=attrs)
    return create_trial(value=score, user_attrs=attrs)


def last_runs(scores_by_setting, published=()):
    return [
        last_run(setting, 1000 + place, score, "paper" if setting in published else None)
        for setting, scores in scores_by_setting.items()
        for place, score in enumerate(scores)
    ]


def by_setting(rows):
    return {row.setting: row for row in rows}


def test_the_best_k_and_the_best_published_setting_are_trained_again():
    trials = searched(0.5, 0.9, 0.7, 0.8, 0.1, None, published={0: "paper", 4: "gend", 5: "crashed"})
    assert choose(trials, 2, "maximize") == [1, 3, 0]
    assert choose(trials, 4, "maximize") == [1, 3, 2, 0]


def test_of_a_cost_the_least_are_chosen():
    assert choose(searched(0.5, 0.9, 0.1), 2, "minimize") == [2, 0]


def test_pruned_settings_are_not_trained_again():
    assert choose(searched(0.9, 0.8, state=TrialState.PRUNED), 2, "maximize") == []


def test_the_baseline_is_the_published_setting_that_did_best_in_the_search():
    trials = searched(0.7, 0.9, 0.8, published={0: "paper", 2: "gend"})
    assert choose_baseline(trials, "maximize") == 2
    assert choose_baseline(trials, "minimize") == 0


def test_without_a_completed_published_setting_there_is_no_baseline():
    assert choose_baseline(searched(0.7, None, published={1: "paper"}), "maximize") is None


def test_the_interval_is_students():
    # t(.975, 2) = 4.302653; sd of 1, 2, 3 is 1
    low, high = t_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-5)


def test_one_seed_gives_no_interval_and_the_conclusion_says_so():
    rows = compare(last_runs({0: [0.8], 4: [0.9]}, published=[0]), "maximize", 0)
    row = by_setting(rows)[4]
    assert (row.sd, row.interval, row.difference_interval) == (None, None, None)
    assert row.difference == pytest.approx(0.1)
    assert row.verdict == "too few seeds"
    assert "One seed gives no interval" in conclude(rows, "video AUROC")


def test_differences_are_paired_so_that_what_a_seed_does_to_all_cancels_out():
    seeds = np.array([0.0, 0.2, -0.2])  # far larger than the difference
    rows = compare(last_runs({0: 0.6 + seeds, 4: 0.65 + seeds + [0.001, 0, -0.001]}, [0]), "maximize", 0)
    row = by_setting(rows)[4]
    half = 4.302653 * 0.001 / 3**0.5
    assert row.difference_interval == pytest.approx((0.05 - half, 0.05 + half), abs=1e-6)
    assert row.verdict == "better"
    assert row.interval[0] < 0.6 < row.interval[1]  # unpaired, nothing would be shown


def test_only_seeds_of_both_are_compared():
    final = [
        *last_runs({0: [0.5, 0.6]}, published=[0]),
        last_run(4, 1001, 0.7),
        last_run(4, 1002, 0.9),
        last_run(4, 1003, None),
    ]
    row = by_setting(compare(final, "maximize", 0))[4]
    assert row.pairs == 1
    assert row.difference == pytest.approx(0.1)


def test_the_interval_of_a_difference_widens_with_the_number_of_settings_compared():
    base, other = [0.5, 0.6, 0.7], [0.6, 0.65, 0.85]
    alone = by_setting(compare(last_runs({0: base, 1: other}, [0]), "maximize", 0))[1]
    many = by_setting(compare(last_runs({0: base} | dict.fromkeys((1, 2, 3), other), [0]), "maximize", 0))[1]
    width = [row.difference_interval[1] - row.difference_interval[0] for row in (alone, many)]
    assert width[1] / width[0] == pytest.approx(7.648861 / 4.302653, abs=1e-4)  # t(1 - .05/6, 2) / t(.975, 2)


def test_of_equal_settings_the_winner_is_rarely_called_better():
    """Three settings that are the baseline's equals: 5 % at most may be called better, 2.5 % in theory."""
    draws = np.random.default_rng(0).normal(0.8, 0.02, size=(300, 4, 3))
    called = sum(
        winner(compare(last_runs(dict(enumerate(draw)), published=[0]), "maximize", 0)).verdict == "better"
        for draw in draws
    )
    assert called <= 15


@pytest.mark.parametrize(("direction", "verdict"), [("maximize", "worse"), ("minimize", "better")])
def test_the_verdict_follows_the_direction(direction, verdict):
    rows = compare(last_runs({0: [0.9, 0.91, 0.92], 1: [0.5, 0.51, 0.52]}, [0]), direction, 0)
    assert by_setting(rows)[1].verdict == verdict
    assert winner(rows).setting == (0 if direction == "maximize" else 1)


def test_a_difference_whose_interval_holds_zero_is_not_shown():
    rows = compare(last_runs({0: [0.80, 0.85, 0.82], 1: [0.86, 0.83, 0.84]}, [0]), "maximize", 0)
    assert winner(rows).setting == 1
    assert by_setting(rows)[1].verdict == "no difference shown"
    assert conclude(rows, "video AUROC").startswith("No difference shown. Setting 0001 has the best mean")


def test_a_setting_that_lost_a_seed_to_a_failure_is_not_the_winner():
    final = [
        *last_runs({0: [0.5, 0.5], 1: [0.6, 0.6]}, [0]),
        last_run(2, 1000, 0.99),
        last_run(2, 1001, None),
    ]
    rows = compare(final, "maximize", 0)
    assert [row.setting for row in rows] == [1, 0, 2]
    assert rows[-1].seeds_missing == 1


def test_equal_means_leave_the_published_setting_the_winner():
    rows = compare(last_runs({1: [1.0, 1.0], 0: [1.0, 1.0]}, published=[0]), "maximize", 0)
    assert winner(rows).verdict == "baseline"
    assert by_setting(rows)[1].verdict == "no difference shown"
    assert conclude(rows, "AUROC") == (
        "The published setting 0000 (paper) stays best: AUROC 1.0000 on average over 2 fresh seeds;"
        " the others (1): 0 shown worse, 0 shown better."
    )


def test_without_a_baseline_there_are_means_and_no_verdict():
    rows = compare(last_runs({3: [0.5, 0.6], 4: [0.7, 0.8]}), "maximize", None)
    assert [row.verdict for row in rows] == ["no baseline", "no baseline"]
    assert rows[0].difference is None
    assert "No published setting completed" in conclude(rows, "AUROC")


def test_a_better_winner_is_told_with_difference_and_interval():
    rows = compare(last_runs({0: [0.80, 0.81, 0.82], 7: [0.90, 0.91, 0.921]}, [0]), "maximize", 0)
    assert conclude(rows, "video AUROC") == (
        "Setting 0007 is better than the published one: video AUROC .9103 on average over 3 fresh seeds,"
        " against .8100 of the published setting 0000 (paper), a difference of +.1003"
        " (95 % interval +.0989 to +.1018, 3 paired seeds)."
    )


def test_a_baseline_that_lost_seeds_is_still_compared_on_those_it_has():
    final = [
        *last_runs({1: [0.5, 0.6, 0.9]}),
        *[last_run(0, 1000 + place, score, "paper") for place, score in enumerate([0.6, 0.7001])],
    ]
    rows = compare(final, "maximize", 0)
    assert winner(rows).verdict == "worse"
    assert "on the seeds of both it is worse than the published setting 0000" in conclude(rows, "AUROC")


def test_no_last_run_names_no_winner():
    assert compare([last_run(0, 1000, None)], "maximize", 0) == []
    assert winner([]) is None
    assert conclude([], "AUROC") == "No last run has completed yet: nothing is named best."


def test_the_search_alone_names_its_best_score_and_doubts_it():
    trials = searched(0.80, 0.9, None, 0.7, published={0: "recipe", 3: "gend"})
    assert conclude_search(trials, "maximize", "val/demo/video/auroc") == (
        "Best score of the search: setting 0001, video AUROC on demo .9000. The best published setting, 0000"
        " (recipe), has .8000, a difference of +.1000. It is the best of 3 noisy scores, and too high by the"
        " noise. It was not trained again on fresh seeds, so no difference is shown."
    )


def test_a_search_without_a_complete_setting_says_so():
    assert conclude_search(searched(None), "maximize", "x") == "No setting has completed yet."
