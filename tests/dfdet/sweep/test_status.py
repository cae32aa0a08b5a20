import io
from datetime import datetime, timedelta

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from dfdet.sweep.status import duration_text, line, summarize, table

NOW = datetime(2026, 5, 4, 12, 0)
COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
RUNNING, WAITING = TrialState.RUNNING, TrialState.WAITING


def trial(number, state, scores=None, curve=None, minutes_ago=5, **attrs):
    ended = state in (COMPLETE, PRUNED, FAIL)
    return FrozenTrial(
        number=number,
        state=state,
        value=None,
        values=scores,
        datetime_start=None if state == WAITING else NOW - timedelta(minutes=minutes_ago),
        datetime_complete=NOW - timedelta(minutes=minutes_ago) + timedelta(seconds=30) if ended else None,
        params={"optim.lr": 0.01 * (number + 1)},
        distributions={"optim.lr": FloatDistribution(0, 10)},
        user_attrs=attrs,
        system_attrs={},
        intermediate_values=curve or {},
        trial_id=number,
    )


def sixteen():
    """A sweep of 16 settings, 7 ended, 2 running."""
    pruned = [trial(n, PRUNED, curve={1: 0.5}, wall_s=60, stopped_epoch=1) for n in (1, 2, 3)]
    complete = [trial(n, COMPLETE, [0.8 + n / 100], wall_s=120) for n in (0, 4, 6)]
    best = trial(5, COMPLETE, [0.87541], wall_s=120, published="paper")
    running = [trial(12, RUNNING, curve={1: 0.7, 3: 0.812}, minutes_ago=1), trial(13, RUNNING, minutes_ago=0)]
    return [*pruned, *complete, best, *running, trial(14, WAITING)]


def status_of(trials, limit=16, directions=("maximize",), epochs=10, concurrent=None):
    return summarize(trials, limit, directions, epochs, NOW, concurrent)


def shown(status, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(table(status))
    return console.file.getvalue()


def test_the_line_tells_all_that_one_wants_to_know():
    assert line(status_of(sixteen())) == (
        "sweep 7/16  running 2 (0012 epoch 3/10 .8120, 0013 starting)  pruned 3  failed 0"
        "  best .8754 trial 0005 (published: paper)  about 7 min left"
    )


def test_the_time_left_is_the_mean_of_what_ended_times_what_is_left_over_the_lanes():
    # mean (3 x 60 + 4 x 120) / 7 s; 7 not started; 60 s of one running are gone
    mean = 660 / 7
    expected = (7 * mean + (mean - 60) + mean) / 2
    assert status_of(sixteen()).seconds_left == pytest.approx(expected)
    assert status_of(sixteen(), concurrent=4).seconds_left == pytest.approx(expected / 2)


def test_the_last_setting_takes_as_long_as_itself_however_many_lanes_there_are():
    trials = [trial(0, COMPLETE, [0.5], wall_s=100), trial(1, RUNNING, minutes_ago=1)]
    assert status_of(trials, limit=2, concurrent=8).seconds_left == pytest.approx(40)


def test_before_anything_ended_there_is_no_estimate():
    status = status_of([trial(0, RUNNING, minutes_ago=1)])
    assert status.seconds_left is None
    assert line(status) == (
        "sweep 0/16  running 1 (0000 starting)  pruned 0  failed 0  best -  time left not known yet"
    )


def test_a_finished_sweep_has_no_time_left():
    text = line(status_of([trial(0, COMPLETE, [0.5], wall_s=9)], limit=1))
    assert text == "sweep 1/1  running 0  pruned 0  failed 0  best .5000 trial 0000"


def test_failed_settings_do_not_count_in_the_mean_time():
    trials = [trial(0, COMPLETE, [0.5], wall_s=100), trial(1, FAIL, wall_s=1, reason="x")]
    assert status_of(trials, limit=3).seconds_left == pytest.approx(100)


def test_a_setting_with_epochs_of_its_own_is_measured_by_them():
    trials = [trial(0, RUNNING, curve={2: 0.5}, values={"optim.epochs": 4})]
    assert "0000 epoch 2/4 .5000" in line(status_of(trials))


def test_many_running_settings_are_counted_and_not_all_named():
    text = line(status_of([trial(n, RUNNING) for n in range(7)]))
    assert "running 7 (0000 starting, 0001 starting, 0002 starting, 0003 starting, 3 more)" in text


def test_of_a_cost_the_least_is_best():
    trials = [trial(0, COMPLETE, [0.4]), trial(1, COMPLETE, [0.2])]
    assert "best .2000 trial 0001" in line(status_of(trials, directions=("minimize",)))


def test_several_objectives_show_the_front():
    trials = [trial(n, COMPLETE, scores) for n, scores in enumerate([[0.9, 3.0], [0.8, 1.0], [0.7, 2.0]])]
    text = line(status_of(trials, directions=("maximize", "minimize")))
    assert "front 2 (0000 0001)" in text


def test_last_runs_are_named_by_setting_and_seed_and_have_no_best():
    trials = [
        trial(0, COMPLETE, [0.9], setting=7, seed=1000, wall_s=60),
        trial(1, RUNNING, curve={2: 0.6}, setting=7, seed=1001, minutes_ago=0),
    ]
    assert line(status_of(trials, limit=2)) == (
        "last runs 1/2  running 1 (0007-s1001 epoch 2/10 .6000)  failed 0  about 1 min left"
    )


def test_latest_events_come_newest_first_with_what_happened():
    trials = [
        trial(0, COMPLETE, [0.9], minutes_ago=30, published="paper"),
        trial(1, PRUNED, curve={1: 0.5, 3: 0.71}, minutes_ago=20, stopped_epoch=3),
        trial(2, FAIL, minutes_ago=10, reason="out of\nmemory"),
    ]
    assert status_of(trials).events == (
        "11:50 0002 failed: out of memory",
        "11:40 0001 pruned at epoch 3 (.7100)",
        "11:30 0000 complete .9000 (published: paper)",
    )


def test_a_long_reason_is_cut():
    (event,) = status_of([trial(0, FAIL, reason="x" * 500)]).events
    assert event.endswith("xxx...")
    assert len(event) < 120


def test_the_table_has_a_bar_for_every_running_setting_and_the_best_ones_values():
    text = shown(status_of(sixteen()))
    assert "epoch 3/10" in text
    assert "starting" in text
    assert "best .8754 trial 0005 (published: paper)" in text
    assert "optim.lr=0.06" in text
    assert all(len(row) <= 100 for row in text.splitlines())


def test_markup_in_a_reason_is_shown_and_not_obeyed():
    text = shown(status_of([trial(0, FAIL, reason="[bold red]no[/] [/closed")]))
    assert "[bold red]no[/] [/closed" in text


def test_a_sweep_that_has_not_begun_can_be_shown():
    assert "sweep 0/16" in shown(status_of([]))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (40.4, "40 s"), (61, "1 min"), (715, "12 min"), (19200, "5 h 20 min"), (183600, "2 d 3 h")],
)
def test_times_are_rounded_for_people(seconds, text):
    assert duration_text(seconds) == text
