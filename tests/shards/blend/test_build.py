import hashlib
import io
import logging

import numpy as np
import pytest
from PIL import Image

from dfdet.data.index import failure_clusters, open_sets
from dfdet.errors import DamagedSampleError, InputError
from dfdet.schema import CropRecipe, Failure, Sample, Split
from shards.blend.build import Blend, blend_set
from shards.sets.manifest import read_manifest
from shards.sets.read import SetReader
from shards.sets.verify import verify_set
from shards.sets.write import ShardWriter

SIDE = 96
FIVE = ((37.0, 42.0), (59.0, 42.0), (48.0, 54.0), (40.0, 66.0), (56.0, 66.0))
CROP = CropRecipe(template="gend", scale=1.6, size_px=SIDE)


def picture(seed):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(50, 210, (12, 12, 3)).repeat(8, 0).repeat(8, 1)
    return np.clip(coarse + rng.normal(0, 5, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


def stored(image, ext):
    buffer = io.BytesIO()
    options = {"png": {"format": "PNG"}, "jpg": {"format": "JPEG", "quality": 83, "subsampling": 1}}[ext]
    Image.fromarray(image).save(buffer, **options)
    return buffer.getvalue()


def sample(video, frame=0, *, source="real", group="d/g", level="exact", **more):
    return Sample(
        dataset="d-v1", source=source, label=int(source != "real"), video=video, frame=frame,
        group=group, group_level=level, crop=CROP, split="train",
        **{"landmarks": FIVE, "box": (25.0, 20.0, 70.0, 78.0), "score": 0.9, **more},
    )  # fmt: skip


def write(folder, samples, ext="png", failures=()):
    split: Split = "train"
    with ShardWriter(folder, "reals", dataset="d-v1", split=split, crop=CROP, failures=failures) as writer:
        groups: dict = {}
        for number, each in enumerate(samples):
            groups.setdefault(each.group or number, []).append(
                (each, ext, stored(picture(number), ext), SIDE, SIDE)
            )
        for items in groups.values():
            writer.add_group(items)
    return writer.manifest_path


@pytest.fixture
def reals(tmp_path):
    samples = [sample(f"v{video}", frame, group=f"d/v{video}") for video in range(3) for frame in (0, 7)]
    return write(tmp_path, samples)


def contents(path):
    """Sample, extension and image bytes of a set, in its order."""
    with SetReader(path) as reader:
        return [(reader.sample(row), row.ext, reader.image(row)) for row in reader.rows]


def digests(path):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in path.parent.iterdir() if p.is_file()}


def test_each_real_gets_a_fake_in_its_group_behind_it(reals, tmp_path):
    made = blend_set(Blend(set=reals, out=tmp_path / "out"))
    assert made == tmp_path / "out" / "reals-sbi.json"
    assert verify_set(made) == []
    found = contents(made)
    assert [(each.source, each.video, each.frame) for each, *_ in found[:4]] == [
        ("real", "v0", 0), ("sbi", "v0", 0), ("real", "v0", 7), ("sbi", "v0", 7),
    ]  # fmt: skip
    assert read_manifest(made).by_label == {"real": 6, "fake": 6}
    real, fake = found[0][0], found[1][0]
    assert fake == real.model_copy(update={"source": "sbi", "label": 1})
    assert (real.group, real.group_level, real.crop) == ("d/v0", "exact", CROP)


def test_reals_keep_their_bytes_and_fakes_their_pixels_outside_of_the_face(reals, tmp_path):
    before = {each.key: data for each, _, data in contents(reals)}
    for each, ext, data in contents(blend_set(Blend(set=reals, out=tmp_path / "out"))):
        if each.source == "real":
            assert data == before[each.key]
            continue
        real = np.asarray(Image.open(io.BytesIO(before[each.key.replace("/sbi/", "/real/")])))
        fake = np.asarray(Image.open(io.BytesIO(data)))
        assert ext == "png"
        np.testing.assert_array_equal(fake[:10], real[:10])
        assert (fake != real).any()


def test_any_number_of_workers_gives_the_same_bytes(reals, tmp_path):
    made = [blend_set(Blend(set=reals, out=tmp_path / str(n), workers=n, per_real=2)) for n in (1, 2, 4)]
    assert digests(made[0]) == digests(made[1]) == digests(made[2])


def test_another_seed_gives_other_fakes(reals, tmp_path):
    one, other = (contents(blend_set(Blend(set=reals, out=tmp_path / str(s), seed=s))) for s in (0, 1))
    assert [one[n][2] == other[n][2] for n in (0, 1)] == [True, False]


def test_several_fakes_of_a_real_are_videos_of_their_own(reals, tmp_path):
    found = contents(blend_set(Blend(set=reals, out=tmp_path / "out", per_real=3, name="three")))
    fakes = [(each.video, data) for each, _, data in found if each.source == "sbi" and each.frame == 0][:3]
    assert [video for video, _ in fakes] == ["v0+0", "v0+1", "v0+2"]
    assert len({data for _, data in fakes}) == 3


def test_fakes_of_the_input_are_left_out_and_failures_of_reals_stay(tmp_path):
    lost = [
        Failure(video="d-v1/real/x", label=0, reason="no face"),
        Failure(video="d-v1/DF/y", label=1, reason="no face"),
    ]
    path = write(tmp_path, [sample("v", group="d/v"), sample("v_w", source="DF", group="d/v")], failures=lost)
    made = blend_set(Blend(set=path, out=tmp_path / "out"))
    assert read_manifest(made).by_method == {"real": 1, "sbi": 1}
    assert read_manifest(made).failures == (lost[0],)


def test_a_real_without_a_face_stays_with_the_person_of_its_former_group(tmp_path):
    known = {"group": "d/id0", "group_level": "identity"}
    lost = Failure(video="d-v1/real/x", label=0, reason="no face", **known)
    path = write(tmp_path, [sample("v", group="d/id0", level="identity")], failures=[lost])
    made = blend_set(Blend(set=path, out=tmp_path / "out"))
    (failure,), index = read_manifest(made).failures, open_sets([made])
    assert failure.identity == "id0"
    assert failure_clusters(index.failures) == ["identity/d/id0"] == list(index.clusters)


def test_real_of_no_exact_group_gets_that_of_its_video_and_keeps_the_person(tmp_path):
    samples = [
        sample("a", group=None, level="none"),
        sample("b", group="kodf/actor7", level="identity"),
        sample("c", group="kodf/actor7", level="identity", identity="p9"),
    ]
    found = contents(blend_set(Blend(set=write(tmp_path, samples), out=tmp_path / "out")))
    facts = [(each.source, each.group, each.group_level, each.identity) for each, *_ in found]
    assert facts == [
        ("real", "d-v1/a", "exact", None), ("sbi", "d-v1/a", "exact", None),
        ("real", "kodf/b", "exact", "actor7"), ("sbi", "kodf/b", "exact", "actor7"),
        ("real", "kodf/c", "exact", "p9"), ("sbi", "kodf/c", "exact", "p9"),
    ]  # fmt: skip


def test_fakes_of_jpeg_reals_are_encoded_with_the_same_tables(tmp_path):
    path = write(tmp_path, [sample("v")], ext="jpg")
    (_, _, real), (_, ext, fake) = contents(blend_set(Blend(set=path, out=tmp_path / "out")))
    one, other = Image.open(io.BytesIO(real)), Image.open(io.BytesIO(fake))
    assert ext == "jpg"
    assert one.quantization == other.quantization
    assert (
        [layer[1:3] for layer in one.layer]
        == [layer[1:3] for layer in other.layer]
        == [(2, 1), (1, 1), (1, 1)]
    )


def test_real_without_landmarks_is_kept_without_a_fake(tmp_path, caplog):
    path = write(tmp_path, [sample("a", group="d/a"), sample("b", group="d/b", landmarks=None)])
    with caplog.at_level(logging.WARNING):
        found = contents(blend_set(Blend(set=path, out=tmp_path / "out")))
    assert [(each.source, each.video) for each, *_ in found] == [("real", "a"), ("sbi", "a"), ("real", "b")]
    assert "1 reals, as 'd-v1/real/b/000000', have no landmarks that serve" in caplog.text


def test_set_without_landmarks_is_refused_with_the_remedy(tmp_path):
    path = write(tmp_path, [sample("a", landmarks=None)])
    with pytest.raises(InputError, match=r"no landmarks.*--landmarks, or make the set anew"):
        blend_set(Blend(set=path, out=tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*"))


def test_set_without_reals_is_refused(tmp_path):
    path = write(tmp_path, [sample("a", source="DF")])
    with pytest.raises(InputError, match="holds no real face"):
        blend_set(Blend(set=path, out=tmp_path / "out"))


def test_a_set_is_not_overwritten_by_its_own_fakes(reals):
    before = digests(reals)
    with pytest.raises(InputError, match="give another --name or --out"):
        blend_set(Blend(set=reals, out=reals.parent, name="reals"))
    assert digests(reals) == before


def test_damaged_real_stops_the_work_and_leaves_no_set(reals, tmp_path):
    tar = reals.with_name("reals-000000.tar")
    with SetReader(reals) as reader:
        place = reader.rows[2].offset + 50
    data = bytearray(tar.read_bytes())
    data[place] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DamagedSampleError, match=r"d-v1/real/v1/000000.*checksum"):
        blend_set(Blend(set=reals, out=tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*"))


def test_black_around_the_frame_is_not_moved_into_a_face(tmp_path):
    # The frame ends in the middle of the face: right of pixel 48 the crop is black.
    edge = {"to_crop": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), "frame_size": (49, SIDE)}
    path = write(tmp_path, [sample("v", frame, **edge) for frame in range(8)])
    for (_, _, real), (_, _, fake) in zip(
        *[iter(contents(blend_set(Blend(set=path, out=tmp_path / "out"))))] * 2, strict=True
    ):
        one, other = (np.asarray(Image.open(io.BytesIO(data))) for data in (real, fake))
        np.testing.assert_array_equal(one[:, 46:], other[:, 46:])
        assert (one[:, :46] != other[:, :46]).any()


def save(path, keys, points):
    np.savez(path, keys=np.array(keys), points=points)
    return path


def test_dense_landmarks_of_a_file_are_used(reals, tmp_path):
    rng = np.random.default_rng(0)
    keys = [each.key for each, *_ in contents(reals)]
    points = rng.uniform(30, 66, (6, 68, 2)).astype(np.float32)
    points[:, 36:48, 1], points[:, 48:, 1] = 40, 64
    file = save(tmp_path / "points.npz", keys, points)
    plain = contents(blend_set(Blend(set=reals, out=tmp_path / "plain")))
    dense = contents(blend_set(Blend(set=reals, out=tmp_path / "dense", landmarks=file)))
    assert [a[0] for a in plain] == [b[0] for b in dense]
    assert all((a[2] == b[2]) == (a[0].source == "real") for a, b in zip(plain, dense, strict=True))


@pytest.mark.parametrize(
    ("keys", "points", "reason"),
    [
        (["d-v1/real/v0/000000"], np.zeros((1, 67, 2)), r"points are float64 \[1, 67, 2\]"),
        (["d-v1/real/v0/000000"], np.full((1, 68, 2), np.nan), "not finite"),
        (["a", "a"], np.zeros((2, 81, 2)), "a key occurs twice"),
        ([1], np.zeros((1, 68, 2)), "keys are int64"),
        (["other"], np.zeros((1, 68, 2)), "names none of the 6 reals"),
    ],
)
def test_wrong_landmark_file_is_refused(reals, tmp_path, keys, points, reason):
    file = save(tmp_path / "points.npz", keys, points)
    with pytest.raises(InputError, match=reason):
        blend_set(Blend(set=reals, out=tmp_path / "out", landmarks=file))


def test_pickled_landmarks_are_refused(reals, tmp_path):
    file = save(tmp_path / "points.npz", ["k"], np.array([[{"a": 1}]], dtype=object))
    with pytest.raises(InputError, match=r"cannot be read as landmarks.*savez"):
        blend_set(Blend(set=reals, out=tmp_path / "out", landmarks=file))


def test_progress_counts_reals(reals, tmp_path):
    seen = []
    blend_set(Blend(set=reals, out=tmp_path / "out"), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 6), (4, 6), (6, 6)]
