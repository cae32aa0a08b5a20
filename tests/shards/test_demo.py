import dataclasses
import hashlib
import io
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dfdet.errors import InputError
from shards.demo.build import build, persons_of, plan_set
from shards.demo.forge import draw_forgery
from shards.demo.methods import HELDOUT_METHODS, TRAINING_METHODS
from shards.demo.people import SCALE, SIDE_PX, draw_person, draw_scene, pose_at
from shards.demo.render import paint, render
from shards.demo.video import METHODS, encode, shoot
from shards.progress import show_progress
from shards.sets.manifest import read_manifest
from shards.sets.verify import verify_set
from shards.sets.write import check_no_leak

SIZE = {"identities": 6, "takes": 1, "frames": 2}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("demo"), workers=1, **SIZE)


@pytest.fixture(scope="module")
def rows(built):
    return {name: pq.read_table(path.with_suffix(".parquet")).to_pylist() for name, path in built.items()}


def digests(paths):
    folder = paths["train"].parent
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def plan(name="train", **changes):
    return dataclasses.replace(plan_set(name, 0, 6, 1, 2, "webp")[0], **changes)


def moment(seed, **pose):
    rng = np.random.default_rng(seed)
    person, scene = draw_person(rng), draw_scene(rng)
    return person, scene, dataclasses.replace(pose_at(scene, 0), blink=1.0, gaze=0.0, **pose)


def near(image, point):
    x, y = np.rint(point).astype(int)
    return image[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3)


def test_any_number_of_workers_and_any_folder_give_the_same_bytes(built, tmp_path):
    for workers in (1, 2):
        assert digests(build(tmp_path / str(workers), workers=workers, **SIZE)) == digests(built)


def test_another_seed_gives_other_bytes(built, tmp_path):
    other = digests(build(tmp_path, seed=1, workers=1, **SIZE))
    assert other.keys() == digests(built).keys()
    assert not set(other.values()) & set(digests(built).values())


def test_a_finished_build_is_kept_and_other_arguments_build_again(tmp_path):
    steps = []
    size = {"identities": 6, "frames": 1, "workers": 1}
    paths = build(tmp_path, progress=lambda *step: steps.append(step), **size)
    assert steps == [(done, 6) for done in range(1, 7)]
    files = sorted(tmp_path.iterdir())
    times = [path.stat().st_mtime_ns for path in files]
    assert build(tmp_path, progress=lambda *step: steps.append(step), **size) == paths
    assert [path.stat().st_mtime_ns for path in files] == times
    assert len(steps) == 6
    before = digests(paths)
    build(tmp_path, seed=1, progress=lambda *step: steps.append(step), **size)
    assert len(steps) == 12
    assert not set(digests(paths).values()) & set(before.values())


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_build_leaves_no_unfinished_set_and_is_completed(built, tmp_path, workers):
    def stop(done, total):
        if done == 3:  # train has 2 videos, val 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, workers=workers, progress=stop, **SIZE)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".json"] == ["train.json"]
    assert not list(tmp_path.glob("val*"))
    steps = []
    paths = build(tmp_path, workers=1, progress=lambda *step: steps.append(step), **SIZE)
    assert steps[-1] == (4, 4)
    assert digests(paths) == digests(built)


@pytest.mark.parametrize(
    "changes", [{"identities": 5}, {"takes": 0}, {"frames": 0}, {"workers": 0}, {"seed": -1}]
)
def test_arguments_out_of_range_are_refused(tmp_path, changes):
    with pytest.raises(InputError, match=rf"{next(iter(changes))}=.*at least"):
        build(tmp_path, **changes)
    with pytest.raises(InputError, match="image_format='gif'"):
        build(tmp_path, image_format="gif")


@pytest.mark.parametrize("identities", [6, 7, 50, 340])
def test_persons_are_shared_out_without_rest(identities):
    ranges = [persons_of(name, identities) for name in ("train", "val", "heldout")]
    assert sorted(person for each in ranges for person in each) == list(range(identities))
    assert min(map(len, ranges)) >= 2


def test_donors_are_other_persons_of_the_same_set():
    for name in ("train", "val", "heldout"):
        for each in plan_set(name, 0, 20, 3, 1, "webp"):
            assert each.donor in persons_of(name, 20)
            assert each.donor != each.identity


def test_sets_are_sound_and_share_no_identity(built, rows):
    check_no_leak(built.values())
    for path in built.values():
        assert verify_set(path) == []
    assert len({row["identity"] for each in rows.values() for row in each}) == 6


def test_every_fake_has_its_real_and_the_held_out_method_is_only_held_out(rows):
    expected = {"train": set(TRAINING_METHODS), "val": set(TRAINING_METHODS), "heldout": set(HELDOUT_METHODS)}
    assert not set(TRAINING_METHODS) & set(HELDOUT_METHODS)
    for name, each in rows.items():
        moments = {}
        for row in each:
            moments.setdefault((row["group"], row["video"], row["frame"]), set()).add(row["method"])
        assert len(moments) == 4
        assert all(methods == {"real"} | expected[name] for methods in moments.values())
        assert all(row["label"] == (row["method"] != "real") for row in each)


