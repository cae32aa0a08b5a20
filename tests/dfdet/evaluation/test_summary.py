import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from dfdet.errors import ConfigError, InputError
from dfdet.evaluation import aggregate, metrics, threshold
from dfdet.evaluation.bootstrap import METRICS, Resampling, estimates, point, replicates
from dfdet.evaluation.comparison import compare
from dfdet.evaluation.scored import SCHEMA, Scored, pool
from dfdet.evaluation.summary import Settings, fit_threshold, summarise
from tests.dfdet.evaluation.scored_sets import lost, scored_set, units_of

FEW = Resampling(resamples=60)


def fitted(**changes):
    return fit_threshold(scored_set("val", seed=9, **changes))


@pytest.fixture(scope="module")
def sets():
    return [
        scored_set("one", undetected=[lost("x"), lost("y", "A")], people=5),
        scored_set("two", seed=1, dataset="e", methods=("C",), frames=2),
    ]


@pytest.fixture(scope="module")
def summary(sets):
    return summarise(sets, Settings(threshold=fitted(), resampling=FEW))


def row_of(summary, **wanted):
    (row,) = [row for row in summary.rows if all(getattr(row, k) == v for k, v in wanted.items())]
    return row


def test_values_are_those_of_the_training_metrics_under_their_names(sets, summary):
    flat = summary.flat()
    for scored in sets:
        method, methods = scored.codes("method")
        expected = metrics.compute(
            "test",
            scored.name,
            scored.column("label"),
            scored.column("score"),
            scored.codes("video")[0],
            method,
            methods,
            summary.settings.threshold.threshold,
        )
        assert {name: flat[name] for name in expected} == expected
    assert flat["test/one/video/auroc"] is not None


def test_names_of_intervals_undetected_and_methods(summary):
    flat = summary.flat()
    for name in ("auroc", "auroc/A", "auroc_all", "auroc_all/A", "f1", "eer_all"):
        value, low, high = (flat[f"test/one/video/{name}{end}"] for end in ("", "_low", "_high"))
        assert low <= value <= high and low < high
    assert "test/one/frame/auroc/B_low" in flat and "test/one/frame/auroc_all" not in flat
    assert (
        flat["test/one/video/tpr_at_fpr_1e-3"] is None and flat["test/one/video/tpr_at_fpr_1e-3_low"] is None
    )
    assert len(flat) == sum(len(row.metrics) * 3 for row in summary.rows)  # no two rows meet


def test_undetected_videos_at_half_are_ranked_among_the_others(sets):
    row = row_of(
        summarise(sets[:1], Settings(resampling=FEW)), level="video", subset="all", undetected="half"
    )
    units = aggregate.videos(sets[0])
    label, score = np.append(units.label, [0, 1]), np.append(units.score, [0.5, 0.5])
    assert row.metrics["auroc"].value == metrics.auroc(label, score)
    assert row.metrics["auroc"].value != metrics.auroc(units.label, units.score)


def test_counts_say_what_a_row_is_of(summary):
    def counts(**wanted):
        return vars(row_of(summary, **wanted).counts)

    base = {"sets": 1, "frames": 160, "clusters": 5, "undetected": 2}
    frames = counts(set="one", level="frame", subset="all")
    assert frames == base | {"videos": 40, "reals": 56, "fakes": 104}
    video = counts(set="one", level="video", subset="all", undetected="excluded")
    assert video == base | {"videos": 40, "reals": 14, "fakes": 26}
    half = counts(set="one", level="video", subset="all", undetected="half")
    assert half == base | {"videos": 42, "reals": 15, "fakes": 27, "clusters": 7}
    method = counts(set="one", level="video", subset="B", undetected="half")
    assert method == base | {
        "videos": 28,
        "frames": 108,
        "reals": 15,
        "fakes": 13,
        "undetected": 1,
        "clusters": 6,
    }
    pooled = counts(set="pooled", level="video", subset="all", undetected="excluded")
    assert (pooled["videos"], pooled["frames"], pooled["undetected"]) == (80, 240, 2)
    mean = counts(set="macro", level="video", subset="all", undetected="excluded")
    assert (mean["sets"], mean["videos"], mean["clusters"]) == (2, 80, pooled["clusters"])


def test_sets_of_recompressed_videos_are_in_no_total():
    whole, other = scored_set("one"), scored_set("two", seed=1, dataset="e")
    worse = scored_set("one-worse", seed=2, dataset="d-h264-crf40")
    plain = summarise([whole, other], Settings(resampling=FEW)).flat()
    more = summarise([whole, worse, other], Settings(resampling=FEW)).flat()
    assert {name: more[name] for name in plain} == plain
    assert more["test/one-worse/video/auroc"] is not None
    assert "test/macro/video/auroc" in plain
    assert "test/macro/video/auroc" not in summarise([whole, worse], Settings(resampling=FEW)).flat()
    worst = scored_set("one-worst", seed=3, dataset="d-h264-crf51")
    assert "test/macro/video/auroc" in summarise([worse, worst], Settings(resampling=FEW)).flat()


