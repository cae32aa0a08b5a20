import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfdet.errors import ConfigError, DfdetError
from dfdet.evaluation import aggregate, metrics
from dfdet.evaluation.scored import SCHEMA, Scored
from tests.dfdet.evaluation.scored_sets import lost, scored_set

WAYS = {
    "mean": np.mean,
    "median": np.median,
    "max": np.max,
    "top1": np.max,
    "top3": lambda values: np.mean(np.sort(values)[-3:]),
    "top50": np.mean,
}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from([0.0, 0.1, 0.25, 0.7, 1.0])), min_size=1),
    st.sampled_from(sorted(WAYS)),
)
def test_videos_score_as_a_loop_over_them_says(rows, how):
    video, score = (np.array(column) for column in zip(*rows, strict=True))
    names, number = np.unique(video, return_inverse=True)
    expected = [WAYS[how](score[number == one]) for one in range(len(names))]
    assert aggregate.aggregator(how)(number, score, len(names)) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("how", ["", "Mean", "top0", "top", "top-3", "top3x", "min"])
def test_an_unknown_aggregation_is_refused_in_one_line(how):
    with pytest.raises(ConfigError, match=rf"aggregate={how}: .*mean, median, max, or topK") as error:
        aggregate.aggregator(how)
    assert "\n" not in str(error.value)


def test_mean_is_that_of_the_training_metrics_to_the_last_bit():
    scored = scored_set(videos=30, frames=7)
    units = aggregate.videos(scored)
    codes, _ = scored.codes("video")
    _, label, score = metrics.video_scores(codes, scored.column("label"), scored.column("score"))
    assert np.array_equal(units.score, score) and np.array_equal(units.label, label)


def test_videos_keep_their_own_name_method_label_and_cluster():
    units = aggregate.videos(scored_set(videos=9, frames=2))
    methods = [units.methods[code] for code in units.method]
    assert [units.videos[code] for code in units.video] == [f"d/{m}/v{i}" for i, m in enumerate(methods)]
    assert methods == ["real", "A", "B"] * 3
    assert units.label.tolist() == [0, 1, 1] * 3
    assert [units.clusters[code] for code in units.cluster] == [f"person/d/{i // 3}" for i in range(9)]


def test_videos_of_one_name_in_two_datasets_or_methods_stay_apart():
    frames = [
        {"video": "d/A/x", "method": "A", "label": 1, "score": 0.2},
        {"video": "e/A/x", "method": "A", "label": 1, "score": 0.4},
        {"video": "d/B/x", "method": "B", "label": 1, "score": 0.6},
        {"video": "d/real/x", "method": "real", "label": 0, "score": 0.8},
    ]
    more = {"key": "", "cluster": "c", "frame": 0, "logit": 0.0}
    scored = Scored("s", "", "", pa.Table.from_pylist([row | more for row in frames], SCHEMA))
    assert aggregate.videos(scored).score == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_a_video_of_both_labels_is_refused():
    rows = scored_set(videos=2, frames=1).frames.to_pylist()
    rows[1]["video"] = rows[0]["video"]
    scored = Scored("s", "", "", pa.Table.from_pylist(rows, SCHEMA))
    with pytest.raises(DfdetError, match="have real and fake frames"):
        aggregate.videos(scored)


def test_undetected_videos_are_left_out_or_have_half():
    scored = scored_set(
        videos=4, frames=2, undetected=[lost("x", "A", cluster="person/d/0"), lost("y", "New")]
    )
    assert len(aggregate.videos(scored)) == 4
    units = aggregate.videos(scored, undetected="half")
    assert len(units) == 6
    assert units.score[4:].tolist() == [0.5, 0.5] and units.label[4:].tolist() == [1, 1]
    assert [units.methods[code] for code in units.method[4:]] == ["A", "New"]
    assert [units.videos[code] for code in units.video[4:]] == ["d/A/x", "d/New/y"]
    assert units.cluster[4] == units.cluster[0]
    assert units.clusters[units.cluster[5]] == "video/d/New/y"


def test_a_temperature_scales_logits():
    scored = scored_set(videos=3, frames=2)
    assert aggregate.frames(scored, 1.0).score == pytest.approx(aggregate.frames(scored).score, abs=1e-6)
    expected = 1 / (1 + np.exp(-scored.column("logit").astype(np.float64) / 2))
    assert aggregate.frames(scored, 2.0).score == pytest.approx(expected, abs=1e-15)


def test_sigmoid_does_not_overflow():
    assert aggregate.sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, pytest.approx(0.5), 1.0]
