import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from dfdet.data.index import open_sets
from dfdet.errors import DfdetError, InputError
from dfdet.evaluation.bootstrap import Resampling, weights, words
from dfdet.evaluation.scored import Scored, pool, read
from dfdet.evaluation.summary import Settings, summarise
from dfdet.schema import CropRecipe, Failure, Sample
from shards.sets.write import ShardWriter
from tests.dfdet.data.pictures import encode, picture
from tests.dfdet.evaluation.scored_sets import lost, scored_set


@pytest.fixture
def index(tmp_path):
    """Two groups of a real video and a fake of two frames each, and two failures."""
    crop = CropRecipe(template="demo", scale=1.6, size_px=32)
    with ShardWriter(tmp_path, "demo", dataset="demo", split="all", crop=crop) as writer:
        for group in range(2):
            writer.add_group(
                (
                    Sample(
                        dataset="demo",
                        source=source,
                        label=int(source != "real"),
                        video=f"v{group}",
                        frame=frame,
                        group=f"demo/v{group}",
                        group_level="exact",
                        crop=crop,
                    ),
                    "png",
                    encode(picture(group, 32, 32), "png"),
                    32,
                    32,
                )
                for source in ("real", "Deep.Fakes")
                for frame in (0, 5)
            )
    found = open_sets([tmp_path / "demo.json"])
    failures = (
        Failure(video="demo/Deep%2EFakes/v9", label=1, reason="no face"),
        Failure(video="demo/real/v9", label=0, reason="damaged"),
        Failure(video="demo/real/v9", label=0, reason="again"),
        Failure(video="demo/real/v0", label=0, reason="but it has faces"),
    )
    return dataclasses.replace(found, failures=failures)


def test_rows_follow_the_index_whatever_the_order_of_the_scores(index):
    ids = np.array([6, 1, 0, 7, 2, 3, 5, 4])
    scored = Scored.of("demo", index, ids, ids / 10, ids * 1.0, checkpoint="c")
    assert scored.frames["key"].to_pylist() == index.keys(range(8))
    assert scored.column("score") == pytest.approx(np.arange(8) / 10)
    assert scored.column("logit").tolist() == list(range(8))
    assert scored.column("frame").tolist() == [0, 5] * 4
    videos = [key.rsplit("/", 1)[0] for key in index.keys(range(8))]
    assert scored.frames["video"].to_pylist() == videos
    assert scored.frames["method"].to_pylist() == ["real", "real", "Deep.Fakes", "Deep.Fakes"] * 2
    assert scored.column("label").tolist() == [0, 0, 1, 1] * 2
    assert (scored.set_fingerprint, scored.checkpoint, scored.name) == (index.digest, "c", "demo")


def test_clusters_are_those_of_the_index(index):
    scored = Scored.of("demo", index, range(8), np.zeros(8), np.zeros(8), checkpoint="c")
    assert scored.frames["cluster"].to_pylist() == ["group/demo/v0"] * 4 + ["group/demo/v1"] * 4


def test_failures_are_undetected_once_with_their_decoded_method(index):
    found = Scored.of("demo", index, range(8), np.zeros(8), np.zeros(8), checkpoint="c").undetected
    assert [(video.video, video.label, video.method, video.reason) for video in found] == [
        ("demo/Deep%2EFakes/v9", 1, "Deep.Fakes", "no face"),
        ("demo/real/v9", 0, "real", "damaged"),
    ]
    assert len({video.cluster for video in found}) == 2


def test_an_undetected_video_is_resampled_with_the_scored_ones_of_its_group(index):
    known = {"group": "demo/v1", "group_level": "exact"}
    lost_real = Failure(video="demo/real/lost", label=0, reason="no face", **known)
    frames = np.repeat([0.2, 0.4, 0.6, 0.9], 2)  # real and fake of v0, real and fake of v1
    found = dataclasses.replace(index, failures=(lost_real,))
    scored = Scored.of("demo", found, range(8), frames, frames, checkpoint="c")
    assert [video.cluster for video in scored.undetected] == ["group/demo/v1"]

    counts = weights(words(["group/demo/v0", "group/demo/v1"]), 0, 300, seed=0)
    label, score, cluster = [0, 1, 0, 1, 0], [0.2, 0.4, 0.6, 0.9, 0.5], [0, 0, 1, 1, 1]
    drawn = [roc_auc_score(label, score, sample_weight=row[cluster]) for row in counts if row.any()]
    flat = summarise([scored], Settings(resampling=Resampling(300))).flat()
    assert flat["test/demo/video/auroc_all"] == pytest.approx(roc_auc_score(label, score))
    bounds = [flat[f"test/demo/video/auroc_all_{end}"] for end in ("low", "high")]
    assert bounds == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist())
    assert bounds != pytest.approx([flat[f"test/demo/video/auroc_{end}"] for end in ("low", "high")])


