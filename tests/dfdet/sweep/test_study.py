import math

import pytest
from optuna.trial import TrialState

from dfdet.sweep.samplers import build_pruner
from dfdet.sweep.space.space import Dimension, Space
from dfdet.sweep.study import Done, SweepStudy, TrialTakenError
from tests.dfdet.sweep.studies import AUROC, BASE, SPEED, finish

# ---- what to train


def test_settings_are_numbered_and_recorded(open_study, url):
    study = open_study(url)
    asks = [study.next(3) for _ in range(3)]
    assert [ask.number for ask in asks] == [0, 1, 2]
    trials = study.trials()
    assert [trial.user_attrs["values"] for trial in trials] == [ask.values for ask in asks]
    assert all(trial.params.items() <= trial.user_attrs["values"].items() for trial in trials)
    assert all(trial.state == TrialState.RUNNING for trial in trials)
    assert all(BASE.replace(ask.values) for ask in asks)


def test_limit_is_waited_at_while_settings_run_and_final_after(open_study, url):
    study = open_study(url)
    ask = study.next(1)
    assert study.next(1) is None
    study.complete(ask.number, [0.5])
    assert study.next(1) == Done()


def test_limit_can_be_raised_later(open_study, url):
    assert len(finish(open_study(url), 2)) == 2
    assert [ask.number for ask in finish(open_study(url), 5)] == [2, 3, 4]


def test_resuming_proposes_what_an_uninterrupted_sweep_would(open_study):
    whole = [ask.values for ask in finish(open_study(folder="whole"), 14)]
    pieces = []
    for limit in range(1, 15):
        study = open_study(folder="pieces")
        pieces += [ask.values for ask in finish(study, limit)]
        study.close()
    assert pieces == whole


def test_two_drivers_get_different_settings(open_study, url):
    first, second = open_study(url), open_study(url)
    asks = [driver.next(4) for driver in (first, second, first, second)]
    assert [ask.number for ask in asks] == [0, 1, 2, 3]
    assert len({ask.values["loss.uniformity"] for ask in asks}) == 4
    assert first.next(4) is None
    assert second.next(4) is None


def test_setting_of_a_closed_driver_is_taken_up_unchanged(open_study, url):
    first, second = open_study(url), open_study(url)
    left = first.next(4)
    first.set_attrs(left.number, {"runs": ["0000"]})
    first.close()
    taken = second.next(4)
    assert (taken.number, taken.values, taken.resumed) == (left.number, left.values, True)
    assert taken.attrs["runs"] == ["0000"]
    assert second.next(4).number == 1


def test_driver_cannot_end_what_another_has_taken_up(open_study):
    first, second = open_study(), open_study()
    number = first.next(4).number
    first.close()
    second.next(4)
    for tell in (
        lambda: first.report(number, 1, 0.5),
        lambda: first.complete(number, [0.5]),
        lambda: first.fail(number, "no"),
    ):
        with pytest.raises(TrialTakenError, match="setting 0: is not this driver's any more"):
            tell()
    assert second.trials()[0].state == TrialState.RUNNING


def test_grid_ends_before_the_limit(open_study, url):
    space = Space(dimensions={"model.head": Dimension(choices=("linear", "cosine", "angular"))})
    study = open_study(url, space=space, sampler="grid")
    study.publish({"linear head": {"model.head": "linear"}})
    asks = finish(study, 10)
    assert [ask.attrs.get("published") for ask in asks] == ["linear head", None, None]
    assert {ask.values["model.head"] for ask in asks} == {"linear", "cosine", "angular"}


# ---- known settings


def test_published_settings_come_first_and_marked_and_once(open_study, url):
    points = {"paper": {"loss.uniformity": 0.5, "model.head": "linear"}, "gend": {"loss.uniformity": 0.25}}
    for _ in range(2):
        study = open_study(url)
        assert study.publish(points) == {}
    asks = finish(study, 3)
    assert [ask.attrs.get("published") for ask in asks] == ["paper", "gend", None]
    assert [ask.values["loss.uniformity"] for ask in asks[:2]] == [0.5, 0.25]
    assert open_study(url).publish(points) == {}
    assert len(study.trials()) == 3


def test_what_a_published_setting_leaves_out_is_the_bases(open_study):
    base = BASE.replace({"model.head": "cosine", "model.margin": 0.2})
    study = open_study(base=base)
    study.publish({"own": {"loss.uniformity": 0.5}})
    assert study.next(1).values == {"loss.uniformity": 0.5, "model.head": "cosine", "model.margin": 0.2}


