"""The doctor's rows, its arithmetic of room and links, its command line: pure functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dfdet.config import Config, Data, Run
from ray_jobs import doctor
from ray_jobs.checks import (
    finding,
    links,
    room,
)
from ray_jobs.checks.finding import Finding, Problem
from ray_jobs.checks.nodes import Node, describe, largest_share
from ray_jobs.cluster import room as room_for

GIB = 2**30
ROOT = Path(__file__).parents[2]


def states(findings: list[Finding]) -> dict[str, str]:
    return {each.check: each.state for each in findings}


def of(check: str, findings: list[Finding]) -> Finding:
    found = [each for each in findings if each.check == check]
    assert len(found) == 1, findings
    return found[0]


# ---------------------------------------------------------------- rows


BROKEN = Problem("FAIL", "broken", "mend it")


def test_equal_problems_of_several_nodes_are_one_row() -> None:
    assert finding.rows("x", {"a": [BROKEN], "b": [], "c": [BROKEN]}, "well") == [
        Finding("x", ("a", "c"), "FAIL", "broken", "mend it")
    ]


def test_where_nothing_is_wrong_there_is_one_row() -> None:
    assert finding.rows("x", {"a": [], "b": []}, "well") == [Finding("x", ("a", "b"), "ok", "well")]


def test_what_a_node_lacks_that_the_run_does_not_use_is_a_warning() -> None:
    found = finding.rows("x", {"a": [BROKEN], "b": [BROKEN]}, "well", needed={"a"})
    assert [(each.nodes, each.state) for each in found] == [(("a",), "FAIL"), (("b",), "warn")]


@pytest.mark.parametrize(
    ("nodes", "state", "shown"),
    [
        ((), "FAIL", "cluster"),
        (("a", "b", "c"), "FAIL", "all 3"),
        (("a", "b"), "ok", "2 of 3"),
        (("a", "b"), "FAIL", "a, b"),
    ],
)
def test_rows_say_which_nodes(nodes: tuple[str, ...], state: Any, shown: str) -> None:
    assert finding.label(Finding("x", nodes, state, ""), 3) == shown


def test_of_many_nodes_two_are_named() -> None:
    assert finding.label(Finding("x", ("a", "b", "c"), "warn", ""), 9) == "a, b +1"


def test_remedies_of_failures_come_first() -> None:
    found = [
        Finding("slow", ("a",), "warn", "slow", "be quick"),
        Finding("fine", ("a",), "ok", "fine"),
        Finding("dead", ("a",), "FAIL", "dead", "revive it"),
    ]
    assert finding.remedies(found) == ["FAIL dead (a): revive it", "warn slow (a): be quick"]
    assert finding.summary(found, "gend") == "gend would not run here: 1 ok, 1 warn, 1 FAIL"
    assert finding.summary(found[:2], "gend") == "gend would run here: 1 ok, 1 warn, 0 FAIL"


def test_no_path_is_cut_off_in_the_table() -> None:
    path = "/very/long" * 12 + "/[bold]set.json"
    console = Console(width=100)
    with console.capture() as shown:
        console.print(finding.table([Finding("set", ("a",), "FAIL", path)]))
    cells = [line.rpartition("│")[0].rpartition("│")[2].strip() for line in shown.get().splitlines()]
    assert "".join(cells) == path
    assert max(map(len, shown.get().splitlines())) <= 100


def test_an_error_line_is_split_into_cause_and_remedy() -> None:
    assert finding.of_error("set.json: no such manifest; build it") == Problem(
        "FAIL", "set.json: no such manifest", "build it"
    )


# ---------------------------------------------------------------- nodes and room


def listed(number: str, address: str, *, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"NodeID": number * 8, "Alive": alive, "NodeManagerAddress": address, "Resources": resources}


def node(name: str, workers: int = 1, *, drives: bool = False, **resources: float) -> Node:
    return Node(id=name, name=name, resources=resources, workers=workers, drives=drives)


def test_nodes_are_the_alive_ones_with_the_drivers_first() -> None:
    nodes = describe(
        [
            listed("a", "10.0.0.1", CPU=4.0, GPU=2.0),
            listed("b", "10.0.0.2", alive=False, CPU=4.0),
            listed("c", "10.0.0.3"),
        ],
        "c" * 8,
        {"CPU": 1.0, "GPU": 1.0},
    )
    assert [(each.name, each.workers, each.drives, each.needed) for each in nodes] == [
        ("10.0.0.3", 0, True, True),
        ("10.0.0.1", 2, False, True),
    ]


def test_nodes_of_one_address_are_told_apart() -> None:
    nodes = describe([listed("a", "10.0.0.1"), listed("b", "10.0.0.1")], "a" * 8, {"CPU": 1.0})
    assert [each.name for each in nodes] == ["10.0.0.1#aaaa", "10.0.0.1#bbbb"]


def config(batch: int = 12, **run: Any) -> Config:
    return Config(run=Run(**run), data=Data(global_batch=batch))


def cpus(*counts: float, need: float = 1.0) -> list[Node]:
    return [
        node(f"n{i}", room_for({"CPU": need}, {"CPU": count}), CPU=count) for i, count in enumerate(counts)
    ]


def judged(run: Config, nodes: list[Node], most: dict[str, float] | None = None) -> list[Finding]:
    return room.judge(run, nodes, room.total(nodes), most or {}, cuda=False)


def test_room_tells_the_share_of_a_worker() -> None:
    found = of("room", judged(config(workers=(2, 8)), cpus(2, 1)))
    assert found == Finding(
        "room",
        (),
        "ok",
        "3 workers of 1 CPU, 4 of 12 samples a step each; there is room for 3",
    )


def test_too_few_cpus_are_refused_as_training_refuses_them() -> None:
    found = of("room", judged(config(workers=4), cpus(1, 1)))
    assert (found.state, found.found) == ("FAIL", "run.workers=4: 4 x 1 CPU = 4, but Ray has 2 CPU")
    assert found.remedy == "set --run.workers 2 or --run.cpus_per_worker 0.5"


def test_enough_in_sum_is_not_enough_where_no_node_holds_a_worker() -> None:
    found = of("room", judged(config(workers=2, cpus_per_worker=2.0), cpus(3, 1, need=2.0)))
    assert found.state == "FAIL"
    assert "enough in sum, but nodes have room for 1" in found.found
    assert found.remedy == "set --run.workers 1 or --run.cpus_per_worker 1.5"


@pytest.mark.parametrize(
    ("counts", "workers", "share"), [((4, 1), 3, 1.33), ((3, 1), 2, 1.5), ((2, 2), 2, 2.0), ((0, 0), 1, 0.0)]
)
def test_the_largest_share_fits(counts: tuple[float, ...], workers: int, share: float) -> None:
    assert largest_share(counts, workers) == share
    if share:
        assert sum(room_for({"CPU": share}, {"CPU": have}) for have in counts) >= workers
        assert sum(room_for({"CPU": share + 0.01}, {"CPU": have}) for have in counts) < workers


def test_where_nodes_come_by_demand_a_run_may_wait_for_them() -> None:
    found = of("room", judged(config(workers=4), cpus(0), {"CPU": 8.0}))
    assert found.state == "warn"
    assert found.found.endswith("now; the cluster grows to 8 CPU")


def test_a_cluster_that_grows_too_little_is_refused() -> None:
    found = of("room", judged(config(workers=4), cpus(1), {"CPU": 2.0}))
    assert found.remedy == "set --run.workers 1 or --run.cpus_per_worker 0.25"


def test_room_that_other_work_holds_is_a_warning() -> None:
    found = room.judge(config(workers=2), cpus(2), {"CPU": 1.0}, {}, cuda=False)
    assert states(found) == {"room": "ok", "free room": "warn"}
    assert of("free room", found).found == "other work leaves room for 1 worker now"


def test_nodes_without_room_for_a_worker_are_named() -> None:
    found = room.judge_idle([node("a"), node("b", 0), node("c", 0, drives=True)], config(), cuda=True)
    assert [(each.nodes, each.state) for each in found] == [(("b",), "ok")]
    assert room.judge_idle([node("a")], config(), cuda=True) == []


# ---------------------------------------------------------------- links


@pytest.mark.parametrize("count", range(2, 9))
def test_each_node_meets_its_neighbours_and_is_in_one_pair_at_a_time(count: int) -> None:
    names = [str(i) for i in range(count)]
    rounds = links.rounds(names)
    for pairs in rounds:
        busy = [name for pair in pairs for name in pair]
        assert len(busy) == len(set(busy))
    met = {frozenset(pair) for pairs in rounds for pair in pairs}
    assert met == {frozenset((names[i], names[(i + 1) % count])) for i in range(count)}
    assert len(rounds) <= 3


def test_one_node_has_no_link() -> None:
    assert links.rounds(["a"]) == []


def test_a_pair_that_does_not_meet_is_named() -> None:
    sound = [{"error": None, "seconds": 0.5}] * 2
    broken = [{"error": "DistNetworkError: timed out", "seconds": None}] * 2
    (found,) = links.judge({("a", "b"): sound, ("b", "c"): broken}, "gloo", 2**20)
    assert (found.nodes, found.state) == (("b", "c"), "FAIL")
    assert found.found == "gloo: no sum (DistNetworkError: timed out)"
    assert "GLOO_SOCKET_IFNAME" in found.remedy


def test_of_two_ranks_the_one_that_did_not_merely_wait_is_heard() -> None:
    told = [{"error": error, "seconds": None} for error in ("wait timeout", "no interface named eth7")]
    assert "no interface named eth7" in links.judge({("a", "b"): told}, "gloo", 1)[0].found


def test_links_that_work_tell_their_speed() -> None:
    told = {
        ("a", "b"): [{"error": None, "seconds": 0.1}, {"error": None, "seconds": 0.5}],
        ("b", "c"): [{"error": None, "seconds": 0.25}] * 2,
    }
    (found,) = links.judge(told, "nccl", 2**20)
    assert (found.nodes, found.state) == (("a", "b", "c"), "ok")
    assert found.found == "nccl between 2 pairs of nodes, 2 to 4 MiB/s"


# ---------------------------------------------------------------- command line


def test_own_flags_are_told_from_the_configs() -> None:
    argv = [
        "gend",
        "--timeout",
        "5",
        "--data.train",
        "a.json",
        "b.json",
        "--checksum-gib=0",
        "--optim.lr",
        "1",
    ]
    options, rest = doctor.parse(argv)
    assert (options.timeout, options.checksum_gib, options.json_file) == (5.0, 0.0, "")
    assert rest == ["gend", "--data.train", "a.json", "b.json", "--optim.lr", "1"]
