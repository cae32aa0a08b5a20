import csv
import math

import pyarrow.parquet as pq
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from dfdet.config import Config, from_json
from dfdet.sweep.results import (
    Setting,
    best_config,
    best_first,
    metric_text,
    pareto_front,
    read_setting,
    read_settings,
    score_text,
    write_best,
    write_trials,
)

METRIC = "val/demo/video/auroc"


def trial(number, state=TrialState.COMPLETE, values=None, scores=None, curve=None, **attrs):
    made = create_trial(
        state=state,
        values=scores,
        intermediate_values=curve or {},
        user_attrs={"values": values or {}} | attrs,
    )
    made.number = number
    return made


def rows_of(folder):
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_trial_is_read_with_all_that_its_attributes_tell():
    made = trial(
        7,
        values={"optim.lr": 0.01},
        scores=[0.9],
        curve={1: 0.7, 2: 0.8},
        published="paper",
        spread=0.02,
        epochs=4,
        wall_s=12.5,
        worker_s=25.0,
        runs=["0007-s0", "0007-s1"],
    )
    assert read_setting(made) == Setting(
        number=7,
        state="complete",
        values={"optim.lr": 0.01},
        scores=(0.9,),
        spread=(0.02,),
        published="paper",
        curve={1: 0.7, 2: 0.8},
        epochs=4,
        wall_s=12.5,
        worker_s=25.0,
        runs=("0007-s0", "0007-s1"),
    )


def test_a_trial_that_died_at_once_has_its_parameters_and_the_epochs_of_its_reports():
    made = create_trial(
        state=TrialState.FAIL,
        params={"optim.lr": 0.02},
        distributions={"optim.lr": FloatDistribution(0, 1)},
        intermediate_values={3: 0.5},
    )
    setting = read_setting(made)
    assert setting.values == setting.params == {"optim.lr": 0.02}
    assert (setting.epochs, setting.scores) == (3, ())


def test_a_pruned_trial_has_no_score():
    assert read_setting(trial(0, TrialState.PRUNED, scores=[0.4], curve={1: 0.4})).scores == ()


def test_the_front_holds_what_no_other_beats_and_ties():
    points = [(0.9, 2.0), (0.8, 1.0), (0.8, 1.0), (0.7, 1.5), (0.95, 4.0)]
    settings = [Setting(number, "complete", scores=point) for number, point in enumerate(points)]
    front = pareto_front(settings, ("maximize", "minimize"))
    assert [setting.number for setting in front] == [4, 0, 1, 2]


def test_settings_are_ordered_front_after_front():
    points = [(0.7, 1.5), (0.9, 2.0), (0.8, 1.0), (0.6, 3.0)]
    settings = [Setting(number, "complete", scores=point) for number, point in enumerate(points)]
    assert [s.number for s in best_first(settings, ("maximize", "minimize"))] == [1, 2, 0, 3]


@pytest.mark.parametrize(("direction", "order"), [("maximize", [2, 0, 1]), ("minimize", [0, 1, 2])])
def test_of_one_objective_the_best_comes_first_and_the_earlier_of_equals(direction, order):
    settings = [Setting(n, "complete", scores=(score,)) for n, score in enumerate([0.5, 0.5, 0.9])]
    assert [s.number for s in best_first([*settings, Setting(3, "failed")], (direction,))] == order


def test_best_json_is_a_config_that_can_be_loaded_and_is_a_run_of_its_own(tmp_path):
    base = Config().replace({"run.name": "0007", "run.storage": "elsewhere"})
    path = write_best(tmp_path, best_config(base, {"loss.uniformity": 0.31, "optim.lr": 1e-3}))
    loaded = from_json(path)
    assert path == tmp_path / "best.json"
    assert (loaded.loss.uniformity, loaded.optim.lr, loaded.run.name) == (0.31, 1e-3, None)
    assert loaded == base.replace({"loss.uniformity": 0.31, "optim.lr": 1e-3, "run.name": None})


