"""A driver's part in a sweep, with run folders written by hand in place of trainings."""

import json
from pathlib import Path

import pytest
from optuna.trial import TrialState

from dfdet.config import Config
from dfdet.recipes import demo
from dfdet.sweep.objective import Objective
from dfdet.sweep.options import Options
from dfdet.sweep.samplers import build_pruner
from dfdet.sweep.space.space import Space
from dfdet.sweep.study import Done, Search, SweepStudy
from dfdet.sweep.sweeper import STOP, Assignment, Sweeper

METRIC = "val/demo/video/auroc"
SPACE = Space.model_validate({"dimensions": {"loss.uniformity": {"low": 0.0, "high": 1.0}}})


@pytest.fixture
def base() -> Config:
    return demo().replace({"run.name": "sweep", "optim.epochs": 4})


@pytest.fixture
def begin(tmp_path: Path, base: Config):
    opened: list[SweepStudy] = []

    def open_one(objectives: tuple[str, ...] = (METRIC,), **options) -> Sweeper:
        chosen = Options(**({"trials": 4, "final": 0, "max_failed": 1} | options))
        goals = [Objective.parse(text) for text in objectives]
        pruner = build_pruner(chosen.pruner, base.optim.epochs, chosen.reduction, chosen.min_epochs)
        how = Search(base, SPACE, chosen.sampler, base.run.seed, pruner if len(goals) == 1 else None)
        header = {
            "base": base.model_dump(mode="json"),
            "space": SPACE.model_dump(mode="json"),
            "options": chosen.model_dump(mode="json"),
        }
        folder = tmp_path / "sweep"
        studies = [
            SweepStudy.open(
                tmp_path / "sweep", None, name=name, objectives=goals, header=header, search=search
            )
            for name, search in (("sweep", how), ("sweep-final", None))
        ]
        opened.extend(studies)
        return Sweeper(folder, base, chosen, goals, *studies)

    yield open_one
    for study in opened:
        study.close()


def finish(assignment: Assignment, *scores: float, status: str = "finished", **more) -> None:
    for config, score in zip(assignment.runs, scores, strict=True):
        folder = Path(config.run.storage) / str(config.run.name)
        folder.mkdir(parents=True, exist_ok=True)
        result = {"status": status, "metrics": {METRIC: score}, "speed": {"perf/step_s": 0.5}} | more
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 8, "epoch": 4}) + "\n")


def taken(sweeper: Sweeper) -> Assignment:
    found = sweeper.next()
    assert isinstance(found, Assignment)
    return found


def test_a_setting_is_the_base_with_its_values_in_a_run_folder_of_the_sweep(begin, base, tmp_path) -> None:
    assignment = taken(begin())
    [config] = assignment.runs
    assert config.run.storage == str(tmp_path / "sweep")
    assert config.run.name == "0000"
    restored = {"run": base.run.model_dump(), "loss.uniformity": 0.0, "data.test": base.data.test}
    assert config.data.test == ()
    assert config.replace(restored) == base
    assert 0 < config.loss.uniformity < 1


def test_a_finished_run_completes_the_setting_with_what_it_cost(begin) -> None:
    sweeper = begin()
    finish(taken(sweeper), 0.75)
    sweeper.ended("search", 0, None)
    [trial] = sweeper.search.trials()
    assert (trial.state, trial.values) == (TrialState.COMPLETE, [0.75])
    assert trial.user_attrs["epochs"] == 4
    assert trial.user_attrs["worker_s"] == pytest.approx(2 * trial.user_attrs["wall_s"], abs=0.02)
    assert trial.user_attrs["runs"] == ["0000"]


def test_a_setting_is_scored_by_the_mean_over_its_seeds_with_their_spread(begin) -> None:
    sweeper = begin(seeds=3)
    assignment = taken(sweeper)
    assert [(run.run.name, run.run.seed) for run in assignment.runs] == [
        ("0000-s0", 0),
        ("0000-s1", 1),
        ("0000-s2", 2),
    ]
    finish(assignment, 0.7, 0.8, 0.9)
    sweeper.ended("search", 0, None)
    [trial] = sweeper.search.trials()
    assert trial.values == [pytest.approx(0.8)]
    assert trial.user_attrs["spread"] == pytest.approx(0.1)
    assert trial.user_attrs["seed_scores"] == {"0": [0.7], "1": [0.8], "2": [0.9]}
    assert trial.user_attrs["epochs"] == 12


