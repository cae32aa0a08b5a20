"""One demo video and its fakes as encoded samples: a pure function of its plan."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from dfdet.schema import FAKE, REAL, REAL_METHOD, CropRecipe, Sample, Split
from shards.demo.forge import capture, draw_camera, draw_codec, draw_forgery, publish
from shards.demo.methods import HELDOUT_METHODS, TRAINING_METHODS, Shot
from shards.demo.people import SCALE, SIDE_PX, draw_person, draw_scene, pose_at
from shards.demo.render import render

DATASET = "demo"
CROP = CropRecipe(template="demo", scale=SCALE, size_px=SIDE_PX, detector="synthetic", selection="largest")
METHODS = {**TRAINING_METHODS, **HELDOUT_METHODS}

Encoded = tuple[Sample, str, bytes, int, int]
"""Sample, extension, image bytes, width and height (pixels)."""


@dataclass(frozen=True)
class VideoPlan:
    """All that determines one group: a real video and its fakes."""

    seed: int
    split: Split
    identity: int
    donor: int
    take: int
    frames: int
    methods: tuple[str, ...]
    image_format: str

    @property
    def name(self) -> str:
        """Id of the real video, unique over all splits."""
        return f"p{self.identity:04d}-{self.take:02d}"

    def rng(self, *what: int | str) -> np.random.Generator:
        """A generator of its own for each purpose; worker counts never enter it."""
        words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in what]
        return np.random.default_rng([self.seed, *words])


def encode(image: np.ndarray, image_format: str) -> bytes:
    """RGB uint8 [H, W, 3] as lossless WebP, PNG, or JPEG of quality 95."""
    buffer = io.BytesIO()
    options = {
        "webp": {"lossless": True, "method": 0, "quality": 20},  # 0.7 ms and 30 KB; method 1: 2.8 ms, 27 KB
        "png": {"compress_level": 3},
        "jpg": {"quality": 95, "subsampling": 0},
    }[image_format]
    Image.fromarray(image).save(buffer, "JPEG" if image_format == "jpg" else image_format.upper(), **options)
    return buffer.getvalue()


def shoot(plan: VideoPlan) -> list[Shot]:
    """The recorded frames of the real video."""
    person = draw_person(plan.rng("person", plan.identity))
    donor = draw_person(plan.rng("person", plan.donor))
    rng = plan.rng("video", plan.identity, plan.take)
    scene, camera = draw_scene(rng), draw_camera(rng)
    shots = []
    for index in range(plan.frames):
        pose = pose_at(scene, index)
        frame = render(person, scene, pose)
        recorded = capture(frame.image, camera, rng)
        shots.append(Shot(person, donor, scene, pose, camera, frame, recorded))
    return shots


def make_group(plan: VideoPlan) -> list[Encoded]:
    """All samples of a group, frame by frame and source by source."""
    cv2.setNumThreads(1)
    shots = shoot(plan)
    samples = _published(plan, shots, REAL_METHOD)
    for method in plan.methods:
        samples += _published(plan, shots, method)
    return sorted(samples, key=lambda encoded: (encoded[0].frame, encoded[0].source))


def _published(plan: VideoPlan, shots: list[Shot], source: str) -> list[Encoded]:
    rng = plan.rng("publish", plan.identity, plan.take, source)
    codec, forgery = draw_codec(rng), draw_forgery(rng)
    encoded = []
    for index, shot in enumerate(shots):
        image = shot.recorded if source == REAL_METHOD else METHODS[source](shot, forgery, rng)
        data = encode(publish(image, codec), plan.image_format)
        encoded.append((_sample(plan, shot, source, index), plan.image_format, data, SIDE_PX, SIDE_PX))
    return encoded


def _sample(plan: VideoPlan, shot: Shot, source: str, index: int) -> Sample:
    points = [(round(float(x), 3), round(float(y), 3)) for x, y in shot.frame.landmarks]
    x0, y0, x1, y1 = (round(value, 3) for value in shot.frame.box)
    return Sample(
        dataset=DATASET,
        source=source,
        label=REAL if source == REAL_METHOD else FAKE,
        video=plan.name,
        frame=index,
        group=f"{DATASET}/{plan.name}",
        group_level="exact",
        identity=f"p{plan.identity:04d}",
        landmarks=tuple(points),
        score=1.0,
        box=(x0, y0, x1, y1),
        crop=CROP,
        split=plan.split,
    )
