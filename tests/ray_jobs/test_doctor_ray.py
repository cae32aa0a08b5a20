"""The doctor on a real cluster: of two sound nodes, and of one more that is broken in several ways."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from ray_jobs.checks import probe_machine
from ray_jobs.checks.asking import Asking
from ray_jobs.checks.nodes import Node, describe

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]

HIDE = """
import importlib.metadata
import sys

class Hidden:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "safetensors":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    @staticmethod
    def find_distributions(context):
        return ()

found = importlib.metadata.Distribution.from_name.__func__

def from_name(cls, name):
    if name == "safetensors":
        raise importlib.metadata.PackageNotFoundError(name)
    return found(cls, name)

sys.meta_path.insert(0, Hidden)
importlib.metadata.Distribution.from_name = classmethod(from_name)
"""
"""A ``sitecustomize.py`` under which a package is not installed."""

READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
"""In a mount namespace of its own: a folder that only this process and its children cannot write to."""


@dataclass
class Told:
    """What the doctor said."""

    code: int
    printed: str
    rows: list[dict[str, Any]]

    def of(self, check: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["check"] == check]

    def states(self) -> dict[str, str]:
        return {row["check"]: row["state"] for row in self.rows}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and another node, of one CPU each."""
    before = dict(os.environ)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each worker would compile all it imports
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    temporary = tempfile.mkdtemp(prefix="d")  # short: sockets lie there
    head = {"num_cpus": 1, "include_dashboard": False, "temp_dir": temporary}
    made = Cluster(initialize_head=True, head_node_args=head)
    made.add_node(num_cpus=1)
    yield made
    ray.shutdown()
    made.shutdown()
    shutil.rmtree(temporary, ignore_errors=True)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def work(signal_sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with copies of the sets, to be spoilt."""
    folder = tmp_path_factory.mktemp("doctor")
    shutil.copytree(signal_sets["train"].parent, folder / "sets")
    return folder


def doctor(address: str, work: Path, *arguments: str, module: bool = False) -> Told:
    """Runs the command."""
    program = ["-m", "ray_jobs.doctor"] if module else ["ray_jobs/doctor.py"]
    rows = work / "rows.json"
    rows.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, *program, *arguments, "--json_file", str(rows)],
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": address, "DFDET_HOME": str(work / "home")},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert rows.exists(), done.stdout + done.stderr
    return Told(done.returncode, done.stdout, json.loads(rows.read_text()))


def arguments(work: Path, workers: int) -> list[str]:
    sets = work / "sets"
    return [
        *("demo", "--data.train", str(sets / "train.json"), "--data.val", f"v={sets / 'val.json'}"),
        *("--data.test", f"t={sets / 'test.json'}", "--data.global_batch", "12"),
        *("--run.workers", str(workers), "--run.storage", str(work / "shared/runs"), "--run.device", "cpu"),
    ]


def until(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)
    return found


def alive(cluster: Any) -> set[str]:
    return {node["NodeID"] for node in cluster.global_state.node_table() if node["Alive"]}


def tar_of(manifest: Path) -> Path:
    return manifest.parent / json.loads(manifest.read_text())["shards"][0]["file"]


@pytest.fixture(scope="module")
def sound(cluster: Any, work: Path) -> Told:
    return doctor(cluster.address, work, *arguments(work, 2))


def test_a_sound_cluster_would_run_it(sound: Told) -> None:
    assert sound.code == 0, sound.printed
    assert "FAIL" not in sound.states().values()
    assert sound.printed.splitlines()[-1].startswith("demo would run here: ")
    for check in ("nodes", "packages", "code", "imports", "storage", "shared storage", "all-reduce"):
        (row,) = sound.of(check)
        assert row["state"] == "ok"
        assert len(row["nodes"]) == 2


def test_ranks_on_two_nodes_added_up(sound: Told) -> None:
    assert sound.of("all-reduce")[0]["found"].startswith("gloo between two nodes, ")


def test_each_tar_was_read_once(sound: Told, work: Path) -> None:
    for check, name in (("set train", "train"), ("set val v", "val"), ("set test t", "test")):
        kib = tar_of(work / f"sets/{name}.json").stat().st_size / 1024
        assert sound.of(check)[0]["found"].endswith(f"SHA-256 right of the 1 read ({kib:.1f} KiB)")


def test_nothing_is_left_in_the_storage(sound: Told, work: Path) -> None:
    assert not (work / "shared").exists()


def test_without_arguments_the_demo_is_looked_at_and_not_built(cluster: Any, work: Path) -> None:
    told = doctor(cluster.address, work, module=True)
    assert told.code == 0, told.printed
    assert (
        told.of("demo set")[0]["found"] == f"not built yet: train.py builds it in {work / 'home/data/demo'}"
    )
    assert not (work / "home").exists()


@dataclass
class Broken:
    """A third node, and what the doctor said of the cluster with it."""

    id: str
    process: subprocess.Popen[bytes]
    read_only: bool
    told: Told


@pytest.fixture(scope="module")
def broken(cluster: Any, work: Path, sound: Told) -> Iterator[Broken]:
    """Lacks a package, and cannot write to the storage; a tar is missing, and a bit of another flipped."""
    (work / "hide").mkdir()
    (work / "hide/sitecustomize.py").write_text(HIDE)
    (work / "shared/runs").mkdir(parents=True)
    spoil_sets(work)
    command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus=1"]
    command += [f"--address={cluster.address}", f"--object-store-memory={100 * 2**20}"]
    own_mounts = ["unshare", "--mount", "sh", "-c", READ_ONLY, str(work / "shared")]
    read_only = subprocess.run([*own_mounts, "true"], capture_output=True).returncode == 0
    before = alive(cluster)
    with (work / "node.log").open("wb") as log:
        process = subprocess.Popen(
            [*own_mounts, *command] if read_only else command,
            env=os.environ | {"PYTHONPATH": str(work / "hide"), "RAY_AUTH_MODE": "disabled"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    family: list[psutil.Process] = []
    try:
        (new,) = until(lambda: alive(cluster) - before or process.poll())
        yield Broken(new, process, read_only, doctor(cluster.address, work, *arguments(work, 3)))
    finally:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            member.kill()
        psutil.wait_procs(family)


def spoil_sets(work: Path) -> None:
    tar_of(work / "sets/val.json").unlink()
    tar = tar_of(work / "sets/train.json")
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)


def test_a_broken_cluster_would_not_run_it(broken: Broken) -> None:
    assert broken.told.code == 1
    assert broken.told.printed.splitlines()[-1].startswith("demo would not run here: ")
    for row in broken.told.rows:
        assert bool(row["remedy"]) is (row["state"] != "ok")


def test_the_node_that_lacks_a_package_is_named(broken: Broken) -> None:
    (packages,) = broken.told.of("packages")
    (imports,) = broken.told.of("imports")
    (node,) = packages["nodes"]
    assert broken.id.startswith(node.partition("#")[2])
    assert (packages["state"], packages["found"]) == ("FAIL", "safetensors is not installed")
    assert "pip install safetensors==" in packages["remedy"]
    assert (imports["state"], imports["nodes"]) == ("FAIL", [node])
    assert imports["found"] == "ModuleNotFoundError: No module named 'safetensors'"


def test_the_node_that_cannot_write_is_named(broken: Broken, work: Path) -> None:
    if not broken.read_only:
        pytest.skip("needs root's mount namespaces")
    (row,) = broken.told.of("storage")
    assert (row["state"], row["found"]) == ("FAIL", f"{work / 'shared/runs'}: Read-only file system")
    assert broken.id.startswith(row["nodes"][0].partition("#")[2])
    (shared,) = broken.told.of("shared storage")
    assert (shared["state"], len(shared["nodes"])) == ("ok", 2)
    assert list((work / "shared/runs").iterdir()) == []


def test_a_missing_tar_and_a_flipped_bit_are_named(broken: Broken, work: Path) -> None:
    (val,) = broken.told.of("set val v")
    assert val["state"] == "FAIL"
    assert val["found"].startswith(f"{tar_of(work / 'sets/val.json')}: missing (No such file or directory)")
    assert len(val["nodes"]) == 2  # the third cannot read sets at all
    (train,) = broken.told.of("set train")
    assert train["state"] == "FAIL"
    assert train["found"].startswith(f"{tar_of(work / 'sets/train.json')}: another SHA-256")
    assert broken.told.states()["set test t"] == "ok"


def test_a_node_that_does_not_answer_is_an_answer(cluster: Any, broken: Broken) -> None:
    ray.init(address=cluster.address, log_to_driver=False)
    nodes: list[Node] = describe(ray.nodes(), ray.get_runtime_context().get_node_id(), {"CPU": 1.0})
    asking = Asking(120.0)
    assert len(asking.ask(probe_machine.greet, [(node, ()) for node in nodes])) == 3
    frozen = psutil.Process(broken.process.pid).children(recursive=True)
    for process in frozen:
        process.send_signal(signal.SIGSTOP)
    try:
        asking.timeout_s = 10.0
        answers = asking.ask(probe_machine.greet, [(node, ()) for node in nodes])
    finally:
        for process in frozen:
            process.send_signal(signal.SIGCONT)
    (silent,) = [node.name for node in nodes if node.id == broken.id]
    assert set(answers) == {node.name for node in nodes} - {silent}
    assert asking.silent == {silent: "no answer within 10 s (greet)"}
    assert asking.ask(probe_machine.greet, [(node, ()) for node in nodes if node.name == silent]) == {}
