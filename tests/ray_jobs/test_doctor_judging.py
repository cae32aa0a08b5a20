"""What the doctor makes of nodes' answers on software, machines, storage and sets."""

from __future__ import annotations

from typing import Any

import pytest

from ray_jobs.checks import machines, probe_machine, software, stored
from ray_jobs.checks.finding import Finding
from ray_jobs.checks.nodes import Node

GIB = 2**30


def states(findings: list[Finding]) -> dict[str, str]:
    return {each.check: each.state for each in findings}


def of(check: str, findings: list[Finding]) -> Finding:
    found = [each for each in findings if each.check == check]
    assert len(found) == 1, findings
    return found[0]


def node(name: str, workers: int = 1, **resources: float) -> Node:
    return Node(id=name, name=name, resources=resources, workers=workers, drives=False)


# ---------------------------------------------------------------- software


def told(**changes: Any) -> dict[str, Any]:
    """A sound node's answer."""
    packages = dict.fromkeys(probe_machine.PACKAGES, "1.0")
    return {
        "python": "3.11.9",
        "packages": packages | changes.pop("packages", {}),
        "code": {"dfdet": "d" * 64, "ray_jobs": "e" * 64} | changes.pop("code", {}),
        "gpus": None,
        "memory": 8 * GIB,
        "shm": 8 * GIB,
        "files": 65536,
        "cache": 500 * GIB,
        "encoding": "UTF-8",
        "compiles_always": False,
        **changes,
    }


def software_of(other: dict[str, Any], needed: tuple[str, ...] = ("a", "b")) -> list[Finding]:
    return software.judge({"a": told(), "b": other}, "a", needed)


def test_equal_software_is_sound() -> None:
    assert states(software_of(told())) == {"Python": "ok", "packages": "ok", "code": "ok"}


def test_a_package_that_a_node_lacks_is_named_with_the_drivers_version() -> None:
    found = of("packages", software_of(told(packages={"timm": None})))
    assert (found.nodes, found.state, found.found) == (("b",), "FAIL", "timm is not installed")
    assert found.remedy == "on that node: pip install timm==1.0"


@pytest.mark.parametrize(("package", "state"), [("torch", "FAIL"), ("pillow", "warn")])
def test_another_version_matters_where_ranks_speak_through_it(package: str, state: str) -> None:
    found = of("packages", software_of(told(packages={package: "2.0"})))
    assert (found.state, found.found) == (state, f"{package} 2.0, the driver has 1.0")


def test_a_stale_copy_of_the_code_is_a_failure() -> None:
    found = of("code", software_of(told(code={"dfdet": "f" * 64})))
    assert (found.state, found.found) == ("FAIL", "dfdet ffffffff: not the driver's source files")
    assert "ray job submit --working-dir ." in found.remedy


def test_a_node_without_the_code_is_told() -> None:
    assert of("code", software_of(told(code={"ray_jobs": None}))).found == "ray_jobs cannot be found"


def test_software_of_a_node_that_the_run_does_not_use_is_a_warning() -> None:
    assert states(software_of(told(packages={"torch": None}), needed=("a",)))["packages"] == "warn"


def test_a_cause_that_several_steps_meet_is_told_once() -> None:
    missing = "ModuleNotFoundError: No module named 'timm'"
    sound = {"tried": {"imports": None, "backbone": None}}
    broken = {"tried": {"imports": missing, "backbone": missing}}
    found = software.judge_tried({"a": sound, "b": broken}, "tiny")
    assert found[0].nodes == ("b",)
    assert found[0].found == missing
    assert found[1:] == [Finding("backbone", ("a",), "ok", "tiny")]


def test_weights_that_a_node_does_not_see_are_told_in_their_own_words() -> None:
    line = "model.pretrained=/x.pt: no such file; give an existing file or None"
    found = software.judge_tried({"a": {"tried": {"imports": None, "backbone": line}}}, "tiny")
    assert of("backbone", found).found == "model.pretrained=/x.pt: no such file"
    assert of("backbone", found).remedy == "give an existing file or None"


# ---------------------------------------------------------------- machines


def machines_of(answer: dict[str, Any], one: Node, *, cuda: bool, tried: dict[str, Any] | None = None) -> Any:
    return machines.judge(
        {one.name: answer}, {one.name: tried or {"cuda": {}}}, [one], cuda=cuda, most=one.workers
    )


GPU = {"name": "NVIDIA L40S", "memory_mib": "46068", "used_mib": "3", "driver": "570.1"}
CUDA = {"cuda": {"cuda": "12.8", "count": 2, "nccl": "2.27.3"}}
GPU_NODE = node("a", 2, CPU=8.0, GPU=2.0)


