"""What the doctor's probes answer, run on this machine without Ray."""

from __future__ import annotations

import ast
import json
import shutil
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from dfdet.config import Data
from ray_jobs.checks import probe_link, probe_machine, probe_sets, probe_storage
from tests.dfdet.runs.s3 import BUCKET, Server, s3_server

GIB = 2**30
ROOT = Path(__file__).parents[2]


def test_a_rank_without_its_peer_says_so() -> None:
    with socket.socket() as taken, ProcessPoolExecutor(1, get_context("spawn")) as process:
        taken.bind(("127.0.0.1", 0))
        # a process of its own: another test's may be a rank of a group already
        call = process.submit(probe_link.reduce, 1, "127.0.0.1", taken.getsockname()[1], "gloo", 1.0)
        answer = call.result()
    assert answer["seconds"] is None
    assert answer["error"].startswith("Dist")


@pytest.mark.parametrize("path", sorted((ROOT / "ray_jobs/checks").glob("probe_*.py")), ids=lambda p: p.stem)
def test_a_probe_needs_nothing_but_the_standard_library_to_start(path: Path) -> None:
    tree = ast.parse(path.read_text())
    modules = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    modules |= {name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names}
    assert {str(name).partition(".")[0] for name in modules} <= sys.stdlib_module_names


def test_a_file_is_read_by_one_node_at_most() -> None:
    files = [(f"{i:064x}", 10) for i in range(200)]
    nodes = ["a", "b", "c"]
    drawn = [set(probe_sets.draw(files, nodes, name, "salt", 10**6)) for name in nodes]
    assert set.union(*drawn) == set(range(200))
    assert sum(map(len, drawn)) == 200
    assert min(map(len, drawn)) > 40


def test_no_node_reads_more_than_it_may() -> None:
    files = [(f"{i:064x}", 10) for i in range(200)]
    assert len(probe_sets.draw(files, ["a"], "a", "salt", 55)) == 5
    assert probe_sets.draw(files, ["a"], "a", "salt", 0) == []


def test_one_tar_larger_than_the_bound_is_read() -> None:
    assert probe_sets.draw([("0" * 64, 10**9)], ["a"], "a", "salt", 1) == [0]


def test_another_call_draws_other_files() -> None:
    files = [(f"{i:064x}", 10) for i in range(200)]
    draws = [probe_sets.draw(files, ["a"], "a", salt, 50) for salt in ("one", "one", "two")]
    assert draws[0] == draws[1] != draws[2]


