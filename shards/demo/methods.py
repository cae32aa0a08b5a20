"""The three forgery methods of the demo: two for training, one held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from shards.demo.forge import (
    Camera,
    Forgery,
    blend,
    capture,
    hull,
    inner_face,
    lower_face,
    match_colour,
    process,
    upper_face,
    whole_face,
)
from shards.demo.people import Array, Person, Pose, Scene
from shards.demo.render import Frame, render


@dataclass(frozen=True)
class Shot:
    """A recorded frame and all that is behind it."""

    person: Person
    donor: Person
    """Another identity, whose face ``swap`` puts in."""
    scene: Scene
    pose: Pose
    camera: Camera
    frame: Frame
    recorded: Array
    """What the camera recorded [H, W, 3]."""


REGIONS = (whole_face, inner_face, upper_face, lower_face)

Method = Callable[[Shot, Forgery, np.random.Generator], Array]


def self_blend(shot: Shot, forgery: Forgery, rng: np.random.Generator) -> Array:
    """The recorded face itself, warped, recoloured and resampled (SBI, arXiv 2204.08376)."""
    source = process(shot.recorded, forgery, rng)
    return blend(shot.recorded, source, REGIONS[forgery.region](shot.frame), forgery)


def swap(shot: Shot, forgery: Forgery, rng: np.random.Generator) -> Array:
    """Another identity's face in the same pose and light, colour-matched, from brows to mouth."""
    mask = inner_face(shot.frame)
    donor = capture(render(shot.donor, shot.scene, shot.pose).image, shot.camera, rng)
    source = process(match_colour(donor, shot.recorded, mask), forgery, rng)
    return blend(shot.recorded, source, mask, forgery)


def reenact(shot: Shot, forgery: Forgery, rng: np.random.Generator) -> Array:
    """The same person with another expression, synthesised without a camera, from brows to chin."""
    pose = shot.pose
    driven = replace(pose, mouth=(pose.mouth + 0.06) % 0.11, gaze=-pose.gaze, yaw=pose.yaw + 0.03)
    source = process(render(shot.person, shot.scene, driven).image, forgery, rng)
    return blend(shot.recorded, source, hull(shot.frame), forgery)


TRAINING_METHODS: dict[str, Method] = {"sbi": self_blend, "swap": swap}
HELDOUT_METHODS: dict[str, Method] = {"reenact": reenact}
