"""What a node tells of itself. Runs there, by value: only the standard library is imported up here."""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import importlib.util
import locale
import os
import platform
import resource
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

PACKAGES = (
    "ray",
    "torch",
    "torchvision",
    "deepspeed",
    "open_clip_torch",
    "timm",
    "numpy",
    "pyarrow",
    "safetensors",
    "pydantic",
    "fsspec",
    "pillow",
    "opencv-python-headless",
    "simplejpeg",
    "isal",
    "matplotlib",
)
"""Distributions that training imports."""
SOURCES = ("dfdet", "ray_jobs")


def machine(cache: str) -> dict[str, Any]:
    """Software and means of this node.

    Args:
        cache: Folder of copies of remote shards.
    """
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "code": {name: code_digest(name) for name in SOURCES},
        "gpus": gpus(),
        "memory": free_memory(Path("/proc/meminfo"), Path("/sys/fs/cgroup")),
        "shm": _free(Path("/dev/shm")),  # noqa: S108 - where NCCL's shared memory lies
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "cache": _free(Path(cache).expanduser()),
        "encoding": locale.getpreferredencoding(do_setlocale=False),
        "compiles_always": bool(os.environ.get("PYTHONDONTWRITEBYTECODE")),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def code_digest(package: str) -> str | None:
    """SHA-256 over a package's source files; None where it is not found."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    root = Path(next(iter(spec.submodule_search_locations)))
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def gpus() -> list[dict[str, Any]] | None:
    """What ``nvidia-smi`` lists; None where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = ["--query-gpu=name,memory.total,memory.used,driver_version", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run([program, *query], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    lines = [[cell.strip() for cell in row] for row in csv.reader(told.stdout.splitlines())]
    return [
        {"name": row[0], "memory_mib": row[1], "used_mib": row[2], "driver": row[3]}
        for row in lines
        if len(row) == 4
    ]


def free_memory(meminfo: Path, cgroup: Path) -> int | None:
    """Memory that processes may still take, here or in this container (bytes)."""
    free: list[int] = []
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free.append(int(fields["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pass
    try:
        most, used = ((cgroup / name).read_text() for name in ("memory.max", "memory.current"))
        free.append(int(most) - int(used))  # "max" where there is no limit
    except (OSError, ValueError):
        pass
    return min(free, default=None)


def _free(folder: Path) -> int | None:
    """Free bytes of the disk where a folder lies or would lie."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def greet() -> dict[str, Any]:
    """Clock, address and a free port of this node."""
    import ray

    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    return {"time": time.time(), "address": ray.util.get_node_ip_address(), "port": port}