def test_gpus_that_work_are_named() -> None:
    found = machines_of(told(gpus=[GPU, GPU]), GPU_NODE, cuda=True, tried=CUDA)
    assert of("GPUs", found) == Finding("GPUs", ("a",), "ok", "2: NVIDIA L40S; NCCL 2.27.3")
    assert {each.state for each in found} == {"ok"}


def test_a_gpu_that_fell_off_is_a_failure() -> None:
    found = of("GPUs", machines_of(told(gpus=[GPU]), GPU_NODE, cuda=True, tried=CUDA))
    assert (found.state, found.found) == ("FAIL", "nvidia-smi lists 1 GPUs, Ray counts 2")


def test_torch_without_cuda_is_a_failure() -> None:
    blind = {"cuda": {"cuda": None, "count": 0, "nccl": None}}
    found = of("GPUs", machines_of(told(gpus=[GPU, GPU]), GPU_NODE, cuda=True, tried=blind))
    assert (found.state, found.found) == (
        "FAIL",
        "torch sees 0 GPUs, Ray counts 2; it is built without CUDA",
    )


def test_a_gpu_in_use_is_a_warning() -> None:
    busy = {**GPU, "used_mib": "20000"}
    found = of("GPUs", machines_of(told(gpus=[GPU, busy]), GPU_NODE, cuda=True, tried=CUDA))
    assert (found.state, found.found) == ("warn", "GPU [1] has memory in use")


def test_different_nccl_is_a_failure() -> None:
    other = {"cuda": {**CUDA["cuda"], "nccl": "2.21.5"}}
    found = machines.judge(
        {"a": told(gpus=[GPU, GPU]), "b": told(gpus=[GPU, GPU])},
        {"a": CUDA, "b": other},
        [GPU_NODE, node("b", 2, CPU=8.0, GPU=2.0)],
        cuda=True,
        most=4,
    )
    assert (of("NCCL", found).state, of("NCCL", found).found) == ("FAIL", "NCCL 2.21.5 and 2.27.3")


@pytest.mark.parametrize(
    ("change", "check", "shown"),
    [
        ({"memory": GIB}, "memory", "1.0 GiB free for 2 of the workers"),
        ({"shm": 64 * 2**20}, "shared memory", "64 MiB free for NCCL"),
        ({"files": 1024}, "open files", "1024 at most"),
        ({"encoding": "ANSI_X3.4-1968"}, "settings", "text is ANSI_X3.4-1968"),
    ],
)
def test_scarce_means_are_warnings(change: dict[str, Any], check: str, shown: str) -> None:
    found = of(check, machines_of(told(gpus=[GPU, GPU], **change), GPU_NODE, cuda=True, tried=CUDA))
    assert (found.state, found.found) == ("warn", shown)
    assert found.remedy


def test_a_run_on_cpus_asks_for_no_shared_memory() -> None:
    assert "shared memory" not in states(machines_of(told(shm=0), node("a", CPU=2.0), cuda=False))


def test_a_clock_is_compared_with_the_middle_of_question_and_answer() -> None:
    assert machines.skew_s(100.0, 112.0, 104.0) == (10.0, 2.0)


def test_a_clock_that_is_off_is_a_warning_and_a_slow_answer_is_none() -> None:
    skews = {
        "slow": machines.skew_s(0.0, 0.0, 60.0),
        "ahead": machines.skew_s(0.0, 40.0, 0.2),
        "behind": machines.skew_s(0.0, -7.0, 0.2),
    }
    found = {each.nodes: (each.state, each.found.partition(":")[0]) for each in machines.judge_clocks(skews)}
    assert found == {
        ("ahead",): ("warn", "40 s ahead of the driver's"),
        ("behind",): ("warn", "7 s behind the driver's"),
    }


def test_clocks_within_the_bound_are_one_row() -> None:
    (found,) = machines.judge_clocks({"a": (0.5, 0.1), "b": (-3.0, 0.2)})
    assert (found.state, found.found) == ("ok", "within 3.20 s of the driver's")


# ---------------------------------------------------------------- storage and sets


WELL = {"error": None, "free": 50 * GIB, "made": []}


def seen(*unseen: str, lock: str | None = "held") -> dict[str, Any]:
    return {"unseen": list(unseen), "lock": lock}


def storage_of(written: dict[str, Any], looked: dict[str, Any]) -> list[Finding]:
    return stored.judge_storage("/shared/runs", written, looked, "a")


