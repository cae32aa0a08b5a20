import io
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dfdet.errors import InputError, ShardSetError
from dfdet.schema import split_key
from shards.images import ImageSets, draw_split, make_sets
from shards.media.decode import MAX_PIXELS, UnusableImageError, store_image
from shards.sets.write import check_no_leak

ALL_TRAIN = (1.0, 0.0, 0.0)


def pixels(seed: int = 0, channels: int = 3, size: tuple[int, int] = (16, 16)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, channels), np.uint8)


def save(path: Path, seed: int = 0, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed)).save(path, **options)
    return path


def fill(folder: Path, count: int = 4, suffix: str = ".png") -> Path:
    for number in range(count):
        save(folder / f"{number:03d}{suffix}", number)
    return folder


@pytest.fixture
def folders(tmp_path) -> dict:
    return {
        "real": (fill(tmp_path / "real"),),
        "fake": (fill(tmp_path / "gan"),),
        "out": tmp_path / "out",
        "split": ALL_TRAIN,
    }


def rows(path: Path) -> list[dict]:
    return pq.read_table(path.with_suffix(".parquet")).to_pylist()


def payload(path: Path, row: dict) -> bytes:
    with (path.parent / f"{path.stem}-{row['shard']:06d}.tar").open("rb") as file:
        return os.pread(file.fileno(), row["size"], row["offset"])


def decoded(path: Path) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(store_image(path).data)))


# Sets


def test_folders_give_labels_and_the_method(folders):
    (made,) = make_sets(ImageSets(**folders))
    assert made.manifest.by_label == {"real": 4, "fake": 4}
    assert made.manifest.by_method == {"gan": 4, "real": 4}


def test_each_file_is_a_video_and_a_group_of_its_own(folders):
    (made,) = make_sets(ImageSets(**folders))
    found = rows(made.path)
    assert len({row["group"] for row in found}) == 8
    assert {row["group_level"] for row in found} == {"exact"}
    assert "images/real/000%2Epng/000000" in {row["key"] for row in found}


def test_paired_files_of_one_name_share_a_group(folders):
    (made,) = make_sets(ImageSets(**folders, paired=True))
    groups = {row["group"] for row in rows(made.path)}
    assert groups == {f"images/{number:03d}" for number in range(4)}


def test_paired_without_any_pair_is_refused(tmp_path, folders):
    save(tmp_path / "other" / "x.png")
    with pytest.raises(InputError, match="none of 1 fakes has a real of the same name"):
        make_sets(ImageSets(**folders | {"fake": (tmp_path / "other",)}, paired=True))


def test_default_shares_give_three_disjoint_sets(tmp_path):
    real, fake = fill(tmp_path / "real", 40), fill(tmp_path / "fake", 40)
    made = make_sets(ImageSets(real=(real,), fake=(fake,), out=tmp_path / "out"))
    assert [each.path.name for each in made] == ["images-train.json", "images-val.json", "images-test.json"]
    assert sum(each.manifest.samples for each in made) == 80
    check_no_leak([each.path for each in made])


def test_files_of_one_name_lie_in_one_split(tmp_path):
    real, fake = fill(tmp_path / "real", 40), fill(tmp_path / "fake", 40)
    for each in make_sets(ImageSets(real=(real,), fake=(fake,), out=tmp_path / "out")):
        assert each.manifest.by_label["real"] == each.manifest.by_label["fake"]


def test_added_files_move_no_others(tmp_path):
    folder = fill(tmp_path / "real", 30)
    before, after = ({}, {})
    for where in (before, after):
        for each in make_sets(ImageSets(real=(folder,), out=tmp_path / "out")):
            where.update({row["video"]: each.manifest.split for row in rows(each.path)})
        fill(folder, 60)
    assert after.items() > before.items()


def test_shares_are_met():
    drawn = [draw_split(str(number), 0, (0.7, 0.15, 0.15)) for number in range(4000)]
    for split, share in zip(("train", "val", "test"), (0.7, 0.15, 0.15), strict=True):
        assert drawn.count(split) / 4000 == pytest.approx(share, abs=0.02)


def test_seed_draws_anew():
    draws = [[draw_split(str(number), seed, (0.5, 0.5, 0.0)) for number in range(50)] for seed in range(2)]
    assert draws[0] != draws[1]


