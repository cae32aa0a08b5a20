import hashlib
import io
import json
import logging
import pickle
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from dfdet.config import Data
from dfdet.data.index import make_cache, open_sets
from dfdet.data.loader import Loader
from dfdet.data.plan import sequential_plan
from dfdet.errors import DfdetError, InputError, ShardSetError
from dfdet.schema import CropRecipe, Sample, index_schema, split_key
from shards.foreign.index import IndexTars, index_tars
from shards.sets.manifest import read_manifest
from shards.sets.verify import verify_set
from shards.sets.write import ShardWriter
from tests.shards.foreign.site import Site
from tests.shards.foreign.tarballs import member, picture, sample, write, write_by_tarfile


def index(folder: Path, *tars: Path | str, **options):
    """Manifest and rows of an index over tars."""
    path = index_tars(IndexTars(tars=tuple(map(str, tars)), out=folder / "out", **options))
    assert path == folder / "out" / f"{options.get('name', 'tars')}.json"
    manifest = read_manifest(path)
    table = pq.read_table(path.parent / manifest.index.file)
    assert table.schema.equals(index_schema())
    return manifest, table.to_pylist()


def refusal(kind: type[DfdetError], folder: Path, *tars: Path | str, **options) -> str:
    with pytest.raises(kind) as caught:
        index(folder, *tars, **options)
    assert "\n" not in str(caught.value)
    assert not (folder / "out" / "tars.json").exists()
    return str(caught.value)


def two(folder: Path) -> Path:
    return write(folder / "a.tar", sample("x", 0, 1), sample("y", 1, 2, "jpg"))


def test_rows_point_at_the_bytes_and_say_what_they_are(tmp_path):
    path = two(tmp_path)
    manifest, rows = index(tmp_path, path)
    data = path.read_bytes()
    for row, (ext, seed) in zip(rows, [("png", 1), ("jpg", 2)], strict=True):
        payload = data[row["offset"] : row["offset"] + row["size"]]
        assert payload == picture(seed, ext) and row["crc32"] == zlib.crc32(payload)
        assert (row["ext"], row["width"], row["height"], row["shard"]) == (ext, 24, 16, 0)
    assert [row["key"] for row in rows] == ["tars/real/x/000000", "tars/fake/y/000000"]
    assert [row["label"] for row in rows] == [0, 1]
    assert manifest.by_label == {"real": 1, "fake": 1} and manifest.by_method == {"fake": 1, "real": 1}
    assert manifest.crop == CropRecipe() and manifest.split == "all" and manifest.dataset == "tars"