def test_storage_that_all_nodes_share_is_sound() -> None:
    found = storage_of({"a": WELL, "b": WELL}, {"a": seen(), "b": seen()})
    assert states(found) == {"storage": "ok", "shared storage": "ok"}
    assert found[0].found == "/shared/runs takes writes, renames and locks; 50.0 GiB free"


def test_storage_that_a_node_cannot_write_to_is_a_failure() -> None:
    refused = {**WELL, "error": "Read-only file system"}
    found = of("storage", storage_of({"a": WELL, "b": refused}, {"a": seen()}))
    assert (found.nodes, found.state) == (("b",), "FAIL")
    assert found.found == "/shared/runs: Read-only file system"


def test_the_node_with_another_folder_is_named_not_those_that_miss_it() -> None:
    looked = {"a": seen("c"), "b": seen("c"), "c": seen("a", "b", lock=None)}
    found = of("shared storage", storage_of(dict.fromkeys("abc", WELL), looked))
    assert (found.nodes, found.state) == (("c",), "FAIL")
    assert found.found == "/shared/runs is another folder than on the driver's node"


@pytest.mark.parametrize("lock", ["free", "No locks available"])
def test_locks_that_do_not_reach_other_nodes_are_a_warning(lock: str) -> None:
    found = storage_of({"a": WELL, "b": WELL}, {"a": seen(), "b": seen(lock=lock)})
    assert states(found) == {"storage": "ok", "shared storage": "ok", "locks": "warn"}
    assert of("locks", found).nodes == ("b",)


def test_little_space_is_a_warning() -> None:
    found = of("storage", storage_of({"a": {**WELL, "free": GIB // 2}}, {"a": seen()}))
    assert (found.state, found.found) == ("warn", "/shared/runs: 0.50 GiB free")


def set_answer(*problems: str, **values: Any) -> dict[str, Any]:
    sound = {
        "manifest": "m",
        "tars": 3,
        "bytes": 3 * GIB,
        "remote": 0,
        "sized": 0,
        "read": 1,
        "read_bytes": GIB,
    }
    return {"train": {"problems": list(problems), **sound, **values}}


def sets_of(**looked: dict[str, Any]) -> Finding:
    return of("set train", stored.judge_sets({"train": "/s/train.json"}, looked, "a"))


def test_a_set_says_how_much_of_it_was_read() -> None:
    assert sets_of(a=set_answer(), b=set_answer()).found == (
        "3 tars, 3.0 GiB, in place; SHA-256 right of the 2 read (2.0 GiB)"
    )


def test_a_remote_set_says_how_many_tars_were_looked_for() -> None:
    answer = set_answer(remote=3 * GIB, sized=1, read=0, read_bytes=0)
    assert sets_of(a=answer, b=answer).found == ("3 tars, 3.0 GiB, 2 looked for; no SHA-256 read")


def test_of_many_missing_tars_the_first_is_named() -> None:
    line = "/s/0.tar: missing (No such file), but listed in train.json; copy the whole set"
    found = sets_of(a=set_answer(line, "other", "third"), b=set_answer(line, "other", "third"))
    assert found.nodes == ("a", "b")
    assert found.found == "/s/0.tar: missing (No such file), but listed in train.json (and 2 more)"
    assert found.remedy == "copy the whole set"


def test_a_tar_that_one_node_does_not_see_is_a_matter_of_its_mount() -> None:
    found = sets_of(a=set_answer(), b=set_answer("/s/0.tar: missing (No such file); copy the set"))
    assert (found.nodes, found.state) == (("b",), "FAIL")
    assert found.remedy == "mount /s there as on a, or copy the set to that node"


def test_another_manifest_than_the_drivers_is_a_failure() -> None:
    found = sets_of(a=set_answer(), b=set_answer(manifest="other"))
    assert (found.nodes, found.state) == (("b",), "FAIL")
    assert found.found == "/s/train.json: another manifest than the driver's node sees"


def test_the_cache_needs_room_for_what_is_remote_up_to_its_bound() -> None:
    def judge(free: int, most_gib: float) -> list[Finding]:
        looked = {"a": set_answer(remote=200 * GIB)}
        return stored.judge_cache("/cache", most_gib, {"a": told(cache=free)}, looked)

    assert states(judge(150 * GIB, 100.0)) == {"cache": "ok"}
    (scarce,) = judge(50 * GIB, 100.0)
    assert (scarce.state, scarce.found) == ("warn", "/cache: 50.0 GiB free, wanted 100.0")
    assert scarce.remedy.startswith("set --data.cache_gib 45")
    assert stored.judge_cache("/cache", 100.0, {"a": told(cache=0)}, {"a": set_answer()}) == []