def test_equal_folders_give_equal_bytes(tmp_path, folders):
    content = []
    for name in ("a", "b"):
        make_sets(ImageSets(**folders | {"out": tmp_path / name}))
        content.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert content[0] == content[1]


def test_sets_of_a_former_division_go(folders):
    (made,) = make_sets(ImageSets(**folders | {"split": (0.0, 0.0, 1.0)}))
    assert made.path.name == "images-test.json"
    make_sets(ImageSets(**folders))
    left = {path.name for path in folders["out"].iterdir()}
    assert left == {"images-train-000000.tar", "images-train.parquet", "images-train.json"}


def test_split_that_would_be_empty_is_refused(tmp_path, folders):
    with pytest.raises(InputError, match="falls into"):
        make_sets(ImageSets(**folders | {"split": (0.98, 0.01, 0.01)}))


def test_common_size_and_scale_stand_in_the_crop_recipe(folders):
    (made,) = make_sets(ImageSets(**folders, scale=1.3))
    assert made.manifest.crop.model_dump(exclude_none=True) == {
        "template": "none",
        "scale": 1.3,
        "size_px": 16,
    }


def test_mixed_sizes_leave_the_size_open(tmp_path, folders):
    Image.new("RGB", (16, 20)).save(tmp_path / "real" / "tall.png")
    (made,) = make_sets(ImageSets(**folders))
    assert made.manifest.crop.size_px is None
    assert {(row["width"], row["height"]) for row in rows(made.path)} == {(16, 16), (16, 20)}


def test_nasty_names_survive_in_key_and_index(tmp_path):
    names = [
        "a b.png",
        "quote'\".png",
        "new\nline.png",
        "人脸.png",
        "dots..png",
        "%2F.png",
        "sub dir/x.y.png",
    ]
    for name in names:
        save(tmp_path / "real" / name)
    (made,) = make_sets(ImageSets(real=(tmp_path / "real",), out=tmp_path / "out", split=ALL_TRAIN))
    found = rows(made.path)
    assert {row["video"] for row in found} == set(names)
    assert {split_key(row["key"])[2] for row in found} == set(names)


def test_name_that_is_no_utf8_is_escaped(tmp_path):
    save(tmp_path / "real" / os.fsdecode(b"\xff.png"))
    (made,) = make_sets(ImageSets(real=(tmp_path / "real",), out=tmp_path / "out", split=ALL_TRAIN))
    assert rows(made.path)[0]["video"] == "\\xff.png"


def test_symbolic_links_are_passed_over(tmp_path, folders):
    secret = save(tmp_path / "elsewhere" / "secret.png")
    (tmp_path / "real" / "link.png").symlink_to(secret)
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real", target_is_directory=True)
    (made,) = make_sets(ImageSets(**folders))
    assert made.manifest.by_label["real"] == 4


def test_other_files_are_passed_over(tmp_path, folders):
    (tmp_path / "real" / "notes.txt").write_text("no image")
    os.mkfifo(tmp_path / "real" / "pipe.png")
    (made,) = make_sets(ImageSets(**folders))
    assert (made.manifest.by_label["real"], made.manifest.failures) == (4, ())


def test_damaged_image_is_a_failure_with_its_reason(tmp_path, folders):
    path = tmp_path / "real" / "000.png"
    path.write_bytes(path.read_bytes()[:200])
    (made,) = make_sets(ImageSets(**folders))
    (failure,) = made.manifest.failures
    assert (failure.video, failure.label) == ("images/real/000%2Epng", 0)
    assert (failure.group, failure.group_level) == ("images/real/000.png", "exact")
    assert "does not decode" in failure.reason
    assert made.manifest.by_label == {"real": 3, "fake": 4}


