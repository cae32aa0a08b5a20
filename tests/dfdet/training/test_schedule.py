"""Plans of a run: micro-batches that make the global batch, learning rates, DeepSpeed's numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfdet.config import Config, Optim
from dfdet.errors import ConfigError
from dfdet.training.schedule import Layout, batch_layout, deepspeed_config, learning_rate

UNITS = st.sampled_from((1, 2))


@given(world=st.integers(1, 16), units=st.integers(1, 64), unit=UNITS, limit=st.none() | st.integers(1, 130))
def test_a_layout_makes_the_global_batch_of_whole_units_in_the_fewest_parts(
    world: int, units: int, unit: int, limit: int | None
) -> None:
    limit = limit and max(limit, unit)
    layout = batch_layout(world * units * unit, world, limit, unit)
    assert layout.world * layout.accumulation * layout.micro == world * units * unit == layout.global_batch
    assert layout.per_rank == units * unit
    assert layout.micro % unit == 0
    assert layout.micro <= (limit or layout.per_rank)
    fewer = [n for n in range(1, layout.accumulation) if units % n == 0]
    assert all(limit is not None and units // n * unit > limit for n in fewer)


def test_no_limit_means_no_accumulation() -> None:
    assert batch_layout(128, 4, None) == Layout(world=4, micro=32, accumulation=1)


def test_a_limit_that_does_not_divide_takes_the_next_that_does() -> None:
    assert batch_layout(128, 2, 50) == Layout(world=2, micro=32, accumulation=2)


def test_an_odd_limit_keeps_pairs_whole() -> None:
    assert batch_layout(12, 1, 5, unit=2) == Layout(world=1, micro=4, accumulation=3)


@given(batch=st.integers(1, 300), world=st.integers(1, 16), unit=UNITS)
def test_a_batch_that_does_not_divide_is_refused_with_one_that_does(
    batch: int, world: int, unit: int
) -> None:
    if batch % (world * unit) == 0:
        assert batch_layout(batch, world, None, unit).global_batch == batch
        return
    with pytest.raises(ConfigError, match=f"^data.global_batch={batch}: not divisible by {world} ") as caught:
        batch_layout(batch, world, None, unit)
    remedy = int(str(caught.value).rpartition(" ")[2])
    assert batch_layout(remedy, world, None, unit).global_batch == remedy


def test_a_micro_batch_smaller_than_a_pair_is_refused_with_one_that_fits() -> None:
    with pytest.raises(ConfigError, match=r"^engine.micro_batch=1: .*; set --engine.micro_batch 2$"):
        batch_layout(8, 1, 1, unit=2)


def rates(optim: Optim, steps_per_epoch: int = 10) -> list[float]:
    return [learning_rate(step, steps_per_epoch, optim) for step in range(optim.epochs * steps_per_epoch)]


def test_a_warm_up_rises_linearly_from_above_zero_to_the_peak() -> None:
    found = rates(Optim(lr=0.1, min_lr=0.01, epochs=4, warmup_epochs=1))
    assert found[:10] == pytest.approx([0.01 * (i + 1) for i in range(10)])
    assert found[9] == pytest.approx(0.1)
    assert found[10] == pytest.approx(0.1)


def test_half_an_epoch_of_warm_up_is_half_its_steps() -> None:
    found = rates(Optim(lr=0.1, min_lr=0.01, epochs=4, warmup_epochs=0.5))
    assert (found[4], found[5]) == (pytest.approx(0.1), pytest.approx(0.1))
    assert found[3] < 0.1 > found[6]


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_a_cosine_ends_at_the_lowest_rate_on_the_last_step(warmup: float) -> None:
    found = rates(Optim(lr=8e-5, min_lr=5e-5, epochs=3, warmup_epochs=warmup))
    assert found[-1] == pytest.approx(5e-5, rel=1e-12)
    assert found[-2] > found[-1]


def test_a_cosine_starts_at_the_peak_and_falls_by_the_formula() -> None:
    found = rates(Optim(lr=0.4, min_lr=0.2, epochs=3), steps_per_epoch=7)
    wanted = [0.2 + 0.2 * (1 + math.cos(math.pi * step / 20)) / 2 for step in range(21)]
    assert found == pytest.approx(wanted, rel=1e-12)
    assert (found[0], found[10]) == (pytest.approx(0.4), pytest.approx(0.3))


def test_a_cosine_stays_at_the_lowest_rate_after_its_end() -> None:
    assert learning_rate(1000, 10, Optim(lr=0.1, min_lr=0.01, epochs=2)) == pytest.approx(0.01)


def test_restarts_begin_each_cycle_at_the_peak_and_end_it_at_the_lowest_rate() -> None:
    optim = Optim(lr=3e-4, min_lr=1e-5, epochs=30, schedule="restarts", restart_epochs=10, warmup_epochs=1)
    found = rates(optim)
    assert [found[10 + 100 * cycle] for cycle in range(3)] == pytest.approx([3e-4] * 3)
    assert [found[109 + 100 * cycle] for cycle in range(2)] == pytest.approx([1e-5] * 2)
    assert found[10:110] == pytest.approx(found[110:210])


def test_restarts_without_warm_up_cycle_from_the_first_step() -> None:
    found = rates(Optim(lr=0.1, min_lr=0.0, epochs=4, schedule="restarts", restart_epochs=2))
    assert found[:20] == pytest.approx(found[20:])
    assert (found[0], found[20]) == (pytest.approx(0.1), pytest.approx(0.1))


def test_a_constant_rate_follows_the_warm_up() -> None:
    found = rates(Optim(lr=1e-6, epochs=3, schedule="constant", warmup_epochs=1))
    assert found[0] == pytest.approx(1e-7)
    assert set(found[10:]) == {1e-6}


def test_a_run_of_one_step_is_at_the_peak() -> None:
    assert rates(Optim(lr=0.1, min_lr=0.01, epochs=1), steps_per_epoch=1) == [pytest.approx(0.1)]


@given(
    steps=st.integers(1, 20),
    epochs=st.integers(2, 8),
    warmup=st.floats(0, 1.5),
    schedule=st.sampled_from(("cosine", "restarts", "constant")),
)
def test_a_rate_is_positive_and_never_above_the_peak(
    steps: int, epochs: int, warmup: float, schedule: str
) -> None:
    optim = Optim(
        lr=0.1,
        min_lr=0.01,
        epochs=epochs,
        warmup_epochs=warmup,
        schedule=schedule,  # type: ignore[arg-type]
        restart_epochs=1.5,
    )
    found = rates(optim, steps)
    assert 0 < min(found) <= max(found) <= 0.1 * (1 + 1e-9)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_gets_the_numbers_of_the_layout(stage: int) -> None:
    config = Config().replace({"engine.zero_stage": stage, "optim.clip_norm": 0.5})
    made = deepspeed_config(config, batch_layout(96, 2, 16), 104_450)
    assert made["train_batch_size"] == 96
    assert made["train_micro_batch_size_per_gpu"] == 16
    assert made["gradient_accumulation_steps"] == 3
    assert made["zero_optimization"]["stage"] == stage


def test_deepspeed_clips_where_the_optimizer_does_not() -> None:
    clipping = Config().replace({"optim.clip_norm": 0.5})
    layout = batch_layout(8, 1, None)
    made = [deepspeed_config(clipping.replace({"engine.zero_stage": s}), layout, 1) for s in (0, 1, 2, 3)]
    assert [one["gradient_clipping"] for one in made] == [0.0, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("trainable", "bucket", "overlap"), [(104_450, 104_450, False), (304_000_000, 50_000_000, True)]
)
def test_gradients_go_in_one_message_where_they_are_few(trainable: int, bucket: int, overlap: bool) -> None:
    zero = deepspeed_config(Config(), batch_layout(8, 1, None), trainable)["zero_optimization"]
    assert (zero["reduce_bucket_size"], zero["overlap_comm"]) == (bucket, overlap)


def test_deepspeed_does_not_time_steps_since_its_timer_waits_for_the_device() -> None:
    made = deepspeed_config(Config(), batch_layout(8, 1, None), 1)
    assert made["timers"]["throughput"] == {"enabled": False, "synchronized": False}


def test_deepspeed_keeps_float32_under_bf16() -> None:
    config = Config().replace({"engine.precision": "bf16"})
    made = deepspeed_config(config, batch_layout(8, 1, None), 1)
    assert {"bf16", "fp16", "torch_autocast"} & set(made) == set()