def test_a_tar_elsewhere_is_told_by_its_absolute_path(tmp_path):
    path = two(tmp_path)
    (entry,) = index(tmp_path, path)[0].shards
    data = path.read_bytes()
    assert (entry.file, entry.url) == ("a.tar", str(path))
    assert (entry.bytes, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def delivered(manifest: Path, cache: Path) -> dict[str, np.ndarray]:
    """Pixels by key, as training gets them."""
    opened = open_sets([manifest], cache=make_cache(Data(cache_dir=str(cache))))
    settings = {"crop_scale": 1.3, "augment": None, "seed": 0, "threads": 1, "prefetch": 1, "max_damaged": 0}
    with Loader(opened, on_damage="raise", **settings) as loader:
        plan = sequential_plan(len(opened), len(opened))
        (batch,) = loader.batches(plan, epoch=0, rank=0, world=1)
        return dict(zip(opened.keys(batch.ids), batch.images.numpy().copy(), strict=True))


@pytest.mark.parametrize("ranges", [True, False])
def test_training_reads_tars_where_they_lie_on_disk_and_on_the_web(tmp_path, ranges):
    near = write(tmp_path / "near.tar", sample("x", 0, 1))
    far = write(tmp_path / "far.tar", sample("y", 1, 2), sample("z", 1, 3))
    with Site(far.read_bytes(), ranges) as site:
        entries = index(tmp_path, near, site.url)[0].shards
        assert [(entry.file, entry.url) for entry in entries] == [
            ("near.tar", str(near)),
            ("a.tar", site.url),
        ]
        images = delivered(tmp_path / "out" / "tars.json", tmp_path / "cache")
    for key, seed in (("real/x", 1), ("fake/y", 2), ("fake/z", 3)):
        wanted = np.asarray(Image.open(io.BytesIO(picture(seed))))[:, 4:20]
        assert np.array_equal(images[f"tars/{key}/000000"], wanted)


def test_tars_of_one_name_get_names_of_their_own_and_one_beside_keeps_its(tmp_path):
    paths = [tmp_path / folder / "a.tar" for folder in ("b", "c", "out")]
    for number, path in enumerate(paths):
        path.parent.mkdir()
        write(path, sample(f"k{number}", 0))
    entries = index(tmp_path, *paths)[0].shards
    assert [entry.url for entry in entries] == [str(paths[0]), str(paths[1]), None]
    assert entries[2].file == "a.tar" and len({entry.file for entry in entries}) == 3


def test_tars_are_left_as_they_were(tmp_path):
    path = two(tmp_path)
    before = path.read_bytes(), path.stat().st_mtime_ns
    index(tmp_path, path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def own_set(folder: Path) -> Path:
    crop = CropRecipe(template="demo", scale=1.6, size_px=16)
    writer = ShardWriter(folder, "own", dataset="my set", split="val", crop=crop, max_shard_bytes=20_000)
    with writer:
        for number in range(5):
            writer.add_group(
                (
                    Sample(
                        dataset="my set", source=source, label=int(source != "real"), video=f"v {number}",
                        frame=frame, group=f"my/{number}", group_level="exact", identity=f"p{number // 2}",
                        crop=crop, split="val",
                    ),
                    "png", picture(number * 10 + frame, size=(16, 16)), 16, 16,
                )
                for source in ("real", "DF")
                for frame in range(2)
            )  # fmt: skip
    return folder / "own.json"


def test_our_own_tars_give_the_rows_and_manifest_of_their_own_index(tmp_path):
    ours = own_set(tmp_path / "own")
    tars = sorted((tmp_path / "own").glob("*.tar"))
    assert len(tars) > 1
    manifest, rows = index(tmp_path, *tars, name="own")
    own = read_manifest(ours)
    assert rows == pq.read_table(tmp_path / "own" / own.index.file).to_pylist()
    told = [entry.model_copy(update={"url": None}) for entry in manifest.shards]
    assert manifest.model_copy(update={"shards": tuple(told)}) == own


def test_an_index_made_beside_our_own_tars_is_sound(tmp_path):
    own_set(tmp_path / "out")
    tars = sorted((tmp_path / "out").glob("*.tar"))
    index(tmp_path, *tars, name="again")
    assert verify_set(tmp_path / "out" / "again.json") == []


def test_members_of_a_sample_may_lie_anywhere(tmp_path):
    keys = [f"k{number}" for number in range(20)]
    parts = [member(f"{key}.json", b'{"label": %d}' % (number % 2)) for number, key in enumerate(keys)]
    parts += [member(f"{key}.txt", b"a caption") for key in keys]
    parts += [member(f"{key}.png", picture(number)) for number, key in enumerate(keys)]
    order = np.random.default_rng(0).permutation(len(parts))
    path = write(tmp_path / "a.tar", *(parts[number] for number in order))
    _, rows = index(tmp_path, path)
    assert {row["video"]: row["label"] for row in rows} == {f"k{n}": n % 2 for n in range(20)}
    assert [row["offset"] for row in rows] == sorted(row["offset"] for row in rows)
    for row in rows:
        payload = path.read_bytes()[row["offset"] : row["offset"] + row["size"]]
        assert payload == picture(int(row["video"][1:]))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_keys_are_those_of_webdataset(tmp_path, form):
    names = ["a.b/c.jpg", "d/e.f/long" + "x" * 80 + ".jpg", "g.jpg", "./h.jpg", "ü/i j.jpg"]
    members = {}
    for number, name in enumerate(names):
        key = name[: name.index(".", name.rindex("/") + 1 if "/" in name else 0)]
        members |= {
            name: picture(number, "jpg"),
            f"{key}.cls": b"1",
            f"{key}.face.npy": b"",
            f"{key}.txt": b"",
        }
    path = write_by_tarfile(tmp_path / "a.tar", members, form)
    theirs = [each["__key__"] for each in webdataset.WebDataset(str(path), shardshuffle=False)]
    _, rows = index(tmp_path, path)
    assert [row["video"] for row in rows] == [key.removeprefix("./") for key in theirs]
    assert [split_key(row["key"])[2] for row in rows] == [row["video"] for row in rows]


@pytest.mark.parametrize("ext", ["jpg", "jpeg", "JPG", "png", "webp"])
def test_images_of_every_extension_are_taken(tmp_path, ext):
    path = write(
        tmp_path / "a.tar", member(f"k.{ext}", picture(0, ext.lower())), member("k.json", b'{"label":1}')
    )
    (row,) = index(tmp_path, path)[1]
    assert row["ext"] == ext.lower().replace("jpeg", "jpg")


def test_the_size_is_that_of_the_image_as_shown(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    path = write(
        tmp_path / "a.tar", member("k.jpg", picture(0, "jpg", (30, 20), exif=exif)), member("k.cls", b"0")
    )
    (row,) = index(tmp_path, path)[1]
    assert (row["width"], row["height"]) == (20, 30)


def test_groups_videos_and_persons_come_from_the_json(tmp_path):
    facts = {"video": "v", "group": "g", "identity": "p", "dataset": "ds", "split": "train"}
    path = write(
        tmp_path / "a.tar",
        sample("x", 0, 1, frame=5, **facts),
        sample("y", 1, 2, frame=6, method="DF", **facts),
    )
    manifest, rows = index(tmp_path, path)
    assert [row["key"] for row in rows] == ["ds/real/v/000005", "ds/DF/v/000006"]
    assert {(row["group"], row["group_level"], row["identity"]) for row in rows} == {("ds/g", "exact", "p")}
    assert (manifest.dataset, manifest.split) == ("ds", "train")


def test_frames_without_number_are_numbered_within_their_video_over_all_tars(tmp_path):
    tars = [
        write(tmp_path / f"{n}.tar", *(sample(f"{n}{k}", 1, video=video) for k, video in enumerate("vwv")))
        for n in range(2)
    ]
    keys = [row["key"] for row in index(tmp_path, *tars)[1]]
    frames = ["v/000000", "w/000000", "v/000001", "v/000002", "w/000001", "v/000003"]
    assert keys == [f"tars/fake/{name}" for name in frames]


def test_json_and_cls_that_disagree_are_refused_unless_one_is_named(tmp_path):
    path = write(tmp_path / "a.tar", sample("k", 1), member("k.cls", b"0"))
    assert "'k': its JSON and .cls say both" in refusal(InputError, tmp_path, path)
    assert index(tmp_path, path, label_from="json", name="j")[1][0]["label"] == 1
    assert index(tmp_path, path, label_from="cls", name="c")[1][0]["label"] == 0


def test_a_sample_that_cannot_be_used_is_lost_to_its_group_and_person(tmp_path):
    known = {"group": "007", "group_level": "identity", "identity": "ann"}
    told = {"label": 1, "video": "lost", **known}
    path = write(
        tmp_path / "a.tar", sample("good", 0, **known), member("bare.json", json.dumps(told).encode())
    )
    manifest, (row,) = index(tmp_path, path)
    (failure,) = manifest.failures
    assert failure.video == "tars/fake/lost"
    assert (failure.group, failure.group_level, failure.identity) == ("tars/007", "identity", "ann")
    assert failure.group == row["group"]


def test_a_method_against_the_label_is_refused(tmp_path):
    path = write(tmp_path / "a.tar", sample("k", 0, method="DF"))
    assert "'k': its label is 0 and its method 'DF'" in refusal(InputError, tmp_path, path)
    assert index(tmp_path, path, methods=False)[1][0]["method"] == "real"


def test_folders_of_the_tar_tell_labels_if_asked(tmp_path):
    path = write(tmp_path / "a.tar", member("real/a.png", picture(0)), member("fake/a.png", picture(1)))
    assert "has no label" in refusal(InputError, tmp_path, path, max_unusable=1)
    rows = index(tmp_path, path, label_from="name")[1]
    assert [(row["key"], row["label"]) for row in rows] == [
        ("tars/real/real%2Fa/000000", 0),
        ("tars/fake/fake%2Fa/000000", 1),
    ]


def test_samples_that_cannot_be_used_are_listed_with_their_reasons(tmp_path):
    path = write(
        tmp_path / "a.tar",
        sample("good", 0, 1),
        member("bare.json", b'{"label": 0}'),
        sample("double", 1, 2) + member("double.jpg", picture(3, "jpg")),
        sample("half", 1, 4, video="v", frame=0),
        member("cut.png", picture(5)[:-30]) + member("cut.json", b'{"label": 1, "video": "v", "frame": 1}'),
        member("mute.png", picture(6)),
        member("odd.png", picture(7)) + member("odd.json", b"["),
    )
    manifest, rows = index(tmp_path, path)
    assert [row["video"] for row in rows] == ["good", "v"]
    assert [(each.video, each.label, each.reason) for each in manifest.failures] == [
        ("tars/real/bare", 0, "has no images"),
        ("tars/fake/double", 1, "has 2 images"),
    ]
    (short,) = manifest.shortfalls
    assert (short.video, short.label, short.asked, short.faces) == ("tars/fake/v", 1, 2, 1)
    assert "does not decode" in short.reason
    assert manifest.missing == (
        "a.tar: sample 'mute' has no label",
        "a.tar: sample 'odd' its JSON cannot be read",
    )


def test_unusable_samples_beyond_the_bound_are_refused(tmp_path):
    path = write(tmp_path / "a.tar", sample("x", 0), *(member(f"{n}.cls", b"0") for n in range(4)))
    assert "over 3 samples are unusable" in refusal(InputError, tmp_path, path, max_unusable=3)
    assert len(index(tmp_path, path, max_unusable=4)[1]) == 1


def test_an_image_cut_in_its_last_part_is_found_by_decoding_only(tmp_path):
    path = write(
        tmp_path / "a.tar",
        sample("x", 0),
        member("y.jpg", picture(1, "jpg", (64, 64))[:-200]) + member("y.cls", b"1"),
    )
    assert len(index(tmp_path, path)[0].failures) == 1
    assert len(index(tmp_path, path, decode=False, name="quick")[1]) == 2


def test_a_png_whose_own_checksum_is_wrong_is_found(tmp_path):
    data = bytearray(picture(1))
    data[data.index(b"IDAT") - 5] ^= 1  # The checksum of the header chunk's end.
    path = write(tmp_path / "a.tar", sample("x", 0), member("y.png", bytes(data)), member("y.cls", b"1"))
    assert len(index(tmp_path, path)[0].failures) == 1


def test_animations_and_other_formats_are_unusable(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    moving, gif = io.BytesIO(), io.BytesIO()
    frames[0].save(moving, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    frames[0].save(gif, "GIF")
    path = write(
        tmp_path / "a.tar",
        sample("x", 0),
        member("y.webp", moving.getvalue()) + member("y.cls", b"1"),
        member("z.png", gif.getvalue()) + member("z.cls", b"1"),
    )
    reasons = [each.reason for each in index(tmp_path, path)[0].failures]
    assert "animation" in reasons[0] and "no JPEG, PNG or WebP" in reasons[1]


class Bomb:
    def __reduce__(self):
        return exec, ("open('bomb-went-off', 'w')",)


def test_pickle_members_are_never_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bomb, array = pickle.dumps(Bomb()), io.BytesIO()
    np.save(array, np.array([Bomb()], object), allow_pickle=True)
    parts = [member(f"k.{ext}", bomb) for ext in ("pyd", "pkl", "pickle", "pth", "pt", "cls.pyd", "json.pkl")]
    parts += [member("k.npy", array.getvalue()), member("b.png", bomb), member("b.cls", bomb)]
    path = write(tmp_path / "a.tar", sample("k", 0), *parts, member("c.json", bomb))
    assert [row["video"] for row in index(tmp_path, path)[1]] == ["k"]
    assert not (tmp_path / "bomb-went-off").exists()
    pickle.loads(bomb)
    assert (tmp_path / "bomb-went-off").exists()


@pytest.mark.parametrize(
    ("name", "video"),
    [
        (b"../../etc/passwd", "../../etc/passwd"),
        (b"/etc/cron", "/etc/cron"),
        (b"a\nb", "a\nb"),
        (b"\xff\xfe", "\\xff\\xfe"),
        (b"~root/x", "~root/x"),
        (b"a%2Fb", "a%2Fb"),
        (b"a b;$(touch x)", "a b;$(touch x)"),
    ],
)
def test_hostile_names_become_harmless_keys(tmp_path, name, video):
    before = sorted(tmp_path.rglob("*"))
    path = write(tmp_path / "a.tar", member(name + b".png", picture(0)), member(name + b".cls", b"0"))
    (row,) = index(tmp_path, path)[1]
    part = row["key"].split("/")[2]
    assert row["key"].count("/") == 3 and all(char.isalnum() or char in "%_+-" for char in part)
    assert split_key(row["key"])[2] == row["video"] == video
    assert {each.name for each in tmp_path.rglob("*")} - {each.name for each in before} == {
        "a.tar", "out", "tars.json", "tars.parquet",
    }  # fmt: skip


def test_links_and_hidden_files_are_passed_over_and_counted(tmp_path, caplog):
    parts = [member("l.png", kind=b"2"), member("d/", kind=b"5"), member("._x.png", b"mac"), member("f")]
    path = write(tmp_path / "a.tar", sample("x", 0), *parts)
    with caplog.at_level(logging.INFO):
        assert len(index(tmp_path, path)[1]) == 1
    assert "'no file': 2" in caplog.text and "'hidden': 2" in caplog.text


def test_all_damaged_tars_are_named_at_once(tmp_path):
    good, data = two(tmp_path), two(tmp_path).read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[:700])
    (tmp_path / "bad.tar").write_bytes(b"X" + data[1:])
    found = refusal(
        ShardSetError, tmp_path, tmp_path / "cut.tar", good, tmp_path / "bad.tar", tmp_path / "none.tar"
    )
    assert "3 of 4 tars" in found
    assert all(
        word in found for word in ("cut.tar is cut off", "bad.tar has a damaged", "none.tar cannot be")
    )


def test_damaged_tars_are_left_out_whole_and_listed_if_asked(tmp_path):
    good, data = two(tmp_path), two(tmp_path).read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[:-1024])
    manifest, rows = index(tmp_path, tmp_path / "cut.tar", good, on_damage="skip")
    assert [entry.file for entry in manifest.shards] == ["a.tar"] and {row["shard"] for row in rows} == {0}
    assert len(manifest.missing) == 1 and "cut.tar is cut off" in manifest.missing[0]


def test_a_tar_without_samples_is_refused(tmp_path):
    assert "has no sample" in refusal(ShardSetError, tmp_path, write(tmp_path / "a.tar", member("a.txt")))


def test_keys_that_meet_are_refused_unless_told_apart_by_their_tars(tmp_path):
    tars = [write(tmp_path / f"{name}.tar", sample("0001", 0, 1)) for name in "ab"]
    assert "keys occur twice, as 'tars/real/0001/000000'" in refusal(ShardSetError, tmp_path, *tars)
    rows = index(tmp_path, *tars, by_tar=True)[1]
    assert [row["video"] for row in rows] == ["a/0001", "b/0001"]


def test_a_tar_named_twice_is_refused(tmp_path):
    assert "named 2 times" in refusal(InputError, tmp_path, two(tmp_path), two(tmp_path))


def test_mixed_datasets_are_refused_unless_named_as_one(tmp_path):
    path = write(tmp_path / "a.tar", sample("x", 0, dataset="a"), sample("y", 0, dataset="b"))
    assert "several datasets (a, b)" in refusal(InputError, tmp_path, path)
    manifest, rows = index(tmp_path, path, dataset="c")
    assert manifest.dataset == "c" and {row["key"].split("/")[0] for row in rows} == {"c"}


def test_a_split_against_the_json_is_refused(tmp_path):
    path = write(tmp_path / "a.tar", sample("x", 0, split="test"))
    assert "--split train, but samples say test" in refusal(InputError, tmp_path, path, split="train")
    assert index(tmp_path, path, split="all")[0].split == "all"


def test_samples_cut_in_several_ways_are_refused(tmp_path):
    own = Sample(dataset="tars", source="real", label=0, video="v", frame=0, crop=CropRecipe(template="gend"))
    path = write(
        tmp_path / "a.tar",
        sample("x", 0),
        member("v.png", picture(0)) + member("v.json", own.model_dump_json().encode()),
    )
    assert "cut in several ways" in refusal(InputError, tmp_path, path)


def test_the_scale_of_crops_may_be_told(tmp_path):
    square = member("k.png", picture(0, size=(16, 16))) + member("k.json", json.dumps({"label": 0}).encode())
    manifest, _ = index(tmp_path, write(tmp_path / "a.tar", square), scale=1.3)
    assert manifest.crop == CropRecipe(scale=1.3, size_px=16)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a\\b", "a\n"])
def test_names_that_are_paths_are_refused(tmp_path, name):
    assert "--name" in refusal(InputError, tmp_path, two(tmp_path), name=name)


def test_a_former_set_stays_unless_it_is_to_be_replaced(tmp_path):
    index(tmp_path, two(tmp_path))
    with pytest.raises(InputError, match="exists"):
        index(tmp_path, two(tmp_path))
    path = write(tmp_path / "b.tar", sample("z", 1))
    assert len(index(tmp_path, path, overwrite=True)[1]) == 1
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["tars.json", "tars.parquet"]


def test_a_refused_index_leaves_nothing_behind(tmp_path):
    tars = [write(tmp_path / f"{name}.tar", sample("0001", 0, 1)) for name in "ab"]
    refusal(ShardSetError, tmp_path, *tars)
    assert list((tmp_path / "out").iterdir()) == []


def test_progress_is_told_after_each_tar(tmp_path):
    tars = [str(write(tmp_path / f"{n}.tar", sample(f"k{n}", 0))) for n in range(5)]
    seen = []
    options = IndexTars(tars=tuple(tars), out=tmp_path / "out", threads=2)
    index_tars(options, progress=lambda done, total: seen.append((done, total)), written_by="a test")
    assert seen == [(n, 5) for n in range(1, 6)]
    assert read_manifest(tmp_path / "out" / "tars.json").written_by == "a test"