def test_only_damaged_images_is_an_error(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.png").write_bytes(b"no image")
    with pytest.raises(ShardSetError, match=r"no sample was added .*does not decode"):
        make_sets(ImageSets(real=(tmp_path / "real",), out=tmp_path / "out", split=ALL_TRAIN))


def test_folder_without_images_is_refused(tmp_path):
    (tmp_path / "real").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        make_sets(ImageSets(real=(tmp_path / "real",), out=tmp_path / "out"))


def test_folder_inside_another_is_refused(tmp_path):
    fill(tmp_path / "all" / "fake")
    with pytest.raises(InputError, match="taken twice"):
        make_sets(ImageSets(real=(tmp_path / "all",), fake=(tmp_path / "all" / "fake",), out=tmp_path / "o"))


def test_folders_of_one_name_are_told_apart_by_their_parents(tmp_path):
    fakes = tuple(fill(tmp_path / name / "fake", 1) for name in ("ffpp", "celeb"))
    reals = tuple(fill(tmp_path / name / "real", 1) for name in ("ffpp", "celeb"))
    (made,) = make_sets(ImageSets(real=reals, fake=fakes, out=tmp_path / "out", split=ALL_TRAIN))
    assert set(made.manifest.by_method) == {"real", "ffpp-fake", "celeb-fake"}
    assert "ffpp-real/000.png" in {row["video"] for row in rows(made.path)}


def test_methods_can_be_named(folders):
    (made,) = make_sets(ImageSets(**folders, methods=("StyleGAN 2",)))
    assert made.manifest.by_method == {"StyleGAN 2": 4, "real": 4}


def test_fake_folder_named_real_is_refused(tmp_path):
    with pytest.raises(InputError, match="--methods"):
        make_sets(ImageSets(fake=(fill(tmp_path / "x" / "real"),), out=tmp_path / "out"))


def test_reals_and_fakes_of_other_formats_are_warned_of(tmp_path, folders, caplog):
    jpegs = fill(tmp_path / "jpegs", 4, ".jpg")
    make_sets(ImageSets(**folders | {"real": (jpegs,)}))
    assert "may learn the file format" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [{"split": (0.5, 0.5, 0.5)}, {"split": (1.2, -0.2, 0)}, {"real": ()}, {"labels": Path("x.csv")}],
)
def test_impossible_options_are_refused(changes):
    with pytest.raises(InputError):
        ImageSets(**{"real": (Path("real"),), "out": Path("out")} | changes)


# Tables


def table(tmp_path: Path, text: str) -> ImageSets:
    fill(tmp_path / "faces", 4)
    (tmp_path / "faces.csv").write_text(text)
    return ImageSets(labels=tmp_path / "faces.csv", out=tmp_path / "out", split=ALL_TRAIN)


def test_table_tells_labels_groups_and_frames(tmp_path):
    text = (
        "file,label,method,video,group,identity\n"
        "faces/000.png,real,,v0,0,ann\nfaces/001.png,0,,v0,0,ann\nfaces/002.png,1,DF,v0_v1,0,ann\n"
    )
    (made,) = make_sets(table(tmp_path, text))
    found = {row["key"]: (row["label"], row["group"], row["identity"]) for row in rows(made.path)}
    assert found == {
        "images/real/v0/000000": (0, "images/0", "ann"),
        "images/real/v0/000001": (0, "images/0", "ann"),
        "images/DF/v0_v1/000000": (1, "images/0", "ann"),
    }


def test_table_tells_the_splits(tmp_path):
    made = make_sets(table(tmp_path, "file,label,split\nfaces/000.png,real,val\nfaces/001.png,fake,test\n"))
    assert [each.manifest.split for each in made] == ["val", "test"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n", r"lacks column \['file'\]"),
        ("file,label\n", "has no rows"),
        ("file,label\nfaces/000.png,maybe\n", "line 2: label 'maybe'"),
        ("file,label\n../secret.png,real\n", "inside the CSV's folder"),
        ("file,label,method\nfaces/000.png,fake,real\n", "method 'real'"),
        ("file,label,split\nfaces/000.png,real,dev\n", "split 'dev'"),
        ("file,label,group,split\nfaces/000.png,0,g,val\nfaces/001.png,1,g,test\n", "lies in one split"),
    ],
)
def test_wrong_table_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        make_sets(table(tmp_path, text))


# Images


@pytest.mark.parametrize(
    ("name", "options"), [("a.jpg", {}), ("a.JPEG", {"progressive": True}), ("a.png", {}), ("a.webp", {})]
)
def test_plain_rgb_is_kept_byte_for_byte(tmp_path, name, options):
    path = save(tmp_path / name, **options)
    stored = store_image(path)
    assert stored.data == path.read_bytes()
    assert (stored.ext, stored.width, stored.height) == (name[2:].lower().replace("jpeg", "jpg"), 16, 16)


