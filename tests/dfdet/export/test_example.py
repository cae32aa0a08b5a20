"""example.py scores a stored crop as the checkpoint does, without torch and without dfdet."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dfdet.data.index import open_sets
from dfdet.data.reader import Reader
from dfdet.export import crops
from dfdet.export.bundle import own_score
from dfdet.export.request import Options, open_request

ROOT = Path(__file__).parents[3]
NEEDS = ("numpy", "onnxruntime", "pillow")
INSTALL_S = 120


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with what example.py needs and nothing else."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        pytest.skip("needs uv to make an environment")
    python = tmp_path_factory.mktemp("bare") / "venv" / "bin" / "python"
    install = [uv, "pip", "install", "--quiet", "--python", str(python)]
    try:
        for command in (
            [uv, "venv", "--quiet", "--python", sys.executable, str(python.parents[1])],
            [*install, "--constraint", str(ROOT / "constraints.txt"), *NEEDS],
        ):
            subprocess.run(command, check=True, capture_output=True, timeout=INSTALL_S)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"neither a network nor a cache has {', '.join(NEEDS)}: {error}")
    return python


def stored_crop(manifest: Path, number: int, to: Path) -> Path:
    """The file of a set's sample, as it lies in its tar."""
    index = open_sets([manifest])
    with Reader(index.shards) as reader:
        place = (int(column[number]) for column in (index.shard, index.offset, index.size, index.crc32))
        to.write_bytes(reader.read(*place))
    return to


def scored(python: Path | str, bundle: Path, crop: Path) -> tuple[float, str]:
    command = [str(python), "-I", str(bundle / "example.py"), str(crop)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=crop.parent)
    word, score, verdict = done.stdout.strip().split(" ", 2)
    assert word == "score"
    return float(score), verdict


def own(run: Path, manifest: Path, number: int, out: Path) -> float:
    request = open_request(Options(checkpoint=str(run), out=str(out)))
    index = open_sets([manifest])
    image = crops.from_set("v", index, 1.3, len(index)).images[number]
    return float(own_score(request)(image[None])[0][0])


def test_it_is_short(bundle: Path) -> None:
    lines = (bundle / "example.py").read_text().splitlines()
    code = [line for line in lines if line and not line.startswith(("import", "from", '"""'))]
    assert len(code) <= 16


def test_a_bare_environment_gives_the_checkpoints_score(
    bare_python: Path, bundle: Path, trained_run: Path, signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    for package in ("torch", "dfdet"):
        missing = subprocess.run([bare_python, "-I", "-c", f"import {package}"], capture_output=True)
        assert b"ModuleNotFoundError" in missing.stderr
    threshold = json.loads((bundle / "threshold.json").read_text())["threshold"]
    verdicts = set()
    for number in (0, 1, 40):
        crop = stored_crop(signal_sets["val"], number, tmp_path / f"{number}.png")
        score, verdict = scored(bare_python, bundle, crop)
        expected = own(trained_run, signal_sets["val"], number, tmp_path / "none")
        assert score == pytest.approx(expected, abs=2e-6)
        assert verdict == ("fake" if expected >= threshold else "real")
        verdicts.add(verdict)
    assert verdicts == {"fake", "real"}


def test_without_a_threshold_there_is_no_verdict(
    bundle: Path, signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("example.py", "model.onnx", "preprocess.json"):
        shutil.copy(bundle / name, tmp_path)
    crop = stored_crop(signal_sets["val"], 0, tmp_path / "crop.png")
    assert scored(sys.executable, tmp_path, crop)[1] == "no threshold"
