"""All checks of a run on a cluster that was joined, one after the other."""

from __future__ import annotations

import fcntl
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import ray

from dfdet.config import Config, named_sets
from dfdet.data.sets import open_run_data
from dfdet.errors import DfdetError
from dfdet.paths import missing_demo_sets
from ray_jobs.checks import (
    links,
    machines,
    probe_link,
    probe_machine,
    probe_sets,
    probe_software,
    probe_storage,
    room,
    software,
)
from ray_jobs.checks.asking import Asking
from ray_jobs.checks.finding import Finding, Problem, of_cluster, of_error, rows
from ray_jobs.checks.nodes import Node, describe, worker_needs
from ray_jobs.checks.stored import judge_cache, judge_sets, judge_storage
from ray_jobs.cluster import home, wants_cuda
from ray_jobs.growth import grown, growth

GIB = 2**30
LINK_TIMEOUT_S = 30.0
"""Wait of two ranks for each other (seconds)."""


class Survey:
    """Asks the nodes of the cluster that this process has joined what a run would need of them.

    Args:
        config: Of the run, paths absolute.
        timeout_s: Wait for a node's answer to each question (seconds).
        checksum_gib: Read for checksums by each node (GiB).
    """

    def __init__(self, config: Config, timeout_s: float, checksum_gib: float) -> None:
        listed = ray.nodes()
        alive: dict[str, float] = ray.cluster_resources()
        self.config, self.checksum_bytes = config, int(checksum_gib * GIB)
        self.cuda = wants_cuda(config.run.device, grown(alive))
        needs = worker_needs(config, cuda=self.cuda)
        self.nodes = describe(listed, ray.get_runtime_context().get_node_id(), needs)
        self.asking = Asking(timeout_s)
        self.token = secrets.token_hex(4)
        self.machines: dict[str, dict[str, Any]] = {}
        self.tried: dict[str, dict[str, Any]] = {}

    @property
    def driver(self) -> str:
        """Name of the driver's node."""
        return self.nodes[0].name

    @property
    def needed(self) -> list[Node]:
        """Nodes that the run would use, and that have answered so far."""
        return [node for node in self.nodes if node.needed and node.name not in self.asking.silent]

    def findings(self) -> list[Finding]:
        """All rows, in the order of the table."""
        found = [*self._room(), *self._machines(), *self._storage(), *self._data(), *self._links()]
        return [*self._answered(), *found]

    def _answered(self) -> list[Finding]:
        """Of the nodes themselves: first in the table, known last."""
        silent, needed = self.asking.silent, {node.name for node in self.nodes if node.needed}
        remedy = "see `ray status` and the logs there (/tmp/ray/session_latest/logs); restart Ray there"
        problems = {
            node.name: [Problem("FAIL", silent[node.name], remedy)] if node.name in silent else []
            for node in self.nodes
        }
        ok = f"{len(self.nodes)} answered; Ray {ray.__version__}"
        return rows("nodes", problems, ok, needed)

    def _room(self) -> list[Finding]:
        config, nodes = self.config, self.nodes
        free: dict[str, float] = ray.available_resources()
        return [
            *room.judge(config, nodes, free, growth(), cuda=self.cuda),
            *room.judge_idle(nodes, config, cuda=self.cuda),
        ]

    def _machines(self) -> list[Finding]:
        config = self.config
        calls = [(node, (config.data.cache_dir,)) for node in self.nodes]
        self.machines = self.asking.ask(probe_machine.machine, calls)
        dumped = config.model_dump(mode="json")
        self.tried = self.asking.ask(
            probe_software.try_out, [(node, (dumped, node.gpus if self.cuda else 0)) for node in self.needed]
        )
        if self.driver not in self.machines:
            return []  # nothing to compare with: the row on nodes tells
        needed = {node.name for node in self.nodes if node.needed}
        clocks = {
            name: machines.skew_s(asked, told["time"], heard)
            for name, (asked, told, heard) in self.asking.ask_in_turn(
                probe_machine.greet, self.needed
            ).items()
        }
        return [
            *software.judge(self.machines, self.driver, needed),
            *software.judge_tried(self.tried, described_model(config)),
            *machines.judge(
                self.machines, self.tried, self.nodes, cuda=self.cuda, most=config.run.most_workers
            ),
            *machines.judge_clocks(clocks),
        ]

    def _storage(self) -> list[Finding]:
        storage, ids = self.config.run.storage, {node.id: node.name for node in self.nodes}
        nodes = self.needed
        written: dict[str, dict[str, Any]] = {}
        try:
            calls = [(node, (storage, self.token, node.id)) for node in nodes]
            written = self.asking.ask(probe_storage.write, calls)
            could = [node for node in self.needed if node.name in written and not written[node.name]["error"]]
            with held_lock(storage, self.token):
                looks: list[Any] = [
                    (node, (storage, self.token, [other.id for other in could if other is not node]))
                    for node in could
                ]
                seen = self.asking.ask(probe_storage.look, looks)
        finally:
            made = {name: answer["made"] for name, answer in written.items()}
            self._clean([(node, (storage, self.token, node.id, made.get(node.name, []))) for node in nodes])
        for answer in seen.values():
            answer["unseen"] = [ids[each] for each in answer["unseen"]]
        return judge_storage(storage, written, seen, self.driver) if written else []

    def _clean(self, calls: list[Any]) -> None:
        """Removes what nodes wrote: a folder that one made may hold a folder that another made."""
        for _ in range(1 + sum(len(made) for _, (*_, made) in calls)):
            told = self.asking.ask(probe_storage.clean, calls)
            calls = [call for call in calls if told.get(call[0].name, {}).get("left")]
            if not calls:
                return

    def _data(self) -> list[Finding]:
        config = self.config
        if missing := missing_demo_sets(config, home()):
            built = f"not built yet: train.py builds it in {Path(missing[0]).parent}"
            return [Finding("demo set", (self.driver,), "ok", built)]
        manifests = manifests_of(config)
        able = [node for node in self.needed if self._has_project(node)]
        names = [node.name for node in able]
        common = (names, self.token, self.checksum_bytes)
        dumped = config.data.model_dump(mode="json")
        calls = [(node, (dumped, manifests, node.name, *common)) for node in able]
        looked = self.asking.ask(probe_sets.look_at_sets, calls)
        found = judge_sets(manifests, looked, self.driver)
        found += judge_cache(config.data.cache_dir, config.data.cache_gib, self.machines, looked)
        whole = all(each.state != "FAIL" for each in found)
        return found + ([self._together()] if whole and looked else [])

    def _has_project(self, node: Node) -> bool:
        """Whether a node can look at sets: one that cannot has said so in another row."""
        answer = self.tried.get(node.name)
        return answer is not None and answer["tried"]["imports"] is None

    def _together(self) -> Finding:
        """The sets of a run as one: equal crops, no sample twice, enough of them."""
        try:
            data = open_run_data(self.config)
        except DfdetError as error:
            return of_cluster("sets together", of_error(str(error)))
        epochs = f"{data.steps_per_epoch} steps an epoch, {self.config.optim.epochs} epochs"
        told = f"{len(data.train):,} training samples: {epochs}"
        return Finding("sets together", (self.driver,), "ok", told)

    def _links(self) -> list[Finding]:
        workers = [node for node in self.needed if node.workers and self._has_project(node)]
        if self.config.run.most_workers == 1 or len(workers) < 2:
            only = "one worker" if self.config.run.most_workers == 1 else "workers on one node only"
            return [Finding(links.CHECK, tuple(node.name for node in workers), "ok", f"{only}: no link")]
        backend = "nccl" if self.cuda else "gloo"
        by_name = {node.name: node for node in workers}
        told: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for pairs in links.rounds([node.name for node in workers]):
            told |= self._try_links([(by_name[first], by_name[second]) for first, second in pairs], backend)
        return links.judge(told, backend, probe_link.MESSAGE_BYTES)

    def _try_links(
        self, pairs: Sequence[tuple[Node, Node]], backend: str
    ) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """One round: pairs that share no node, at the same time."""
        greeted = self.asking.ask(probe_machine.greet, [(first, ()) for first, _ in pairs])
        open_pairs = [pair for pair in pairs if pair[0].name in greeted]
        calls: list[Any] = []
        for pair in open_pairs:
            place = greeted[pair[0].name]
            calls += [
                (node, (rank, place["address"], place["port"], backend, LINK_TIMEOUT_S))
                for rank, node in enumerate(pair)
            ]
        answers = self.asking.ask_all(probe_link.reduce, calls)
        told = zip(answers[::2], answers[1::2], strict=True)
        return {
            (first.name, second.name): [each for each in both if each is not None]
            for (first, second), both in zip(open_pairs, told, strict=True)
            if all(each is not None for each in both)
        }


def manifests_of(config: Config) -> dict[str, str]:
    """The config's sets by the names that the table gives them."""
    data = config.data
    train = {f"train {i}" if len(data.train) > 1 else "train": path for i, path in enumerate(data.train, 1)}
    val = {f"val {name}": path for name, path in named_sets(data.val).items()}
    return train | val | {f"test {name}": path for name, path in named_sets(data.test).items()}


def described_model(config: Config) -> str:
    """Backbone and weights, in a few words."""
    model = config.model
    return f"{model.backbone}, weights: {model.pretrained or 'random'}"


@contextmanager
def held_lock(storage: str, token: str) -> Iterator[None]:
    """A lock beside the nodes' tokens, held by this process; nothing where there is no such folder."""
    with ExitStack() as stack:
        with suppress(OSError):
            path = Path(storage) / f".doctor-{token}" / probe_storage.LOCK
            fcntl.flock(stack.enter_context(path.open("wb")), fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