def test_jpeg_with_a_second_picture_is_kept(tmp_path):
    first, second = (Image.fromarray(pixels(seed)) for seed in range(2))
    first.save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[second])
    stored = store_image(tmp_path / "x.jpg")
    assert (stored.ext, stored.data) == ("jpg", (tmp_path / "x.jpg").read_bytes())


def test_grey_becomes_three_equal_channels(tmp_path):
    grey = pixels(channels=1)
    Image.fromarray(grey[..., 0]).save(tmp_path / "x.png")
    assert np.array_equal(decoded(tmp_path / "x.png"), grey.repeat(3, axis=2))


def test_transparency_is_composed_over_black(tmp_path):
    data = pixels(channels=4)
    data[..., 3] = 255
    data[:4, :, 3] = 0
    Image.fromarray(data).save(tmp_path / "x.png")
    expected = data[..., :3].copy()
    expected[:4] = 0
    assert np.array_equal(decoded(tmp_path / "x.png"), expected)


def test_palette_is_resolved(tmp_path):
    image = Image.fromarray(pixels()).quantize(16)
    image.save(tmp_path / "x.png")
    assert np.array_equal(decoded(tmp_path / "x.png"), np.asarray(image.convert("RGB")))


def test_16_bit_grey_keeps_its_upper_byte(tmp_path):
    deep = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(deep).save(tmp_path / "x.png")
    assert np.array_equal(decoded(tmp_path / "x.png")[..., 0], (deep >> 8).astype(np.uint8))


def test_16_bit_colour_is_stored_with_8_bits(tmp_path):
    import cv2

    deep = np.random.default_rng(0).integers(0, 1 << 16, (16, 16, 3), np.uint16)
    cv2.imwrite(str(tmp_path / "x.png"), deep)
    stored = store_image(tmp_path / "x.png")
    assert stored.ext == "webp"
    expected = (deep[..., ::-1] >> 8).astype(int)
    assert np.abs(decoded(tmp_path / "x.png") - expected).max() <= 1


def test_cmyk_becomes_rgb(tmp_path):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # Red.
    image.save(tmp_path / "x.jpg", quality=100)
    assert np.abs(decoded(tmp_path / "x.jpg").astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_exif_rotated_is_stored_upright(tmp_path, orientation, turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = pixels(size=(8, 16))
    Image.fromarray(data).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(decoded(tmp_path / "x.png"), np.rot90(data, turns))


def test_rotated_16_bit_grey_is_stored_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = np.arange(128, dtype=np.uint16).reshape(8, 16) << 8
    Image.fromarray(deep).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(decoded(tmp_path / "x.png")[..., 0], np.rot90(deep >> 8, 3))


def test_stored_rotation_is_not_applied_twice(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels(size=(8, 16))).save(tmp_path / "x.jpg", exif=exif)
    stored = store_image(tmp_path / "x.jpg")
    assert 0x0112 not in Image.open(io.BytesIO(stored.data)).getexif()
    assert (stored.width, stored.height) == (8, 16)


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.fromarray(pixels(seed)) for seed in range(3)]
    frames[0].save(tmp_path / "x.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(decoded(tmp_path / "x.webp"), pixels(0))


@pytest.mark.parametrize("store", ["webp", "png"])
def test_lossless_formats_keep_the_pixels(tmp_path, store):
    stored = store_image(save(tmp_path / "x.bmp"), store)
    assert stored.ext == store
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(stored.data))), pixels())


def test_jpg_quality_changes_the_size(tmp_path):
    path = save(tmp_path / "x.png")
    small, large = (store_image(path, "jpg", quality) for quality in (20, 95))
    assert small.ext == "jpg"
    assert len(small.data) < len(large.data)


def test_bomb_sized_image_is_refused_before_it_is_decoded(tmp_path):
    side = int(MAX_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(tmp_path / "x.png")
    with pytest.raises(UnusableImageError, match="exceed 64 megapixels"):
        store_image(tmp_path / "x.png")


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_refused(tmp_path, data):
    (tmp_path / "x.jpg").write_bytes(data)
    with pytest.raises(UnusableImageError, match="does not decode"):
        store_image(tmp_path / "x.jpg")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UnusableImageError, match="cannot be read"):
        store_image(tmp_path / "x.jpg")


def test_float_image_without_range_is_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(UnusableImageError, match="no known range"):
        store_image(tmp_path / "x.tif")
