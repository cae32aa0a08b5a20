"""The table of an evaluation's throughput."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.evaluation import Options, rows_of, table
from dfdet.benchmark.measure import Times
from dfdet.errors import ConfigError

CPU = torch.device("cpu")


@pytest.fixture
def options(trained_run: Path, signal_sets: dict[str, Path]) -> Options:
    return Options(
        trained_run, set=signal_sets["test"], batch=16, batches=3, corruptions=("jpeg-40", "noise")
    )


def test_every_row_scores_the_same_images_and_a_corruption_them_twice(options: Options) -> None:
    rows = rows_of(options, CPU)
    assert [(row.name, row.views) for row in rows[:4]] == [
        ("forward", 48),
        ("forward of training, with gradients kept", 48),
        ("evaluation, clean", 48),
        ("evaluation, clean and jpeg-40", 96),
    ]
    assert len(rows) == 4 + 6  # the levels of noise
    for row in rows:
        row.step()


def test_a_set_gives_as_many_batches_as_it_has(options: Options) -> None:
    assert rows_of(Options(options.checkpoint, set=options.set, batch=40), CPU)[0].views == 40


def test_a_batch_larger_than_the_set_is_refused(options: Options) -> None:
    with pytest.raises(ConfigError, match="--batch 100: the set has 72 samples"):
        rows_of(Options(options.checkpoint, set=options.set, batch=100), CPU)


def test_rates_and_ratios_are_of_views(options: Options) -> None:
    rows = rows_of(options, CPU)[:4]
    times = [Times([1.0, 1.0, 9.0], [0.48, 0.48, 0.1])] * 3 + [Times([2.0], [1.44])]
    lines = table(rows, times, CPU)[2:]
    assert lines[0] == "| forward | 48 | 20.833 | 10.000 | 1.000 |"
    assert lines[3] == "| evaluation, clean and jpeg-40 | 48 | 20.833 | 15.000 | 1.500 |"
