import pytest

from dfdet.sweep.report.cost import cost_of, full_epochs, saved_by_stopping
from dfdet.sweep.results import Setting

SEARCH = [
    Setting(0, "complete", epochs=10, worker_s=100.0),
    Setting(1, "pruned", epochs=2, worker_s=20.0),
    Setting(2, "failed", epochs=1, worker_s=10.0),
]


def test_the_cost_is_the_sum():
    cost = cost_of(SEARCH)
    assert (cost.settings, cost.epochs, cost.worker_s) == (3, 13, 130.0)


def test_a_stopped_setting_saves_what_it_was_not_trained():
    saved = saved_by_stopping(SEARCH, epochs=10, seeds=1)
    assert saved.epochs == 8
    assert saved.share == pytest.approx(8 / 21)
    assert saved.worker_s == pytest.approx(80.0)


def test_the_seeds_that_never_began_are_saved_too():
    assert saved_by_stopping(SEARCH, epochs=10, seeds=3).epochs == 28


def test_a_setting_with_epochs_of_its_own_is_measured_by_them():
    setting = Setting(1, "pruned", values={"optim.epochs": 4}, epochs=1)
    assert full_epochs(setting, 10, 2) == 8
    assert saved_by_stopping([setting], 10, 1).epochs == 3


def test_without_stopped_settings_nothing_is_saved():
    saved = saved_by_stopping(SEARCH[:1], epochs=10, seeds=1)
    assert (saved.epochs, saved.share, saved.worker_s) == (0, 0.0, 0.0)