def go_on(sweeper: Sweeper, *scores: float) -> None:
    """Settings that are trained to their end, with a report after the first epoch."""
    for score in scores:
        assignment = taken(sweeper)
        sweeper.report("search", assignment.number, 0, {"epoch": 1, METRIC: score})
        finish(assignment, score)
        sweeper.ended("search", assignment.number, None)


def test_a_setting_behind_the_others_is_asked_to_stop_and_told_pruned(begin, tmp_path) -> None:
    sweeper = begin(min_epochs=1)
    go_on(sweeper, 0.9, 0.95)
    behind = taken(sweeper)
    (tmp_path / "sweep/0002").mkdir()
    sweeper.report("search", 2, 0, {"epoch": 1, METRIC: 0.6})
    assert (tmp_path / "sweep/0002/stop").read_text() == "stopped early after epoch 1"
    assert sweeper.search.trials()[2].state == TrialState.RUNNING
    finish(behind, 0.6, status="stopped")
    sweeper.ended("search", 2, None)
    last = sweeper.search.trials()[2]
    assert (last.state, last.value, last.user_attrs["stopped_epoch"]) == (TrialState.PRUNED, 0.6, 1)


def test_a_published_setting_is_trained_to_its_end(begin, tmp_path) -> None:
    sweeper = begin(min_epochs=1)
    go_on(sweeper, 0.9, 0.95)
    sweeper.search.publish({"recipe": {"loss.uniformity": 0.5}})
    assert taken(sweeper).number == 2
    (tmp_path / "sweep/0002").mkdir()
    sweeper.report("search", 2, 0, {"epoch": 1, METRIC: 0.1})
    assert not (tmp_path / "sweep/0002/stop").exists()
    assert sweeper.search.trials()[2].intermediate_values == {1: 0.1}


def test_only_reports_of_the_first_seed_are_compared(begin) -> None:
    sweeper = begin(seeds=2)
    taken(sweeper)
    sweeper.report("search", 0, 1, {"epoch": 1, METRIC: 0.1})
    sweeper.report("search", 0, 0, {"epoch": 1, METRIC: 0.6})
    assert sweeper.search.trials()[0].intermediate_values == {1: 0.6}


def test_a_failed_run_fails_its_setting_with_its_reason_and_others_go_on(begin) -> None:
    sweeper = begin()
    finish(taken(sweeper), 0.0, status="failed", message="out of luck")
    sweeper.ended("search", 0, "died")
    [trial] = sweeper.search.trials()
    assert (trial.state, trial.user_attrs["reason"]) == (TrialState.FAIL, "out of luck")
    assert taken(sweeper).number == 1


def test_a_process_that_died_without_a_word_fails_its_setting(begin) -> None:
    sweeper = begin()
    taken(sweeper)
    sweeper.ended("search", 0, "its process died")
    assert sweeper.search.trials()[0].user_attrs["reason"] == "its process died"


def test_more_failures_than_allowed_end_the_sweep(begin) -> None:
    sweeper = begin(max_failed=1)
    for number in range(2):
        taken(sweeper)
        sweeper.ended("search", number, "died")
    assert "2 settings failed, more than --max_failed 1; the last one: died" in str(sweeper.failure)
    assert sweeper.next() == Done()


def test_a_result_without_the_objective_fails_the_setting(begin) -> None:
    sweeper = begin()
    finish(taken(sweeper), 0.5, metrics={})
    sweeper.ended("search", 0, None)
    assert METRIC in sweeper.search.trials()[0].user_attrs["reason"]