def test_the_manifest_tells_the_crop_and_how_to_make_it_again(built):
    for name, path in built.items():
        manifest = read_manifest(path)
        assert (manifest.crop.scale, manifest.crop.size_px) == (SCALE, SIDE_PX) == (1.6, 160)
        assert manifest.split == {"heldout": "test"}.get(name, name)
        assert "seed=0 identities=6 takes=1 frames=2" in manifest.written_by
        assert not manifest.failures


def test_the_box_is_the_crop_divided_by_its_scale():
    widths, heights = [], []
    for seed in range(30):
        x0, y0, x1, y1 = render(*moment(seed)).box
        widths.append(x1 - x0)
        heights.append(y1 - y0)
    assert np.mean(heights) == pytest.approx(SIDE_PX / SCALE, rel=0.1)
    assert 0.6 < np.mean(widths) / np.mean(heights) < 1


@pytest.mark.parametrize("seed", range(6))
def test_eyes_and_mouth_are_where_the_landmarks_say(seed):
    person, scene, pose = moment(seed)
    shape = {"beard": 0.0, "hairline": -0.78}
    green, red = np.array([0, 1, 0], np.float32), np.array([1, 0, 0], np.float32)
    painted = dataclasses.replace(person, iris=green, lips=red, **shape)
    lit = dataclasses.replace(scene, tint=np.ones(3, np.float32))
    grey = dataclasses.replace(painted, iris=green * 0, lips=red * 0)
    frame = render(painted, lit, pose)
    change = frame.image - render(grey, lit, pose).image
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX]
    for channel, points in ((1, frame.landmarks[:2]), (0, frame.landmarks[3:].mean(0)[None])):
        weight = np.clip(change[..., channel], 0, None)
        for point in points:
            around = weight * (np.hypot(x - point[0], y - point[1]) < 12)
            assert around.sum() > 1
            centre = np.array([(around * x).sum(), (around * y).sum()]) / around.sum()
            assert np.abs(centre - point).max() < 3.5
    reach = np.flatnonzero((change[..., 0] > 0.05).any(0))
    corners = sorted(frame.landmarks[3:, 0])
    assert abs(reach[0] - corners[0]) < 6
    assert abs(reach[-1] - corners[1]) < 6


def test_landmarks_follow_the_pose():
    person, scene, pose = moment(0, x=0.0, y=0.0, roll=0.0, yaw=0.0, pitch=0.0, size=1.0)
    still = render(person, scene, pose).landmarks
    assert still[0, 0] < still[2, 0] < still[1, 0]
    assert still[0, 1] == pytest.approx(still[1, 1])
    moved = render(person, scene, dataclasses.replace(pose, x=3.0, y=-2.0)).landmarks
    np.testing.assert_allclose(moved - still, np.tile([3, -2], (5, 1)), atol=1e-4)
    rolled = render(person, scene, dataclasses.replace(pose, roll=0.1)).landmarks
    across = rolled[1] - rolled[0]
    assert np.arctan2(across[1], across[0]) == pytest.approx(0.1, abs=1e-4)
    turned = render(person, scene, dataclasses.replace(pose, yaw=0.2)).landmarks
    assert (turned[:, 0] > still[:, 0] + 3).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_fake_differs_from_its_real_within_the_face_alone(method):
    ratios = []
    for identity in range(4):
        for shot in shoot(plan(identity=identity, donor=identity + 1)):
            rng = np.random.default_rng(identity)
            fake = METHODS[method](shot, draw_forgery(rng), rng)
            change = np.abs(fake - shot.recorded).mean(-1)
            inside = np.hypot(shot.frame.u, shot.frame.v) < 0.5
            outside = np.hypot(shot.frame.u, shot.frame.v - 0.1) > 1.05
            assert change[inside].mean() > 0.003
            ratios.append(change[outside].mean() / change[inside].mean())
    assert max(ratios) < 0.02


def test_paint_is_alpha_blending():
    rng = np.random.default_rng(0)
    image, colour = rng.random((2, 9, 7, 3), dtype=np.float32)
    mask = np.zeros((9, 7), np.float32)
    assert np.array_equal(paint(image, colour, mask), image)
    mask[2:5, 3:6] = rng.random((3, 3), dtype=np.float32)
    before = image.copy()
    for each in (colour, colour[0, 0]):
        assert np.array_equal(paint(image, each, mask), image + (each - image) * mask[..., None])
    assert np.array_equal(image, before)


@pytest.mark.parametrize("image_format", ["webp", "png"])
def test_lossless_formats_keep_every_pixel(image_format):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert np.array_equal(Image.open(io.BytesIO(encode(image, image_format))), image)


def test_progress_is_a_line_each_tenth_with_rate_and_time_left_without_a_terminal(capsys):
    with show_progress("videos") as progress:
        for done in range(1, 26):
            progress(done, 25)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert re.fullmatch(r"videos: 3 of 25, [0-9.e+]+/s, 0:00:00 left", lines[0])
    assert re.fullmatch(r"videos: 25 of 25, [0-9.e+]+/s", lines[-1])