def test_totals_of_a_comparison_leave_recompressed_videos_out():
    sets = [scored_set("one"), scored_set("worse", seed=2, dataset="d-vp9-crf50")]
    found = compare({"a": (sets, Settings(resampling=FEW)), "b": (sets, Settings(resampling=FEW))})
    assert [each.set for each in found] == ["one", "worse"]


def test_pooled_is_the_metric_of_all_videos_together(sets, summary):
    units = [aggregate.videos(scored) for scored in sets]
    label, score = (np.concatenate([getattr(u, name) for u in units]) for name in ("label", "score"))
    assert summary.flat()["test/pooled/video/auroc"] == metrics.auroc(label, score)


def test_macro_is_the_mean_of_the_sets_and_its_interval_that_of_the_mean(sets, summary):
    flat = summary.flat()
    values = [flat[f"test/{name}/video/auroc"] for name in ("one", "two")]
    assert flat["test/macro/video/auroc"] == pytest.approx(np.mean(values), abs=1e-15)
    drawn = np.mean([replicates(aggregate.videos(scored), FEW)["auroc"] for scored in sets], axis=0)
    assert flat["test/macro/video/auroc_low"] == pytest.approx(np.quantile(drawn, 0.025), abs=1e-12)


def test_macro_leaves_out_a_set_of_one_class_and_is_null_where_a_set_lacks_a_metric():
    reals = scored_set("reals", dataset="r", methods=())
    sets = [scored_set("one"), scored_set("two", dataset="e", seed=1, videos=80), reals]
    found = summarise(sets, Settings(resampling=FEW))
    flat = found.flat()
    assert flat["test/reals/video/auroc"] is None
    assert flat["test/macro/video/auroc"] == pytest.approx(
        (flat["test/one/video/auroc"] + flat["test/two/video/auroc"]) / 2, abs=1e-15
    )
    assert row_of(found, set="macro", level="frame").counts.sets == 2
    assert flat["test/two/video/tpr_at_fpr_5e-2"] is not None  # 27 reals
    assert flat["test/one/video/tpr_at_fpr_5e-2"] is None  # 14
    assert flat["test/macro/video/tpr_at_fpr_5e-2"] is None


def test_sets_that_share_clusters_are_drawn_together():
    """A set beside itself under other names is no second witness: macro is as wide as either."""
    one = scored_set("one")
    rows = one.frames.to_pylist()
    for row in rows:
        row["video"], row["key"] = "copy" + row["video"], "copy" + row["key"]
    copy = Scored("two", "other", "c", pa.Table.from_pylist(rows, SCHEMA))
    flat = summarise([one, copy], Settings(resampling=FEW)).flat()
    for name in ("auroc", "auroc_low", "auroc_high"):
        for of in ("two", "macro", "pooled"):
            assert flat[f"test/{of}/video/{name}"] == pytest.approx(flat[f"test/one/video/{name}"], abs=1e-12)


def test_a_sets_rows_do_not_depend_on_the_sets_beside_it_or_the_order_of_frames(sets, summary):
    rows = sets[0].frames.take(np.random.default_rng(0).permutation(len(sets[0].frames)))
    alone = summarise([dataclasses.replace(sets[0], frames=rows)], summary.settings).flat()
    both = summary.flat()
    assert {name.split("/")[1] for name in alone} == {"one"}
    for name, value in alone.items():
        assert value == pytest.approx(both[name], abs=1e-12), name


def test_frame_intervals_resample_whole_people(sets):
    flat = summarise(sets[:1], Settings(resampling=FEW)).flat()
    units = aggregate.frames(sets[0])
    alone = units_of(units.label, units.score)
    narrow = estimates(point(alone), replicates(alone, FEW), 0.95, len(alone))["auroc"]
    assert flat["test/one/frame/auroc_high"] - flat["test/one/frame/auroc_low"] > narrow.high - narrow.low


def test_table_has_equal_columns_in_every_row(summary):
    table = summary.table()
    assert len({tuple(row) for row in table}) == 1
    assert list(table[0])[:6] == ["set", "level", "subset", "undetected_as", "sets", "videos"]
    for row in table[:1]:
        assert row["auroc"] == summary.flat()["test/one/frame/auroc"]
        assert row["auroc_low"] == summary.flat()["test/one/frame/auroc_low"]
    assert {row["set"] for row in table} == {"one", "two", "pooled", "macro"}


def test_a_threshold_of_means_is_not_held_against_other_aggregations(sets):
    carried = fitted()
    flat = summarise(sets[:1], Settings(aggregate="max", threshold=carried, resampling=FEW)).flat()
    assert flat["test/one/video/f1"] is None and flat["test/one/frame/f1"] is not None
    settings = Settings("max", fit_threshold(scored_set("val", seed=9), "max"), FEW)
    units = aggregate.videos(sets[0], "max")
    expected = metrics.f1(units.label, units.score, settings.threshold.threshold)
    assert summarise(sets[:1], settings).flat()["test/one/video/f1"] == expected


