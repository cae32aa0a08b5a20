"""Speed: what was waited for, what each part took, images a second and their share of the peak."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from dfdet.training.clock import PARTS, StepClock
from dfdet.training.flops import Flops, Peak
from dfdet.training.meter import Meter

CPU = torch.device("cpu")
PAUSE_S = 0.02


def slow_batches(count: int) -> Iterator[int]:
    for number in range(count):
        time.sleep(PAUSE_S)
        yield number


def test_each_part_has_the_time_from_its_start_to_the_next() -> None:
    clock = StepClock(CPU)
    clock.start("forward")
    time.sleep(PAUSE_S)
    clock.start("backward")
    clock.start("forward")
    time.sleep(PAUSE_S)
    clock.stop()
    time.sleep(3 * PAUSE_S)
    found = clock.read()
    assert tuple(found) == PARTS
    assert found["forward"] >= 2 * PAUSE_S
    assert found["communication"] == found["optimizer"] == 0.0
    assert sum(found.values()) == pytest.approx(found["forward"] + found["backward"])


def test_time_after_a_stop_belongs_to_no_part() -> None:
    clock = StepClock(CPU)
    clock.start("forward")
    clock.stop()
    begun = time.perf_counter()
    time.sleep(PAUSE_S)
    between = time.perf_counter() - begun
    clock.start("backward")
    clock.stop()
    clock_total = sum(clock.read().values())
    assert clock_total < between


def test_reading_starts_anew() -> None:
    clock = StepClock(CPU)
    clock.start("optimizer")
    clock.stop()
    clock.read()
    assert clock.read() == dict.fromkeys(PARTS, 0.0)


@pytest.mark.gpu
def test_on_cuda_the_time_is_the_devices_own() -> None:
    device = torch.device("cuda")
    matrix = torch.randn(4096, 4096, device=device)
    (matrix @ matrix).sum().item()
    clock = StepClock(device)
    clock.start("forward")
    for _ in range(20):
        matrix = matrix @ matrix * 1e-2
    clock.start("backward")
    clock.stop()
    found = clock.read()
    assert found["forward"] > 10 * found["backward"]


def test_waiting_gives_the_batches_and_counts_the_wait() -> None:
    meter = Meter(8, CPU)
    seen = []
    for batch in meter.waiting(slow_batches(3)):
        seen.append(batch)
        meter.step()
    found = meter.read()
    assert seen == [0, 1, 2]
    assert PAUSE_S <= found["perf/data_wait_s"] <= found["perf/step_s"]


def test_what_lies_before_the_loop_counts_nowhere() -> None:
    clock = StepClock(CPU)
    meter = Meter(8, CPU, clock)
    clock.start("forward")
    time.sleep(5 * PAUSE_S)
    clock.stop()
    begun = time.perf_counter()
    for _ in meter.waiting([0]):
        meter.step()
    found = meter.read()
    assert found["perf/step_s"] <= time.perf_counter() - begun
    assert found["perf/forward_s"] == 0.0


def test_images_a_second_are_those_of_all_ranks_over_the_time_of_a_step() -> None:
    meter = Meter(8, CPU)
    for _ in meter.waiting(slow_batches(2)):
        meter.step()
    found = meter.read()
    assert found["perf/images_per_s"] == pytest.approx(8 / found["perf/step_s"])


def test_mfu_is_needed_flops_over_the_peak_of_all_devices() -> None:
    meter = Meter(8, CPU, None, Flops(forward=2e9, backward=1e9), Peak(1e12, "a test"), world=4)
    for _ in meter.waiting(slow_batches(1)):
        meter.step()
    found = meter.read()
    assert found["perf/mfu"] == pytest.approx(found["perf/images_per_s"] * 3e9 / 4e12)


def test_without_a_peak_there_is_no_mfu() -> None:
    meter = Meter(8, CPU, None, Flops(1.0, 1.0), None)
    meter.step()
    assert "perf/mfu" not in meter.read()
    assert "perf/mfu" not in meter.totals()


def test_totals_are_rates_over_all_time_and_medians_of_the_times() -> None:
    meter = Meter(10, CPU, None, Flops(1.0, 2.0), Peak(100.0, "a test"))
    for steps, step_s, wait_s in ((2, 4.0, 1.0), (1, 10.0, 1.0), (3, 9.0, 0.0)):
        parts = dict.fromkeys(PARTS, 0.0) | {"forward": step_s / 2}
        meter.intervals.append((steps, {"step": step_s, "data_wait": wait_s, **parts}))
    found = meter.totals()
    assert found["perf/images_per_s"] == pytest.approx(60 / 23)
    assert found["perf/mfu"] == pytest.approx(60 / 23 * 3 / 100)
    assert found["perf/data_wait_share"] == pytest.approx(2 / 23)
    assert found["perf/step_s"] == 3.0
    assert found["perf/forward_s"] == 1.5
    assert found["perf/peak_memory_mib"] > 1


def test_totals_of_nothing_are_empty() -> None:
    assert Meter(8, CPU).totals() == {}


def test_a_read_keeps_its_interval_for_the_totals() -> None:
    meter = Meter(8, CPU)
    for _ in range(2):
        for _ in meter.waiting(slow_batches(1)):
            meter.step()
        read = meter.read()
    assert [steps for steps, _ in meter.intervals] == [1, 1]
    assert meter.intervals[1][1]["step"] == read["perf/step_s"]
