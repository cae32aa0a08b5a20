"""A run on a small CLIP tower with a file of pretrained weights, and bundles of trained detectors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dfdet.evaluation.folder import Folder
from dfdet.evaluation.options import Options as EvaluationOptions
from dfdet.evaluation.outcome import conclude
from dfdet.evaluation.request import open_request as open_evaluation
from dfdet.evaluation.scorer import Scorer
from tests.dfdet.export.bundles import exported
from tests.dfdet.export.clips import QUICK, registered, weights
from tests.signal_runs import config_for, run


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Small CLIP towers in open_clip's registry."""
    with registered(tmp_path_factory.mktemp("open_clip")):
        yield


@pytest.fixture(scope="session")
def clip_run(clips: None, signal_sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run with LN-tuning in bfloat16 on pretrained weights. Not to be changed."""
    storage = tmp_path_factory.mktemp("clip")
    values = {
        "model.backbone": QUICK,
        "model.pretrained": str(weights(storage / "clip.safetensors")),
        "optim.epochs": 1,
        "engine.precision": "bf16",
    }
    run(config_for(signal_sets, storage, **values))
    return storage / "run"


@pytest.fixture(scope="session")
def bundle(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the tiny tower, with lower precisions and Triton's layout. Not to be changed."""
    out = tmp_path_factory.mktemp("bundle") / "tiny"
    precisions = ("int8", "bfloat16")
    options = {"precisions": precisions, "bound": 1e-7, "force": True}
    return exported(trained_run, out, **options, triton=True, kserve=True, crops=24)


@pytest.fixture(scope="session")
def clip_bundle(clip_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the CLIP tower, with Hugging Face's layout. Not to be changed."""
    return exported(clip_run, tmp_path_factory.mktemp("bundle") / "clip", hugging_face=True, crops=24)


@pytest.fixture(scope="session")
def evaluation(
    clip_run: Path, signal_sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of an evaluation of :func:`clip_run` on the test set. Not to be changed."""
    out = tmp_path_factory.mktemp("evaluation") / "out"
    sets = {"test": (f"t={signal_sets['test']}",)}
    options = EvaluationOptions(checkpoint=(str(clip_run),), **sets, out=str(out), resamples=200)
    request = open_evaluation(options)
    folder = Folder(out, request.record())
    scorer = Scorer(request.work, "cpu", 1)
    for part in request.slices:
        folder.keep(part, scorer.score(part))
    conclude(request, folder)
    folder.release()
    return out
