from __future__ import annotations

import hashlib
import json
from pathlib import Path
from zlib import crc32

import numpy as np
import pyarrow.parquet as pq
import pytest

from dfdet.data.index import failure_clusters, open_sets
from dfdet.errors import ShardSetError
from dfdet.schema import CropRecipe


def edit_manifest(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite_index(path: Path, edit) -> None:
    """Writes another index and a manifest that vouches for it."""
    file = path.with_suffix(".parquet")
    pq.write_table(edit(pq.read_table(file)), file)
    data = file.read_bytes()
    entry = {"file": file.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_manifest(path, index=entry)


def test_columns_point_at_the_images_and_name_them(tmp_path, make_set):
    path = make_set(tmp_path)
    index = open_sets([path])
    assert len(index) == len(index.shard) == 4 * 3 * 3
    assert len(index.shards) > 1
    for sample, key in enumerate(index.keys(range(len(index)))):
        with index.shards[index.shard[sample]].open("rb") as tar:
            tar.seek(index.offset[sample])
            assert crc32(tar.read(index.size[sample])) == index.crc32[sample]
        dataset, source, video, frame = key.split("/")
        assert index.videos[index.video[sample]] == f"{dataset}/{source}/{video}"
        assert index.methods[index.method[sample]] == source
        assert index.label[sample] == (source != "real")
        assert index.frame[sample] == int(frame)
    assert index.exts == ("jpg", "png", "webp")
    assert index.crop.scale == 1.6 and (index.shard_scale == 1.6).all()


def test_groups_videos_and_clusters_of_two_sets_are_told_apart(tmp_path, make_set):
    paths = [make_set(tmp_path, name, dataset=name) for name in ("one", "two")]
    index = open_sets(paths)
    assert len(set(index.group.tolist())) == 8
    assert len(index.videos) == 2 * 4 * 3 == len(set(index.video.tolist()))
    # id0 covers groups 0 and 1 of a set; groups 2 and 3 stand for themselves.
    clusters = {int(g): set(index.cluster[index.group == g].tolist()) for g in set(index.group.tolist())}
    assert all(len(values) == 1 for values in clusters.values())
    assert len(set(index.cluster.tolist())) == 6
    assert index.shard.max() == len(index.shards) - 1
    assert set(index.shard[18:].tolist()).isdisjoint(index.shard[:18].tolist()) or len(index) == 72


def test_a_cluster_has_one_name_in_all_sets_that_share_it(tmp_path, make_set):
    paths = [make_set(tmp_path / name, name, dataset="demo") for name in ("one", "two")]
    one, two = (open_sets([path]) for path in paths)
    assert (
        one.clusters
        == two.clusters
        == (
            "group/demo/v2",
            "group/demo/v3",
            "identity/demo/id0",  # of groups 0 and 1
        )
    )
    both = open_sets([paths[0], make_set(tmp_path, "three", dataset="other", level="none")])
    assert set(one.clusters) < set(both.clusters)
    assert [name for name in both.clusters if "other" in name][:2] == [
        "identity/other/id0",
        "video/other/A/v2%2EA",
    ]
    assert [both.clusters[code] for code in both.cluster[: len(one)]] == [
        one.clusters[code] for code in one.cluster
    ]


def test_a_video_without_a_face_is_in_the_cluster_of_its_person_else_group_else_its_own(tmp_path, make_set):
    path, reals = make_set(tmp_path), {"label": 0, "reason": "no face"}
    lost = [
        {"video": "demo/real/x", "group": "demo/v1", "group_level": "exact", "identity": "id0", **reals},
        {"video": "demo/real/y", "group": "demo/v2", "group_level": "exact", **reals},
        {"video": "demo/real/z", **reals},  # as manifests were before groups stood in them
        {"video": "demo/real/w", "identity": "id0", **reals},
    ]
    edit_manifest(path, failures=lost)
    index = open_sets([path])
    found = failure_clusters(index.failures)
    assert found == ["identity/demo/id0", "group/demo/v2", "video/demo/real/z", "identity/demo/id0"]
    assert set(found) - set(index.clusters) == {"video/demo/real/z"}


def test_a_recompressed_set_has_the_clusters_of_its_base(tmp_path, make_set):
    names = ("demo", "demo-h264-crf40", "demo-h264")
    base, variant, other = (
        open_sets([make_set(tmp_path / name, dataset=name, level="none")]) for name in names
    )
    assert variant.clusters == base.clusters and (variant.cluster == base.cluster).all()
    assert not set(other.clusters) & set(base.clusters)


def test_without_groups_every_video_is_its_own_cluster(tmp_path, make_set):
    index = open_sets([make_set(tmp_path, level="none")])
    assert (index.group == -1).all() and not index.group_exact.any()
    alone = index.cluster[np.char.find(index.keys(range(len(index))), "v3") >= 0]
    assert len(set(alone.tolist())) == 3


def test_identity_level_groups_are_not_exact(tmp_path, make_set):
    index = open_sets([make_set(tmp_path, level="identity")])
    assert (index.group >= 0).all() and not index.group_exact.any()


def test_digest_depends_on_data_and_order_of_sets(tmp_path, make_set):
    one = make_set(tmp_path, "one", dataset="one")
    two = make_set(tmp_path, "two", dataset="two", frames=2)
    digests = {open_sets(paths).digest for paths in ([one], [two], [one, two], [two, one])}
    assert len(digests) == 4
    assert open_sets([str(one)]).digest in digests


def test_a_missing_manifest_says_unfinished_or_wrong_path(tmp_path, make_set):
    path = make_set(tmp_path)
    path.unlink()
    with pytest.raises(ShardSetError, match=r"demo.json: no such manifest: .*unfinished or the path wrong"):
        open_sets([path])


@pytest.mark.parametrize("content", ["{", "[]", '{"format_version": 2}'])
def test_an_invalid_manifest_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "demo.json"
    path.write_text(content)
    with pytest.raises(ShardSetError, match=r"demo.json: no valid manifest") as error:
        open_sets([path])
    assert "\n" not in str(error.value)


def test_a_folder_instead_of_a_manifest_is_refused(tmp_path):
    with pytest.raises(ShardSetError, match="cannot be read"):
        open_sets([tmp_path])


def test_an_index_of_other_data_is_refused(tmp_path, make_set):
    path = make_set(tmp_path)
    other = make_set(tmp_path / "other", frames=2)
    path.with_suffix(".parquet").write_bytes(other.with_suffix(".parquet").read_bytes())
    with pytest.raises(ShardSetError, match="index of other data"):
        open_sets([path])


def test_a_missing_index_is_refused(tmp_path, make_set):
    path = make_set(tmp_path)
    path.with_suffix(".parquet").unlink()
    with pytest.raises(ShardSetError, match="index cannot be read"):
        open_sets([path])


def test_a_missing_tar_is_refused(tmp_path, make_set):
    path = make_set(tmp_path)
    (tmp_path / "demo-000000.tar").unlink()
    with pytest.raises(ShardSetError, match=r"demo-000000.tar: missing"):
        open_sets([path])


def test_a_truncated_tar_is_refused(tmp_path, make_set):
    path = make_set(tmp_path)
    tar = tmp_path / "demo-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(ShardSetError, match="truncated"):
        open_sets([path])


def test_other_crop_recipes_are_refused_unless_mixed(tmp_path, make_set):
    one = make_set(tmp_path, "one", dataset="one")
    two = make_set(tmp_path, "two", dataset="two", crop=CropRecipe(template="gend", scale=1.3))
    with pytest.raises(ShardSetError, match=r"template 'gend' against 'demo'.*scale 1.3 against 1.6"):
        open_sets([one, two])
    index = open_sets([one, two], mix_crops=True)
    assert index.crop == CropRecipe()
    assert set(index.shard_scale.tolist()) == {1.3, 1.6}


def test_a_set_named_twice_is_refused(tmp_path, make_set):
    path = make_set(tmp_path)
    with pytest.raises(ShardSetError, match=r"36 sample keys occur twice, as 'demo/"):
        open_sets([path, path])


def test_no_set_at_all_is_refused():
    with pytest.raises(ShardSetError, match="no shard set given"):
        open_sets([])


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("offset", 10**9, "an image lies outside its tar"),
        ("size", 0, "an image lies outside its tar"),
        ("shard", 99, "shard numbers"),
        ("label", 3, "labels other than 0 and 1"),
        ("key", "a/b", "keys that are not"),
        ("crc32", None, "column crc32 has empty values"),
    ],
)
def test_an_index_row_that_cannot_be_is_refused(tmp_path, make_set, column, value, message):
    path = make_set(tmp_path)

    def edit(table):
        columns = table.to_pydict()
        columns[column][5] = value
        return table.from_pydict(columns, schema=table.schema)

    rewrite_index(path, edit)
    with pytest.raises(ShardSetError, match=message):
        open_sets([path])


def test_an_index_of_another_format_is_refused(tmp_path, make_set):
    path = make_set(tmp_path)
    rewrite_index(path, lambda table: table.drop_columns(["crc32"]))
    with pytest.raises(ShardSetError, match="not an index of format 1"):
        open_sets([path])


def test_rows_missing_from_the_index_are_noticed(tmp_path, make_set):
    path = make_set(tmp_path)
    rewrite_index(path, lambda table: table.slice(1))
    with pytest.raises(ShardSetError, match="35 rows, but the manifest says 36"):
        open_sets([path])