@pytest.fixture
def sets(signal_sets: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    shutil.copytree(signal_sets["train"].parent, tmp_path / "sets")
    return {split: tmp_path / "sets" / path.name for split, path in signal_sets.items()}


def tar_of(manifest: Path) -> Path:
    return manifest.parent / json.loads(manifest.read_text())["shards"][0]["file"]


def look(path: str | Path, budget: int = GIB) -> dict[str, Any]:
    return probe_sets.look_at_sets(Data().model_dump(mode="json"), {"s": str(path)}, "a", ["a"], "x", budget)[
        "s"
    ]


def test_a_whole_set_is_read_and_right(sets: dict[str, Path]) -> None:
    answer, size = look(sets["train"]), tar_of(sets["train"]).stat().st_size
    assert answer["problems"] == []
    assert (answer["read"], answer["read_bytes"], answer["bytes"]) == (1, size, size)


def test_a_flipped_bit_is_found(sets: dict[str, Path]) -> None:
    tar = tar_of(sets["train"])
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    assert [line.partition(":")[0] for line in look(sets["train"])["problems"]] == [str(tar)]
    assert "another SHA-256" in look(sets["train"])["problems"][0]
    assert look(sets["train"], budget=0)["problems"] == []


def test_a_missing_tar_is_found_without_reading(sets: dict[str, Path]) -> None:
    tar_of(sets["val"]).unlink()
    (line,) = look(sets["val"], budget=0)["problems"]
    assert line.startswith(f"{tar_of(sets['val'])}: missing (No such file or directory)")


def test_an_index_of_other_data_is_found(sets: dict[str, Path]) -> None:
    shutil.copyfile(sets["val"].with_suffix(".parquet"), sets["train"].with_suffix(".parquet"))
    (line,) = look(sets["train"])["problems"]
    assert line.startswith(f"{sets['train'].with_suffix('.parquet')}: another SHA-256")


def test_a_missing_manifest_is_an_answer(tmp_path: Path) -> None:
    answer = look(tmp_path / "none.json")
    assert "no such manifest" in answer["problems"][0]
    assert "manifest" not in answer


def test_nodes_find_each_others_files_and_leave_none(tmp_path: Path) -> None:
    storage = str(tmp_path / "new/runs")
    first = probe_storage.write(storage, "t", "a")
    second = probe_storage.write(storage, "t", "b")
    assert (first["error"], second["error"], second["made"]) == (None, None, [])
    assert first["made"] == [str(tmp_path / "new"), storage]
    assert probe_storage.look(storage, "t", ["b"])["unseen"] == []
    probe_storage.clean(storage, "t", "b", second["made"])
    probe_storage.clean(storage, "t", "a", first["made"])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_one_of_another_node_goes_once_that_is_gone(tmp_path: Path) -> None:
    outer, inner = tmp_path / "new", tmp_path / "new/runs"
    inner.mkdir(parents=True)  # by two nodes at once, one folder each
    assert probe_storage.clean(str(inner), "t", "a", [str(outer)])["left"]
    assert probe_storage.clean(str(inner), "t", "b", [str(inner)]) == {"left": None}
    assert probe_storage.clean(str(inner), "t", "a", [str(outer)]) == {"left": None}
    assert list(tmp_path.iterdir()) == []


def test_what_lay_in_the_storage_stays(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    answer = probe_storage.write(str(tmp_path), "t", "a")
    probe_storage.clean(str(tmp_path), "t", "a", answer["made"])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_storage_under_a_file_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert probe_storage.write(str(tmp_path / "file/runs"), "t", "a")["error"] == "Not a directory"
    assert probe_storage.write(str(tmp_path / "file"), "t", "a")["error"] == "Not a directory"


def test_a_token_that_is_not_there_is_unseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_storage, "WAIT_S", 0.0)
    assert probe_storage.look(str(tmp_path), "t", ["b", "c"]) == {"unseen": ["b", "c"], "lock": None}


@pytest.fixture
def s3() -> Iterator[Server]:
    with s3_server() as server:
        yield server


def test_nodes_find_each_others_objects_behind_a_url_and_leave_none(s3: Server) -> None:
    storage = f"s3://{BUCKET}/runs"
    for name in ("a", "b"):
        assert probe_storage.write(storage, "t", name) == {"error": None, "free": None, "made": []}
    assert probe_storage.look(storage, "t", ["b"]) == {"unseen": [], "lock": None}
    for name in ("a", "b"):
        assert probe_storage.clean(storage, "t", name, []) == {"left": None}
    assert s3.names("runs") == []


def test_a_bucket_that_is_not_there_is_an_answer(s3: Server) -> None:
    assert "bucket" in str(probe_storage.write("s3://no-such/runs", "t", "a")["error"]).lower()


def test_remote_tars_are_read_where_they_lie(s3: Server, sets: dict[str, Path]) -> None:
    for path in sets["train"].parent.iterdir():
        s3.put(f"sets/{path.name}", path.read_bytes())
    url, tar = f"s3://{BUCKET}/sets/train.json", tar_of(sets["train"])
    answer, size = look(url), tar.stat().st_size
    assert answer["problems"] == []
    assert (answer["read_bytes"], answer["remote"], answer["sized"]) == (size, size, 1)
    s3.put(f"sets/{tar.name}", bytes(size))
    assert look(url, budget=0)["problems"] == []  # its size is right
    assert look(url)["problems"][0].startswith(f"s3://{BUCKET}/sets/{tar.name}: another SHA-256")
    s3.put(f"sets/{tar.name}", bytes(100))
    assert f"100 bytes, but its manifest says {size}" in look(url, budget=0)["problems"][0]
    s3.client.delete_object(Bucket=BUCKET, Key=f"sets/{tar.name}")
    assert "there is no such object" in look(url, budget=0)["problems"][0]


def test_storage_that_cannot_be_written_by_url_is_refused() -> None:
    assert "cannot be written to" in probe_storage.write("https://host.invalid/runs", "t", "a")["error"]


def test_other_source_files_have_another_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_package"
    package.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    digests = []
    for name, text in (("__init__.py", ""), ("a.py", "x = 1\n"), ("a.py", "x = 2\n")):
        (package / name).write_text(text)
        digests.append(probe_machine.code_digest("some_package"))
    assert len({None, *digests}) == 4
    assert probe_machine.code_digest("no_such_package") is None


def test_a_containers_limit_bounds_its_memory(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable: 50 kB\n")
    assert probe_machine.free_memory(tmp_path / "meminfo", tmp_path) == 50 * 1024
    (tmp_path / "memory.max").write_text("30000\n")
    (tmp_path / "memory.current").write_text("10000\n")
    assert probe_machine.free_memory(tmp_path / "meminfo", tmp_path) == 20000
    (tmp_path / "memory.max").write_text("max\n")
    assert probe_machine.free_memory(tmp_path / "meminfo", tmp_path) == 50 * 1024


def test_the_list_of_gpus_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho 'NVIDIA L40S, 46068, 3, 570.1'\necho 'NVIDIA L40S, 46068, 4, 570.1'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = probe_machine.gpus()
    assert found == [
        {"name": "NVIDIA L40S", "memory_mib": "46068", "used_mib": used, "driver": "570.1"} for used in "34"
    ]
    program.write_text("#!/bin/sh\nexit 9\n")
    assert probe_machine.gpus() == []
    program.unlink()
    assert probe_machine.gpus() is None
