"""The scaling model against values computed by hand, and one short measurement."""

from __future__ import annotations

import pytest

from dfdet.benchmark import scaling
from dfdet.benchmark.cost import ScalingOptions, StepCost, gpu_counts, loss_flops, predict, step_cost
from dfdet.benchmark.links import BASE_S, Fabric, Link, Ranks, all_gather_s, all_reduce_s
from dfdet.benchmark.weak import fit_link

FAST = Link("fast", latency_s=1e-6, bytes_per_s=100.0, origin="a test")
SLOW = Link("slow", latency_s=10e-6, bytes_per_s=10.0, origin="a test")
FABRIC = Fabric(inside=FAST, between=SLOW, cards=2, gpus=4)
COST = StepCost(compute_s=1.0, batch=8, features=6, trainable=25, loss_flops_per_s=1e6)


def test_a_single_rank_sends_nothing() -> None:
    assert all_gather_s(100, Ranks(FABRIC, 1)) == all_reduce_s(100, Ranks(FABRIC, 1)) == 0.0


def test_a_ring_within_a_node_goes_at_the_speed_of_its_links() -> None:
    ranks = Ranks(FABRIC, 4)
    # 2 doublings beat the 3 steps of a ring; 3 of the 4 parts come over the link
    assert all_gather_s(100, ranks) == pytest.approx(BASE_S + 2e-6 + 300 / 100)
    # 2 x 3 steps, and 2 x 3/4 of the message
    assert all_reduce_s(100, ranks) == pytest.approx(BASE_S + 6e-6 + 1.5 * 100 / 100)


def test_between_nodes_it_goes_at_the_speed_of_a_nodes_cards() -> None:
    ranks = Ranks(FABRIC, 8)
    assert (ranks.nodes, ranks.local, ranks.bytes_per_s) == (2, 4, 20.0)
    assert all_gather_s(100, ranks) == pytest.approx(BASE_S + 2e-6 + 10e-6 + 700 / 20)
    # ring: 14 steps, 2 of them between the nodes; 2 x 7/8 of the message
    assert all_reduce_s(100, ranks) == pytest.approx(BASE_S + 12e-6 + 20e-6 + 1.75 * 100 / 20)


def test_small_messages_over_many_nodes_take_the_tree() -> None:
    ranks = Ranks(FABRIC, 64)
    tree = BASE_S + 2 * 3 * 1e-6 + 2 * 4 * 10e-6  # 3 hops in the node, 4 doublings to 16 nodes, and back
    assert all_reduce_s(0, ranks) == pytest.approx(tree)


def test_a_lone_gpu_a_node_has_no_link_inside() -> None:
    ranks = Ranks(Fabric(FAST, SLOW, cards=1, gpus=1), 2)
    assert ranks.bytes_per_s == 10.0
    assert all_gather_s(50, ranks) == pytest.approx(BASE_S + 10e-6 + 50 / 10)


def test_messages_are_features_with_label_and_mask_and_the_gradients() -> None:
    assert COST.gather_bytes(8) == 8 * (6 + 2) * 4
    assert COST.reduce_bytes == 100


def test_the_loss_is_quadratic_in_the_global_batch() -> None:
    gram, head = 2 * 10 * 10 * 6, 2 * 10 * 6 * 2
    assert loss_flops(10, 6) == 3 * (gram + head)


def test_weak_scaling_adds_communication_and_the_growth_of_the_loss() -> None:
    found = predict(COST, FABRIC, 4)
    assert found.gather_s == pytest.approx(all_gather_s(256, Ranks(FABRIC, 4)))
    assert found.reduce_s == pytest.approx(all_reduce_s(100, Ranks(FABRIC, 4)))
    growth = (loss_flops(32, 6) - loss_flops(8, 6)) / 1e6
    assert found.step_s == pytest.approx(1.0 + growth + found.gather_s + found.reduce_s)
    assert found.efficiency == pytest.approx(1.0 / found.step_s)


def test_strong_scaling_divides_the_batch_but_not_the_loss() -> None:
    found = predict(COST, FABRIC, 4, strong=True)
    assert found.gather_s == pytest.approx(all_gather_s(64, Ranks(FABRIC, 4)))
    loss = loss_flops(8, 6) / 1e6
    assert found.loss_s == pytest.approx(loss)
    assert found.step_s == pytest.approx((1.0 - loss) / 4 + loss + found.gather_s + found.reduce_s)
    assert found.efficiency == pytest.approx(1.0 / (4 * found.step_s))


@pytest.mark.parametrize("strong", [False, True])
def test_one_gpu_is_the_measure(strong: bool) -> None:
    assert predict(COST, FABRIC, 1, strong).efficiency == pytest.approx(1.0)


def test_counts_are_powers_of_two_that_divide_a_fixed_batch() -> None:
    assert gpu_counts(most=256) == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert gpu_counts(most=256, divides=24) == [1, 2, 4, 8]


def test_the_messages_of_the_papers_model() -> None:
    cost = step_cost(ScalingOptions(batch_per_gpu=128, step_ms=100.0))
    assert (cost.features, cost.trainable, cost.compute_s) == (1024, 102_400 + 2050, 0.1)
    assert cost.gather_bytes(128) == 525_312


def test_the_fitted_link_explains_both_messages() -> None:
    pair = fit_link((1000, 0.003), (9000, 0.011))
    assert all_reduce_s(1000, pair) == pytest.approx(0.003)
    assert all_reduce_s(9000, pair) == pytest.approx(0.011)
    assert pair.fabric.inside.bytes_per_s == pytest.approx(1e6)


def test_the_benchmark_prints_predicted_and_measured_tables(capsys: pytest.CaptureFixture[str]) -> None:
    options = ScalingOptions(
        backbone="tiny", batch_per_gpu=4, step_ms=50.0, weak=True, weak_batch=4, rounds=1
    )
    assert scaling.run(options) == 0
    lines = capsys.readouterr().out.splitlines()
    predicted = [line.split() for line in lines if line.startswith("  256 ")]
    assert [row[1] for row in predicted] == ["1024"]
    measured = lines[lines.index(next(line for line in lines if line.startswith("workers"))) + 1 :]
    assert [row.split()[0] for row in measured] == ["1", "2"]
    assert all(float(row.split()[1]) > 0 for row in measured)
    assert sum(line.startswith(("all-reduce", "all-gather")) for line in lines) == 7
