"""The demo set: equal bytes, true landmarks, complete pairs, fakes that differ inside the face."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfdet.errors import InputError
from dfdet.schema import Sample
from shards.demo import build
from shards.demo.methods import HELDOUT_METHODS, TRAINING_METHODS
from shards.demo.people import SIDE_PX, UNIT_PX, draw_person, draw_scene, pose_at
from shards.demo.render import render
from shards.manifest import check_no_leak, read_manifest
from shards.verify import verify_set

SMALL = {"identities": 8, "frames": 2}
Read = list[tuple[Sample, np.ndarray]]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    return build(tmp_path_factory.mktemp("demo"), seed=3, workers=1, **SMALL)


@pytest.fixture(scope="module")
def read(made) -> dict[str, Read]:
    return {name: read_set(path) for name, path in made.items()}


def read_set(manifest: Path) -> Read:
    found = []
    for entry in read_manifest(manifest).shards:
        with tarfile.open(manifest.parent / entry.file) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for name, data in members.items():
            if name.endswith(".json"):
                image = members[name.removesuffix(".json") + ".webp"]
                found.append((Sample(**json.loads(data)), np.asarray(Image.open(io.BytesIO(image)))))
    return found


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def pairs(samples: Read) -> list[tuple[Sample, np.ndarray, np.ndarray]]:
    """Each fake with its own image and that of its real frame."""
    reals = {(sample.group, sample.frame): image for sample, image in samples if sample.label == 0}
    return [(s, image, reals[s.group, s.frame]) for s, image in samples if s.label == 1]


def region(sample: Sample, reach: float) -> np.ndarray:
    """Pixels within ``reach`` half head heights of the middle of the landmarks."""
    x, y = np.mean(sample.landmarks, axis=0)
    rows, columns = np.mgrid[:SIDE_PX, :SIDE_PX]
    return np.hypot(columns - x, rows - y) < reach * UNIT_PX


def test_two_workers_write_the_same_bytes_as_one(made, tmp_path):
    build(tmp_path, seed=3, workers=2, **SMALL)
    assert digests(tmp_path) == digests(made["train"].parent)


def test_another_seed_draws_other_images(read, tmp_path):
    other = read_set(build(tmp_path, seed=4, workers=1, **SMALL)["val"])
    assert not any(np.array_equal(a[1], b[1]) for a, b in zip(other, read["val"], strict=True))


def test_a_finished_set_is_kept_and_a_missing_one_made_again(made, tmp_path):
    paths = build(tmp_path, seed=3, workers=1, **SMALL)
    first, kept = digests(tmp_path), paths["train"].stat().st_mtime_ns
    paths["val"].unlink()
    calls = []
    build(tmp_path, seed=3, workers=1, progress=lambda *call: calls.append(call), **SMALL)
    assert digests(tmp_path) == first
    assert paths["train"].stat().st_mtime_ns == kept
    assert calls == [("val", 1, 2), ("val", 2, 2)]


def test_other_parameters_replace_a_set(tmp_path):
    build(tmp_path, seed=3, workers=1, **SMALL)
    paths = build(tmp_path, seed=3, workers=1, **{**SMALL, "frames": 1})
    assert [read_manifest(path).samples for path in paths.values()] == [12, 6, 4]


def test_sets_are_sound_and_share_no_person(made, read):
    assert [verify_set(path) for path in made.values()] == [[], [], []]
    check_no_leak(made.values())
    people = [{sample.identity for sample, _ in samples} for samples in read.values()]
    assert [len(each) for each in people] == [4, 2, 2]
    assert len(set.union(*people)) == 8


def test_the_held_out_method_is_in_no_other_set(made):
    methods = {name: set(read_manifest(path).by_method) for name, path in made.items()}
    assert methods["train"] == methods["val"] == {"real", *TRAINING_METHODS}
    assert methods["heldout"] == {"real", *HELDOUT_METHODS}
    assert not methods["heldout"] & set(TRAINING_METHODS)


def test_every_frame_has_its_real_and_each_fake(read):
    for name, methods in (("train", TRAINING_METHODS), ("val", TRAINING_METHODS), ("heldout", HELDOUT_METHODS)):
        sources = defaultdict(set)
        for sample, _ in read[name]:
            assert sample.group == f"demo/{sample.video}"
            assert sample.group_level == "exact"
            sources[sample.group, sample.frame].add(sample.source)
        assert all(found == {"real", *methods} for found in sources.values())


def test_real_and_fake_of_a_frame_have_the_same_geometry(read):
    for samples in read.values():
        shapes = defaultdict(set)
        for sample, image in samples:
            assert image.shape == (SIDE_PX, SIDE_PX, 3)
            shapes[sample.group, sample.frame].add((sample.landmarks, sample.box))
        assert all(len(found) == 1 for found in shapes.values())


@pytest.mark.parametrize("method", [*TRAINING_METHODS, *HELDOUT_METHODS])
def test_fakes_differ_inside_the_face_and_little_outside(read, method):
    inside, outside = [], []
    for sample, fake, real in pairs([*read["train"], *read["heldout"]]):
        if sample.source == method:
            # averaged over 8 x 8 pixels: both have camera noise and JPEG of their own
            change = np.abs(fake.astype(float) - real).mean(axis=2)
            blocks = change.reshape(20, 8, 20, 8).mean(axis=(1, 3)).repeat(8, 0).repeat(8, 1)
            inside.append(blocks[region(sample, 0.45)].mean())
            outside.append(blocks[~region(sample, 1.5)].mean())
    assert np.mean(inside) > 2.5 * np.mean(outside)


def test_reals_and_fakes_agree_in_their_mean_colour_and_size(made, read):
    real = np.array([image.mean(axis=(0, 1)) for sample, image in read["train"] if sample.label == 0])
    fake = np.array([image.mean(axis=(0, 1)) for sample, image in read["train"] if sample.label == 1])
    assert np.abs(real.mean(0) - fake.mean(0)).max() < real.std(0).min() / 4


def moments(numbers: range) -> list[tuple[np.random.Generator, object, object, object]]:
    found = []
    for number in numbers:
        rng = np.random.default_rng(number)
        person, scene = draw_person(rng), draw_scene(rng)
        pose = next(pose for frame in range(40) if (pose := pose_at(scene, frame)).blink == 1 and pose.mouth == 0)
        found.append((rng, person, scene, pose))
    return found


def test_landmarks_lie_on_the_dark_pupils_of_light_eyes():
    for _, person, scene, pose in moments(range(6)):
        frame = render(person, scene, pose)
        grey = frame.image.mean(axis=2)
        eye = person.eye_size * UNIT_PX * pose.size
        for x, y in frame.landmarks[:2]:
            left, top = round(float(x - eye)), round(float(y - 3))
            patch = grey[top : top + 7, left : round(float(x + eye)) + 1]
            row, column = np.unravel_index(patch.argmin(), patch.shape)
            reach = 0.35 * eye + 2.5  # gaze moves a pupil by up to .35 of the eye
            assert np.hypot(left + column - x, top + row - y) < reach
            assert patch.max() > patch.min() + 0.15


def test_landmarks_follow_the_mouth_corners():
    for _, person, scene, pose in moments(range(6)):
        frame = render(person, scene, pose)
        wider = render(replace_lips(person), scene, pose)
        changed = np.abs(wider.image - frame.image).sum(axis=2) > 0.03
        columns = np.flatnonzero(changed.any(axis=0))
        rows = np.flatnonzero(changed.any(axis=1))
        (left, left_y), (right, right_y) = frame.landmarks[3:]
        assert abs(columns[0] - left) < 5
        assert abs(columns[-1] - right) < 5
        assert rows[0] - 5 < min(left_y, right_y) < max(left_y, right_y) < rows[-1] + 5


def replace_lips(person):
    from dataclasses import replace

    return replace(person, lips=1 - person.lips)


def test_landmarks_are_image_left_first_and_upright(read):
    for sample, _ in read["train"]:
        (left, right, nose, mouth_left, mouth_right) = sample.landmarks
        assert left[0] < nose[0] < right[0]
        assert mouth_left[0] < mouth_right[0]
        assert max(left[1], right[1]) < nose[1] < min(mouth_left[1], mouth_right[1])
        x0, y0, x1, y1 = sample.box
        assert all(x0 < x < x1 and y0 < y < y1 for x, y in sample.landmarks)


@pytest.mark.parametrize(
    "wrong", [{"identities": 5}, {"frames": 0}, {"workers": 0}, {"seed": -1}, {"image_format": "gif"}]
)
def test_bad_arguments_are_refused_by_name(tmp_path, wrong):
    name = next(iter(wrong))
    with pytest.raises(InputError, match=name):
        build(tmp_path, **wrong)
    assert list(tmp_path.iterdir()) == []