def test_a_stop_leaves_the_running_setting_to_be_taken_up_again(begin, tmp_path) -> None:
    sweeper = begin()
    first = taken(sweeper)
    finish(first, 0.5, status="stopped")
    sweeper.stop("SIGTERM")
    assert (tmp_path / "sweep/0000/stop").read_text() == "SIGTERM"
    assert (sweeper.driver / STOP).exists()
    assert sweeper.next() == Done()
    sweeper.ended("search", 0, None)
    assert sweeper.search.trials()[0].state == TrialState.RUNNING
    sweeper.search.close()
    again = taken(begin())
    assert (again.number, again.runs) == (first.number, first.runs)


def test_what_a_driver_that_died_had_spent_is_counted(begin, monkeypatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("dfdet.sweep.sweeper.time.monotonic", lambda: float(next(clock)))
    sweeper = begin()
    taken(sweeper)
    sweeper.report("search", 0, 0, {"epoch": 1, METRIC: 0.5})  # after 10 s
    sweeper.search.close()
    other = begin()
    finish(taken(other), 0.5)
    other.ended("search", 0, None)  # after 10 more
    attrs = other.search.trials()[0].user_attrs
    assert (attrs["wall_s"], attrs["worker_s"]) == (20, 40)


def test_a_driver_that_died_while_stopping_a_setting_leaves_it_pruned(begin) -> None:
    sweeper = begin()
    assignment = taken(sweeper)
    sweeper.search.set_attrs(assignment.number, {"stopped_epoch": 1})
    sweeper.search.close()
    other = begin()
    assert taken(other).number == 1
    assert other.search.trials()[0].state == TrialState.PRUNED


def search_out(sweeper: Sweeper, scores: list[float]) -> None:
    for score in scores:
        assignment = taken(sweeper)
        finish(assignment, score)
        sweeper.ended("search", assignment.number, None)


def test_the_best_settings_and_the_published_ones_are_trained_again_on_fresh_seeds(begin) -> None:
    sweeper = begin(trials=3, final=1, final_seeds=2)
    sweeper.search.publish({"recipe": {"loss.uniformity": 0.5}})
    search_out(sweeper, [0.5, 0.9, 0.7])
    found = [taken(sweeper) for _ in range(4)]
    names = [(each.phase, each.runs[0].run.name, each.runs[0].run.seed) for each in found]
    assert names == [
        ("final", "final-0001-s1000", 1000),
        ("final", "final-0001-s1001", 1001),
        ("final", "final-0000-s1000", 1000),
        ("final", "final-0000-s1001", 1001),
    ]
    assert found[2].runs[0].loss.uniformity == 0.5
    assert found[2].runs[0].data.test == sweeper.base.data.test
    for each in found:
        finish(each, 0.6)
        sweeper.ended("final", each.number, None)
    assert sweeper.next() == Done()
    assert [trial.value for trial in sweeper.final.trials()] == [0.6] * 4
    assert len(sweeper.search.trials()) == 3


def test_the_last_runs_begin_when_no_setting_runs_any_more(begin) -> None:
    sweeper = begin(trials=2, final=1, final_seeds=1)
    one, two = taken(sweeper), taken(sweeper)
    finish(one, 0.5)
    sweeper.ended("search", one.number, None)
    assert sweeper.next() is None
    finish(two, 0.7)
    sweeper.ended("search", two.number, None)
    assert taken(sweeper).runs[0].run.name == "final-0001-s1000"


def test_a_raised_limit_goes_on_and_finals_that_were_run_are_not_run_again(begin) -> None:
    sweeper = begin(trials=1, final=1, final_seeds=1)
    search_out(sweeper, [0.5])
    final = taken(sweeper)
    finish(final, 0.6)
    sweeper.ended("final", final.number, None)
    more = begin(trials=2, final=2, final_seeds=1)
    search_out(more, [0.4])
    assert taken(more).runs[0].run.name == "final-0001-s1000"


def test_several_objectives_are_told_together_and_nothing_is_stopped_or_run_again(begin) -> None:
    sweeper = begin((METRIC, "perf/step_s:min"), trials=1, final=3, pruner="none")
    assignment = taken(sweeper)
    sweeper.report("search", 0, 0, {"epoch": 1, METRIC: 0.0})
    finish(assignment, 0.8)
    sweeper.ended("search", 0, None)
    assert sweeper.search.trials()[0].values == [0.8, 0.5]
    assert sweeper.next() == Done()