def test_a_threshold_fitted_to_means_is_that_of_training():
    scored = scored_set("val", seed=9)
    video, _ = scored.codes("video")
    label, score, logit = (scored.column(name) for name in ("label", "score", "logit"))
    expected = threshold.fit(label, score, "set-val", "val", video=video, logits=logit)
    assert fit_threshold(scored) == expected
    most = fit_threshold(scored, "max")
    assert most.threshold > expected.threshold and most.temperature == expected.temperature
    assert fit_threshold(scored_set("val", methods=())) is None


def test_a_set_without_any_score_has_nulls_but_is_shown():
    lost_all = Scored("none", "", "c", SCHEMA.empty_table(), (lost("x"), lost("y", "A")))
    found = summarise([lost_all], Settings(threshold=fitted(), resampling=FEW))
    flat = found.flat()
    assert flat["test/none/frame/auroc"] is None and flat["test/none/video/auroc"] is None
    assert flat["test/none/video/auroc_all"] == 0.5
    assert row_of(found, subset="all", undetected="half").counts.undetected == 2


@pytest.mark.parametrize("names", [("one", "one"), ("pooled",), ("macro",), ("a/b",)])
def test_names_that_would_meet_are_refused(names):
    sets = [scored_set(name, dataset=f"d{i}") for i, name in enumerate(names)]
    with pytest.raises(InputError, match=f"test set named '{names[0]}'"):
        summarise(sets)


def test_no_set_several_checkpoints_and_unknown_aggregations_are_refused():
    with pytest.raises(InputError, match="scores of 0 checkpoints"):
        summarise([])
    with pytest.raises(InputError, match="scores of 2 checkpoints"):
        summarise([scored_set("one"), scored_set("two", checkpoint="other")])
    with pytest.raises(ConfigError, match="aggregate=least"):
        summarise([scored_set()], Settings(aggregate="least"))


def candidates(*strengths, **changes):
    """Checkpoints on two sets; the videos' own levels are shared."""
    return {
        f"m{strength}": (
            [
                scored_set("one", strength=strength, checkpoint=f"{strength}", **changes),
                scored_set(
                    "two", strength=strength, checkpoint=f"{strength}", dataset="e", seed=1, **changes
                ),
            ],
            Settings(resampling=Resampling(300)),
        )
        for strength in strengths
    }


def test_every_pair_of_checkpoints_is_compared_on_every_set():
    given = candidates(0.2, 1.0, 1.5)
    found = compare(given)
    pairs = [("m0.2", "m1.0"), ("m0.2", "m1.5"), ("m1.0", "m1.5")]
    assert [(each.first, each.second) for each in found] == [pair for pair in pairs for _ in range(4)]
    assert [each.set for each in found] == ["one", "two", "pooled", "macro"] * 3
    values = {name: summarise(*of).flat() for name, of in given.items()}
    for each in found:
        name = f"test/{each.set}/video/auroc"
        expected = values[each.first][name] - values[each.second][name]
        gap = each.metrics["auroc"]
        assert gap.value == pytest.approx(expected, abs=1e-15)
        assert gap.low <= gap.value <= gap.high and gap.p < 0.05  # the shared levels cancel
        assert each.table_row()["auroc_p"] == gap.p and set(each.metrics) == set(METRICS)


def test_frames_can_be_compared():
    (first, *_) = compare(candidates(0.5, 1.0), "frame")
    assert first.level == "frame" and first.metrics["auroc"].value < 0 < first.metrics["eer"].value


def test_other_frames_of_the_same_videos_compare_as_videos_only():
    given = candidates(1.0)
    given |= {"few": (candidates(1.0, frames=2)["m1.0"][0], given["m1.0"][1])}
    assert len(compare(given)) == 4
    with pytest.raises(InputError, match=r"m1\.0 and few on one: 80 frames that are not in both"):
        compare(given, "frame")


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda sets, how: (sets[:1], how), "scored other sets"),
        (lambda sets, how: (sets, Settings()), "other resamples"),
        (
            lambda sets, how: ([scored_set("one", videos=41), sets[1]], how),
            "on one: 1 videos that are not in both",
        ),
        (
            lambda sets, how: ([scored_set("one", people=3), sets[1]], how),
            "not in both with one label and cluster",
        ),
    ],
)
def test_checkpoints_that_cannot_be_paired_are_refused(change, cause):
    given = candidates(1.0)
    given["other"] = change(*given["m1.0"])
    with pytest.raises(InputError, match=cause):
        compare(given)


def test_one_checkpoint_alone_is_not_compared():
    with pytest.raises(InputError, match="at least two"):
        compare(candidates(1.0))


def test_pooled_of_a_comparison_is_that_of_the_pool():
    given = candidates(0.2, 1.5)
    pooled = next(each for each in compare(given) if each.set == "pooled")
    scores = [point(aggregate.videos(pool(sets)))["auroc"] for sets, _ in given.values()]
    assert pooled.metrics["auroc"].value == scores[0] - scores[1]