def test_a_video_of_which_no_frame_could_be_read_is_undetected(index):
    scored = Scored.of("demo", index, [0, 1, 2, 4, 5], np.zeros(5), np.zeros(5), checkpoint="c")
    unread = scored.undetected[0]
    assert (unread.video, unread.label, unread.method) == ("demo/Deep%2EFakes/v1", 1, "Deep.Fakes")
    assert unread.reason == "no frame could be read"
    assert unread.cluster == scored.frames["cluster"][3].as_py()  # the real of its group


def test_a_file_gives_back_all_to_the_last_bit(index, tmp_path):
    rng = np.random.default_rng(0)
    scores, logits = rng.random(8, np.float32), rng.normal(size=8).astype(np.float32) * np.float32(1e-30)
    scored = Scored.of("demo", index, range(8), scores, logits, checkpoint="c")
    folder = tmp_path / "scores"
    folder.mkdir()
    scored.write(folder / "demo.parquet")
    again = read(folder / "demo.parquet")
    assert again == scored and again.undetected
    assert again.column("score").tobytes() == scores.tobytes()
    assert again.column("logit").tobytes() == logits.tobytes()
    again.write(folder / "again.parquet")
    assert (folder / "again.parquet").read_bytes() == (folder / "demo.parquet").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["again.parquet", "demo.parquet"]


def test_others_can_read_the_file(index, tmp_path):
    Scored.of("demo", index, range(8), np.zeros(8), np.zeros(8), checkpoint="c").write(tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column_names == ["key", "video", "method", "label", "cluster", "frame", "score", "logit"]
    head = json.loads(table.schema.metadata[b"dfdet.scored"])
    assert head["name"] == "demo" and len(head["undetected"]) == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("column", ["score", "logit"])
def test_scores_that_are_not_finite_are_refused(index, bad, column):
    values = {"score": np.zeros(8), "logit": np.zeros(8)}
    values[column][3] = bad
    with pytest.raises(DfdetError, match="1 of 8 scores are NaN or infinite"):
        Scored.of("demo", index, range(8), values["score"], values["logit"], checkpoint="c")


def test_a_sample_scored_twice_is_refused(index):
    with pytest.raises(DfdetError, match="1 samples are scored twice"):
        Scored.of("demo", index, [0, 1, 1], np.zeros(3), np.zeros(3), checkpoint="c")


def test_nothing_scored_leaves_all_videos_undetected(index, tmp_path):
    scored = Scored.of("demo", index, [], [], [], checkpoint="c")
    assert len(scored.frames) == 0 and len(scored.undetected) == 4 + 3 - 1  # v0 and its failure are one
    scored.write(tmp_path / "none.parquet")
    assert read(tmp_path / "none.parquet") == scored


@pytest.mark.parametrize("content", [None, b"", b"PAR1 and then nothing", "index"])
def test_a_file_without_scores_is_refused_in_one_line(tmp_path, index, content):
    path = tmp_path / "bad.parquet"
    if content == "index":
        path = tmp_path / "demo.parquet"
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"no scores can be read .*evaluate the checkpoint again") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_pool_counts_a_video_of_two_sets_once(caplog):
    one, two = scored_set("one", videos=6), scored_set("two", videos=9, seed=1)
    other = scored_set("other", videos=6, dataset="e")
    pooled = pool([one, two, other])
    codes, videos = pooled.codes("video")
    assert len(videos) == 9 + 6 and np.bincount(codes).tolist() == [4] * 15
    assert "6 videos are in several sets" in caplog.text
    assert pooled.column("score")[:24].tolist() == one.column("score").tolist()


def test_pool_leaves_out_undetected_videos_that_another_set_scored():
    one = scored_set("one", videos=3, undetected=[lost("v4", "A"), lost("x")])
    two = scored_set("two", videos=6, undetected=[lost("x"), lost("y")])
    assert [video.video for video in pool([one, two]).undetected] == ["d/real/x", "d/real/y"]


def test_pool_refuses_sets_of_two_checkpoints():
    with pytest.raises(InputError, match="scores of 2 checkpoints"):
        pool([scored_set("one"), scored_set("two", checkpoint="other")])
