"""Places of workers that stay taken after the process that asked for them was killed.

A placement group goes with the actor that made it, Ray Train's controller, where that is killed; not where
it ends because the trial that started it was killed, nor where both go with their node: then Ray even moves
the group to another node (Ray 2.60). Ray Train's own cleaner needs the dashboard.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dfdet.runs.patience import Warner

logger = logging.getLogger(__name__)
_warner = Warner(logger)

LOOK_EVERY_S = 5.0
"""How often the driver of a sweep looks for such places (seconds)."""


@contextmanager
def without_leftovers() -> Iterator[None]:
    """Frees them again and again meanwhile: trials may need them to start at all."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_EVERY_S):
            free_leftovers()

    thread = threading.Thread(target=look, name="leftovers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


def free_leftovers() -> None:
    """Removes this job's placement groups whose maker is dead."""
    import ray

    try:
        job = ray.get_runtime_context().get_job_id()
        for group in _placement_groups():
            if group.creator_job_id.hex() == job and _is_left(group):
                _remove(group)
    except Exception as error:  # noqa: BLE001 - private to Ray: what is not freed is waited for
        _warner.warn("places of killed trials cannot be freed (%s: %s)", type(error).__name__, error)


def _placement_groups() -> list[Any]:
    """Those of the cluster; Ray's public table does not tell who made them."""
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    data: Any = gcs_pb2.PlacementGroupTableData  # type: ignore[attr-defined]
    found = [data.FromString(each) for each in state._connect_and_get_accessor().get_placement_group_table()]
    return [group for group in found if group.state != data.REMOVED]


def _is_left(group: Any) -> bool:
    from ray._private.state import state

    maker = group.creator_actor_id
    if group.is_detached or not maker.strip(b"\xff"):  # nil: a driver made it
        return False
    return bool(state.actor_table(maker.hex()).get("State") == "DEAD")


def _remove(group: Any) -> None:
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))
    logger.info("freed the places of %d workers whose trial was killed", len(group.bundles))
