"""Does on a node what a training worker does first. Runs there, by value: the standard library up here."""

from __future__ import annotations

import importlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

HUB_TIMEOUT_S = 10.0


def try_out(config: dict[str, Any], gpu_count: int) -> dict[str, Any]:
    """Imports what a training worker imports, and looks for its weights.

    Args:
        config: Of the run, dumped.
        gpu_count: GPUs that Ray counts here: each is tried; 0 for a run on CPUs.

    Returns:
        ``tried``: by step a message, None where it went well; ``cuda``: as torch sees it.
    """
    cuda: dict[str, Any] = {}
    steps: dict[str, Callable[[], object]] = {
        "imports": lambda: _import_all("cuda" if gpu_count else "cpu"),
        "backbone": lambda: _check_backbone(config),
    }
    if config["run"]["track"]:
        steps["trackers"] = lambda: _module("ray_jobs.tracking").check(_config(config))
    if gpu_count:
        if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
            del os.environ["CUDA_VISIBLE_DEVICES"]  # as Ray may leave it in a task that asks for no GPU
        steps["CUDA"] = lambda: cuda.update(try_cuda(gpu_count))
    return {"tried": {name: _message(step) for name, step in steps.items()}, "cuda": cuda}


def _message(step: Callable[[], object]) -> str | None:
    try:
        step()
    except Exception as error:  # noqa: BLE001 - an answer of this node, whatever a package raises
        words = " ".join(str(error).split())
        # an error of ours is a whole sentence
        return words if hasattr(error, "exit_code") else f"{type(error).__name__}: {words[:300]}"
    return None


def _module(name: str) -> Any:
    return importlib.import_module(name)


def _config(dumped: dict[str, Any]) -> Any:
    return _module("dfdet.config").from_dict(dumped)


def _import_all(device: str) -> None:
    for name in ("dfdet.train", "ray_jobs.worker"):
        _module(name)
    _module("dfdet.training.engine").import_deepspeed(_module("torch").device(device))


def _check_backbone(dumped: dict[str, Any]) -> None:
    model = _config(dumped).model
    _module("dfdet.model.backbone").check_backbone(model)
    repository = hub_repository(model)
    if repository and not _is_cached(repository) and (problem := _hub_problem()):
        from dfdet.errors import WeightsError

        raise WeightsError(
            f"model.pretrained={model.pretrained}: {repository} is not in this node's cache, and {problem};"
            " give a file that every node sees as --model.pretrained FILE, or let it reach the hub"
        )


def hub_repository(model: Any) -> str | None:
    """Where on Hugging Face's hub a worker would fetch its weights from; None where it would not."""
    if not model.pretrained or Path(model.pretrained).is_file() or model.backbone == "tiny":
        return None
    if model.backbone.startswith("timm/"):
        from timm.models import get_pretrained_cfg

        found = get_pretrained_cfg(model.backbone.removeprefix("timm/"))
        return found.hf_hub_id if found else None
    from open_clip.pretrained import get_pretrained_cfg as open_clip_cfg

    return os.path.dirname(open_clip_cfg(model.backbone, model.pretrained).get("hf_hub", "")) or None  # noqa: PTH120 - no path


def _is_cached(repository: str) -> bool:
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots"
    return any(file.is_file() for file in folder.glob("*/*"))


def _hub_problem() -> str | None:
    """Why the hub cannot be reached; None where it can."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        request = urllib.request.Request(ENDPOINT, method="HEAD")  # noqa: S310 - the library's own constant
        urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S).close()  # noqa: S310
    except urllib.error.HTTPError:
        return None  # an answer
    except OSError as error:
        return f"{ENDPOINT} does not answer ({getattr(error, 'reason', error)})"
    return None


def try_cuda(gpu_count: int) -> dict[str, Any]:
    """CUDA and NCCL of torch; computes a number on each GPU, so that one that cannot raises."""
    import torch

    for index in range(min(gpu_count, torch.cuda.device_count())):
        torch.ones(1, device=f"cuda:{index}").add_(1).item()
    has_nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    return {
        "cuda": torch.version.cuda,
        "count": torch.cuda.device_count(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if has_nccl else None,
    }