def test_the_tables_have_a_row_a_trial_in_full_precision(tmp_path):
    score, rate = 0.1 + 0.2, math.pi / 1000
    trials = [
        trial(1, TrialState.FAIL, {"optim.lr": rate}, reason="out of memory, or\nso"),
        trial(0, values={"optim.lr": rate}, scores=[score], published="paper", spread=0.1, runs=["0000"]),
    ]
    write_trials(tmp_path, trials, [METRIC])
    rows = rows_of(tmp_path)
    assert [row["number"] for row in rows] == ["0", "1"]
    assert (float(rows[0][METRIC]), float(rows[0]["optim.lr"])) == (score, rate)
    assert (rows[0]["published"], rows[0][f"{METRIC} spread"], rows[0]["runs"]) == ("paper", "0.1", "0000")
    assert (rows[1][METRIC], rows[1]["reason"]) == ("", "out of memory, or\nso")


def test_the_parquet_table_has_types_and_the_same_rows(tmp_path):
    trials = [
        trial(0, values={"optim.lr": 1, "loss.slerp": True, "optim.epochs": 3}, scores=[0.5]),
        trial(1, values={"optim.lr": 0.5, "model.head": "cosine"}, state=TrialState.PRUNED, stopped_epoch=2),
    ]
    write_trials(tmp_path, trials, [METRIC])
    table = pq.read_table(tmp_path / "trials.parquet")
    types = {name: str(table.schema.field(name).type) for name in table.column_names}
    assert types["optim.lr"] == "double"
    assert types["loss.slerp"] == "bool"
    assert types["optim.epochs"] == "int64"
    assert types["model.head"] == "string"
    assert table["model.head"].to_pylist() == [None, "cosine"]
    assert table["stopped_epoch"].to_pylist() == [None, 2]
    assert table.column_names == list(rows_of(tmp_path)[0])


def test_choices_of_several_kinds_become_words(tmp_path):
    trials = [trial(n, values={"x.y": value}, scores=[0.1]) for n, value in enumerate([True, 2, "none"])]
    write_trials(tmp_path, trials, [METRIC])
    assert pq.read_table(tmp_path / "trials.parquet")["x.y"].to_pylist() == ["True", "2", "none"]


def test_several_objectives_have_a_column_each(tmp_path):
    write_trials(tmp_path, [trial(0, scores=[0.9, 3.0], spread=[0.1, 0.2])], [METRIC, "perf/step_s"])
    row = rows_of(tmp_path)[0]
    assert (row[METRIC], row["perf/step_s"], row["perf/step_s spread"]) == ("0.9", "3.0", "0.2")


def test_a_sweep_without_trials_gives_empty_tables(tmp_path):
    write_trials(tmp_path, [], [METRIC])
    assert rows_of(tmp_path) == []
    assert pq.read_table(tmp_path / "trials.parquet").num_rows == 0


def test_settings_come_by_number():
    categories = {"a": CategoricalDistribution(("x", "y"))}
    late = create_trial(value=1.0, params={"a": "x"}, distributions=categories)
    early = create_trial(value=1.0, params={"a": "y"}, distributions=categories)
    late.number, early.number = 9, 2
    assert [setting.number for setting in read_settings([late, early])] == [2, 9]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.87541, ".8754"),
        (1.0, "1.0000"),
        (-0.012, "-.0120"),
        (0.0, ".0000"),
        (1.2e-5, "1.2e-05"),
        (812.3, "812.3"),
    ],
)
def test_scores_are_short(value, text):
    assert score_text(value) == text


def test_differences_show_their_sign():
    assert (score_text(0.0142, signed=True), score_text(-0.5, signed=True)) == ("+.0142", "-.5000")


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (METRIC, "video AUROC on demo"),
        ("val/a-b/frame/balanced_accuracy", "frame balanced accuracy on a-b"),
        ("perf/step_s", "step time (s)"),
        ("perf/images_per_s", "images per s"),
        ("perf/peak_memory_mib", "peak memory (MiB)"),
        ("video AUROC", "video AUROC"),
    ],
)
def test_metrics_are_told_in_few_words(metric, text):
    assert metric_text(metric) == text
