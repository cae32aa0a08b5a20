"""The paper's table: sets found by their manifests, entries from an evaluation's result."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from dfdet.errors import ConfigError
from dfdet.evaluation.reproduction import Options, Planned, entries, find_sets, markdown, plan, to_json


def made(scores: dict[str, dict[str, float]]) -> dict[str, Any]:
    """What ``result.json`` has of video AUROCs by run and test set."""
    tests = list(next(iter(scores.values())))
    known = {}
    for run, values in scores.items():
        metrics = {}
        for test, value in {**values, "macro": fmean(values.values())}.items():
            name = f"test/{test}/video/auroc"
            metrics |= {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.05}
        known[run] = {"metrics": metrics}
    return {"checkpoints": known, "request": {"test": dict.fromkeys(tests, "")}}


def manifest(root: Path, name: str, dataset: str, split: str, template: Path) -> Path:
    tree = json.loads(template.read_text())
    root.mkdir(exist_ok=True)
    path = root / f"{name}.json"
    path.write_text(json.dumps(tree | {"name": name, "dataset": dataset, "split": split}))
    return path


def test_sets_are_found_by_split_and_ff_trains(tmp_path: Path, signal_sets: dict[str, Path]) -> None:
    make = lambda *args: manifest(tmp_path / args[0], *args, signal_sets["train"])  # noqa: E731
    train, val = make("ff-train", "ffpp-c23", "train"), make("ff-val", "ffpp-c23", "val")
    make("dfdc-train", "dfdc", "train")
    cdf, first, second = (
        make("cdf-test", "cdfv2", "test"),
        make("dfd-a", "dfd-c23", "test"),
        make("dfd-b", "dfd-c23", "test"),
    )
    (tmp_path / "other.json").write_text("[1]")
    found = find_sets(tmp_path)
    assert found.train == (train,)
    assert found.val == {"ffpp-c23": val}
    assert found.test == {"cdfv2": cdf, "dfd-a": first, "dfd-b": second}


def test_another_dataset_trains_where_ff_is_not(signal_sets: dict[str, Path]) -> None:
    found = find_sets(signal_sets["train"].parent)
    assert found.train == (signal_sets["train"],)
    assert found.test == {"signal": signal_sets["test"]}


def test_a_split_that_is_missing_is_named(tmp_path: Path, signal_sets: dict[str, Path]) -> None:
    manifest(tmp_path / "only", "t", "ffpp", "train", signal_sets["train"])
    with pytest.raises(ConfigError, match="no finished set of split val; build sets with"):
        find_sets(tmp_path)


def test_all_rows_are_run_before_the_next_seed() -> None:
    found = plan(Options(shards="s", rows=("ln", "paper"), seeds=2))
    assert [run.name for run in found] == ["ln-s0", "paper-s0", "ln-s1", "paper-s1"]


def test_an_entry_is_the_mean_over_seeds_beside_what_was_published() -> None:
    planned = [Planned("ln", seed) for seed in range(3)]
    values = [0.9, 0.92, 0.97]
    result = made(
        {run.name: {"cdfv2": value, "own": 0.5} for run, value in zip(planned, values, strict=True)}
    )
    first, second, macro = entries(result, planned)
    half = 4.302652729749464 * stdev([100 * v for v in values]) / math.sqrt(3)  # Student's t, 2 degrees
    assert first.value == pytest.approx(93)
    assert (first.low, first.high) == pytest.approx((93 - half, 93 + half))
    assert (first.published, second.published) == (94.88, None)
    assert (second.value, macro.test) == (50, "macro")
    assert first.shown() == f"93.00 ({93 - half:.1f} to {93 + half:.1f}), published 94.88"


def test_one_run_has_its_own_interval() -> None:
    [entry] = entries(made({"paper-s0": {"dfdc": 0.8}}), [Planned("paper", 0)])
    assert (entry.value, entry.low, entry.high) == pytest.approx((80, 70, 85))
    assert entry.published == 87.15
    assert "of one run" in markdown([entry])
    assert json.loads(to_json([entry]))[0]["published"] == 87.15


def test_the_table_has_a_row_a_recipe_and_a_column_a_set() -> None:
    planned = [Planned("ln", 0), Planned("gend", 0)]
    table = markdown(entries(made({"ln-s0": {"a": 0.6, "b": 0.7}, "gend-s0": {"a": 0.8, "b": 0.9}}), planned))
    lines = table.splitlines()
    assert lines[0] == "| video AUROC, % | a | b | macro |"
    assert lines[2].startswith("| ln (LN-tuning) | 60.00 (50.0 to 65.0) |")
    assert lines[3].startswith("| gend (LNCLIP-DF (GenD)) | 80.00")
