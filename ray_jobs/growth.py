"""What a cluster that scales by demand may grow to: Ray does not tell, so the cluster's files do.

``DFDET_GROWS_TO="CPU=512,GPU=32"`` in the environment of the head (``cluster.yaml``, ``deploy/``) is the sum
over all nodes at most. Without it a run that has no room now is refused, as it would wait for ever.
"""

from __future__ import annotations

import math
import os

from dfdet.errors import ConfigError

GROWS_TO = "DFDET_GROWS_TO"

START_TIMEOUT_S = "900"
"""How long workers wait for their nodes, which take five minutes to come, before they ask anew (seconds)."""

ASKED_CPUS = 128
"""CPUs that sharding asks for unless it is told how many: more would come with GPUs that it does not use."""


def growth() -> dict[str, float]:
    """Resources that nodes may come up to; empty where nothing grows.

    Raises:
        ConfigError: The variable cannot be read.
    """
    given = os.environ.get(GROWS_TO, "")
    try:
        pairs = [part.split("=") for part in given.split(",") if part.strip()]
        found = {kind.strip(): float(amount) for kind, amount in pairs}
    except ValueError:
        found = {"": math.nan}
    if not all(kind and amount >= 0 for kind, amount in found.items()):
        raise ConfigError(f"{GROWS_TO}={given}: not amounts of resources; set it as CPU=512,GPU=32")
    return found


def grown(resources: dict[str, float]) -> dict[str, float]:
    """The resources that there are, or may come, whichever is more."""
    most = growth()
    return resources | {kind: max(amount, resources.get(kind, 0.0)) for kind, amount in most.items()}


def cpus_to_ask(now: float) -> int:
    """CPUs that tasks of one CPU each should be handed out for.

    Args:
        now: CPUs of the nodes that are there.
    """
    return max(1, int(now), min(ASKED_CPUS, int(growth().get("CPU", 0.0))))
