"""Who is to blame for a hang, from what the ranks say of themselves."""

from __future__ import annotations

from dfdet.hang.verdict import Report, judge, left, line


def report(rank: int, marks: int = 20, *, waits: bool = False, overdue: bool = True) -> Report:
    place = "distributed_c10d.py:5170 all_gather_single" if waits else "reader.py:88 read"
    return Report(rank, marks, 12, "data wait", 60.4, overdue, waits, place)


def by_rank(*reports: Report) -> dict[int, Report]:
    return {each.rank: each for each in reports}


def test_the_one_that_does_not_wait_for_others_is_to_blame() -> None:
    hang = judge(by_rank(report(0, waits=True), report(1), report(2, waits=True)), 3)
    assert hang is not None and hang.ranks == (1,)
    assert str(hang) == (
        "worker 1 did nothing for 60 s in step 12 (data wait), while 2 others waited for it;"
        " it is in reader.py:88 read"
    )


def test_the_one_that_is_behind_is_to_blame_though_no_other_is_seen_to_wait() -> None:
    hang = judge(by_rank(report(0, 25), report(1, 20)), 2)
    assert hang is not None and (hang.ranks, hang.others) == ((1,), 1)


def test_a_lone_process_is_to_blame_itself() -> None:
    hang = judge(by_rank(report(0)), 1)
    assert str(hang) == "worker 0 did nothing for 60 s in step 12 (data wait); it is in reader.py:88 read"


def test_one_that_does_not_answer_is_to_blame() -> None:
    hang = judge(by_rank(report(0, waits=True), report(2, waits=True)), 3)
    assert hang is not None and (hang.ranks, hang.silent, hang.place) == ((1,), True, "")
    assert str(hang) == (
        "worker 1 does not answer, while 2 others waited for 60 s in step 12 (data wait): stopped, stuck in"
        " C code, or lost with its node"
    )


def test_several_are_named() -> None:
    hang = judge(by_rank(report(0), report(1, waits=True), report(2)), 3)
    assert str(hang) == (
        "workers 0, 2 did nothing for 60 s in step 12 (data wait), while 1 other waited for them;"
        " worker 0 is in reader.py:88 read"
    )


def test_all_that_wait_for_each_other_are_to_blame() -> None:
    hang = judge(by_rank(report(0, waits=True), report(1, waits=True)), 2)
    assert str(hang) == (
        "all 2 workers waited for each other for 60 s in step 12 (data wait); worker 0 is in"
        " distributed_c10d.py:5170 all_gather_single"
    )


def test_one_that_waits_for_what_the_others_have_left_behind_is_to_blame() -> None:
    hang = judge(by_rank(report(0, 25, waits=True), report(1, 20, waits=True)), 2)
    assert hang is not None and (hang.ranks, hang.together) == ((1,), False)


def test_there_is_no_hang_while_the_last_one_is_only_slow() -> None:
    assert judge(by_rank(report(0, 25, waits=True), report(1, 20, overdue=False)), 2) is None
    assert judge(by_rank(report(0, waits=True), report(1, overdue=False)), 2) is None
    assert judge(by_rank(report(0, waits=True), report(1, overdue=False)), 3) is None


def test_one_that_is_through_is_not_to_blame() -> None:
    hang = judge(by_rank(report(0), left(1)), 2)
    assert hang is not None and (hang.ranks, hang.others) == ((0,), 0)


def test_before_the_first_step_the_phase_is_named() -> None:
    hang = judge(by_rank(report(0)._replace(step=0, phase="building the model")), 1)
    assert hang is not None
    assert line(hang, "runs/a/stacks") == (
        "worker 0 did nothing for 60 s before the first step (building the model); it is in"
        " reader.py:88 read; stacks: runs/a/stacks; if that is no hang, raise --engine.hang_timeout_s"
    )
