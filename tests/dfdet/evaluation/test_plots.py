import ast
import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from dfdet.evaluation import plots
from dfdet.runs.runfolder import read_metrics

LOSSES = [
    {"step": s, "epoch": 0, "train/loss/total": 1 / s, "train/loss/ce": 1 / s, "optim/lr": 1e-4}
    for s in range(1, 200)
]
VALIDATION = [
    {"step": 100 * e, "epoch": e, "val/demo/video/auroc": 0.5 + e / 10, "val/demo/video/ap": 0.4 + e / 10}
    for e in (1, 2)
]
END = [
    {
        "step": 200,
        "epoch": 2,
        "val/demo/video/auroc": 0.99,
        "test/new/video/auroc": 0.61,
        "test/new/video/auroc/DF": 0.1,
    }
]


def _records(folder, records):
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"cut', encoding="utf-8")
    return path


def _drawn(path):
    """Standard deviation of a picture's pixels: an empty one has none."""
    return float(matplotlib.image.imread(path).std())


def test_run_with_all_records_has_both_pictures(tmp_path):
    written = plots.training_curves(_records(tmp_path, LOSSES + VALIDATION + END), tmp_path / "plots")
    assert [path.name for path in written] == ["loss.png", "metrics.png"]
    assert all(_drawn(path) > 0.05 for path in written)


def test_run_without_validation_has_the_losses_only(tmp_path):
    written = plots.training_curves(_records(tmp_path, LOSSES[:5]), tmp_path)
    assert [path.name for path in written] == ["loss.png"]


@pytest.mark.parametrize(
    "records", [[], [{"step": 1, "epoch": 0, "train/loss/total": None}], [{"note": "x"}]]
)
def test_run_without_numbers_has_no_picture(tmp_path, records):
    assert plots.training_curves(_records(tmp_path, records), tmp_path / "plots") == []


def test_missing_records_are_no_error(tmp_path):
    assert plots.training_curves(tmp_path / "metrics.jsonl", tmp_path / "plots") == []


def test_panels_are_the_terms_total_first_and_the_learning_rate_last(tmp_path):
    figure = plots._loss_figure(read_metrics(_records(tmp_path, LOSSES)))
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "total loss",
        "ce loss",
        "learning rate\n(per step)",
    ]


def test_validation_is_by_epoch_and_test_values_are_lines(tmp_path):
    figure = plots._metrics_figure(read_metrics(_records(tmp_path, VALIDATION + END)))
    validation, test = figure.axes[0].get_lines()
    assert validation.get_xydata().tolist() == [[1, 0.6], [2, 0.7]]  # the end's value is another checkpoint's
    assert set(test.get_ydata()) == {0.61}
    assert test.get_linestyle() == "--"


def test_a_set_has_one_colour_in_both_panels(tmp_path):
    end = {
        "step": 1,
        "epoch": 1,
        "test/a/video/auroc": 0.5,
        "test/b/video/auroc": 0.6,
        "test/b/video/ap": 0.7,
    }
    figure = plots._metrics_figure(read_metrics(_records(tmp_path, [end])))
    left, right = (
        {line.get_label().split(",")[0]: line.get_color() for line in axes.get_lines()}
        for axes in figure.axes
    )
    assert left["test b"] == right["test b"] != left["test a"]


@pytest.mark.parametrize("kinds", [["real", "DF"], ["real"], ["DF"], ["real"] + [f"m{i}" for i in range(12)]])
def test_scores_have_a_row_a_method(tmp_path, kinds):
    methods = kinds * 20
    labels = [int(kind != "real") for kind in methods]
    scores = np.random.default_rng(0).random(len(methods)).astype(np.float32)
    path = tmp_path / "plots" / "scores.png"
    plots.score_histogram(labels, scores, methods, path)
    rows = max(1, len(set(kinds) - {"real"}))
    assert matplotlib.image.imread(path).shape[0] == pytest.approx((1.2 + 1.25 * rows) * plots.DPI, abs=1)
    assert _drawn(path) > 0.05


def test_pyplot_is_not_imported():
    tree = ast.parse(Path(plots.__file__).read_text(encoding="utf-8"))
    names = [
        name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in [node.module or ""]
    ]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert not any("pyplot" in name for name in names)