def test_published_setting_outside_the_space_is_named_with_the_reason(open_study):
    study = open_study()
    refused = study.publish({"strong": {"loss.uniformity": 5.0}})
    assert list(refused) == ["strong"]
    assert "loss.uniformity=5.0: not among the searched values, 0 to 1" in refused["strong"]
    assert study.trials() == []


def test_published_settings_count_towards_the_limit(open_study):
    study = open_study()
    study.publish({str(number): {"loss.uniformity": number / 10} for number in range(4)})
    assert len(finish(study, 2)) == 2


def test_study_without_a_search_hands_out_what_was_queued(tmp_path, url):
    study = SweepStudy.open(
        tmp_path / "sweep", url, name="final", objectives=[AUROC], header={"base": {}, "options": {}}
    )
    assert study.enqueue("7/1000", {"optim.lr": 1e-3}, {"setting": 7, "seed": 1000})
    assert not study.enqueue("7/1000", {"optim.lr": 1e-3}, {"setting": 7, "seed": 1000})
    ask = study.next(0)
    assert ask.values == {"optim.lr": 1e-3}
    assert (ask.attrs["setting"], ask.attrs["seed"]) == (7, 1000)
    assert study.next(0) is None
    study.complete(0, [0.5])
    assert study.next(0) == Done()
    study.close()


# ---- what came of it


def test_complete_setting_keeps_value_and_attributes(open_study, url):
    study = open_study(url)
    study.complete(study.next(1).number, [0.75], {"epochs": 10, "seed_scores": {"0": [0.75]}})
    (trial,) = study.trials()
    assert (trial.state, trial.values) == (TrialState.COMPLETE, [0.75])
    assert (trial.user_attrs["epochs"], trial.user_attrs["seed_scores"]) == (10, {"0": [0.75]})


def test_pruned_setting_keeps_its_last_value_and_epoch(open_study, url):
    study = open_study(url)
    best, worse = study.next(2).number, study.next(2).number
    assert not study.report(best, 1, 0.9)
    assert study.report(worse, 1, 0.2)
    study.prune(worse, 1)
    trial = study.trials()[worse]
    assert (trial.state, trial.values, trial.last_step) == (TrialState.PRUNED, [0.2], 1)
    assert trial.user_attrs["stopped_epoch"] == 1


def test_failed_setting_keeps_the_reason_and_is_not_tried_again(open_study, url):
    study = open_study(url)
    study.fail(study.next(1).number, "out of memory")
    (trial,) = study.trials()
    assert (trial.state, trial.values) == (TrialState.FAIL, None)
    assert trial.user_attrs["reason"] == "out of memory"
    assert study.next(1) == Done()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_objective_that_is_no_number_fails_the_setting(open_study, value):
    study = open_study()
    study.complete(study.next(1).number, [value])
    (trial,) = study.trials()
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["reason"] == f"an objective is {value}"


def test_first_report_of_an_epoch_counts(open_study, url):
    study = open_study(url)
    number = study.next(1).number
    for value in (0.5, 0.6):
        assert not study.report(number, 1, value)
    study.report(number, 2, 0.7)
    assert not study.report(number, 1, 0.1)
    assert study.trials()[0].intermediate_values == {1: 0.5, 2: 0.7}


def test_word_to_stop_is_given_again(open_study, url):
    study = open_study(url)
    study.report(study.next(2).number, 1, 0.9)
    worse = study.next(2).number
    assert study.report(worse, 1, 0.2)
    assert study.report(worse, 1, 0.2)
    assert study.report(worse, 2, 0.99)


def test_setting_whose_driver_died_after_the_word_to_stop_is_not_trained_on(open_study, url):
    first = open_study(url)
    first.report(first.next(2).number, 1, 0.9)
    assert first.report(first.next(2).number, 1, 0.2)
    first.close()
    second = open_study(url)
    assert second.next(2).number == 0
    assert second.next(2) is None
    assert second.trials()[1].state == TrialState.PRUNED


def test_early_stopping_that_is_not_a_number_stops_at_the_rung(open_study, url):
    study = open_study(url)
    number = study.next(1).number
    assert study.report(number, 1, math.nan)
    study.prune(number, 1)
    assert study.trials()[0].state == TrialState.PRUNED


def test_two_objectives_are_both_kept_and_never_stopped(open_study, url):
    study = open_study(url, objectives=(AUROC, SPEED), pruner=build_pruner("none", 10))
    number = study.next(1).number
    assert not study.report(number, 1, 0.1)
    study.complete(number, [0.75, 1.5])
    assert study.trials()[0].values == [0.75, 1.5]
    assert [direction.name for direction in study.study.directions] == ["MAXIMIZE", "MINIMIZE"]
