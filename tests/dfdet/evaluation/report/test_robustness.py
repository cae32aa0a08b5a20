"""Curves of test sets that get worse: by video codecs as by corruptions."""

from __future__ import annotations

import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from dfdet.data.index import open_sets
from dfdet.evaluation.report.robustness import Variant, variants, worsenings
from dfdet.evaluation.report.write import write_report
from dfdet.evaluation.result import Result
from dfdet.schema import Recompression, Sample
from shards.sets.manifest import read_manifest
from shards.sets.write import ShardWriter
from tests.conftest import CROP
from tests.dfdet.evaluation.report.made import scored
from tests.dfdet.html.parsed import Page


def write_variant(folder: Path, base: Path, how: str, noise: float, videos: int | None = None) -> Path:
    """The set of the same samples under another dataset, part of each noise; only its first groups."""
    rng = np.random.default_rng(0)
    manifest = read_manifest(base)
    name = f"{base.stem}-{how}"
    groups: dict[str, list] = {}
    for entry in manifest.shards:
        with tarfile.open(base.parent / entry.file) as tar:
            members = tar.getmembers()
            for image, text in zip(members[::2], members[1::2], strict=True):
                sample = Sample.model_validate_json(tar.extractfile(text).read())
                pixels = cv2.imdecode(
                    np.frombuffer(tar.extractfile(image).read(), np.uint8), cv2.IMREAD_COLOR
                )
                grain = rng.integers(0, 256, pixels.shape, np.uint8)
                worse = cv2.addWeighted(pixels, 1 - noise, grain, noise, 0)
                data = cv2.imencode(".png", worse)[1].tobytes()
                moved = sample.model_copy(update={"dataset": f"{sample.dataset}-{how}"})
                groups.setdefault(str(sample.group), []).append((moved, "png", data, 48, 48))
    with ShardWriter(
        folder, name, dataset=f"{manifest.dataset}-{how}", split=manifest.split, crop=CROP
    ) as writer:
        for group in list(groups.values())[:videos]:
            writer.add_group(group)
    return folder / f"{name}.json"


@pytest.fixture(scope="module")
def paths(signal_sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The test set, three variants of it, and a variant of the validation set."""
    folder, test = tmp_path_factory.mktemp("variants"), signal_sets["test"]
    return {
        "t": test,
        "strong": write_variant(folder, test, "h264-crf40", 0.99),
        "mild": write_variant(folder, test, "h264-crf23", 0.3),
        "av1": write_variant(folder, test, "av1-crf50", 0.5, videos=4),
        "other": write_variant(folder, signal_sets["val"], "h264-crf32", 0.5),
    }


@pytest.fixture(scope="module")
def result(trained_run: Path, paths: dict[str, Path]) -> Result:
    return scored(
        checkpoint=(str(trained_run),) * 2,
        test=tuple(f"{name}={path}" for name, path in paths.items()),
        robustness=("jpeg-100", "jpeg-10"),
    )


@pytest.fixture(scope="module")
def page(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(path, result)
    return Page(path)


def row_of(result: Result, place: int, name: str):
    """AUROC of a checkpoint's videos on a set, by the plain evaluation."""
    rows = result.found[place].summary.rows
    return next(
        row.metrics["auroc"]
        for row in rows
        if (row.set, row.level, row.subset, row.undetected) == (name, "video", "all", "excluded")
    )


def test_a_variant_has_the_test_set_of_the_same_samples_as_its_base(paths: dict[str, Path]) -> None:
    tests = {name: open_sets([path]) for name, path in paths.items()}
    assert variants(tests) == [
        Variant("strong", Recompression("h264", 40), "t"),
        Variant("mild", Recompression("h264", 23), "t"),
        Variant("av1", Recompression("av1", 50), "t", lacking=24),
        Variant("other", Recompression("h264", 32), None),
    ]


def test_a_set_of_other_samples_or_none_is_no_base(paths: dict[str, Path]) -> None:
    few, all_ = (open_sets([paths[name]]) for name in ("av1", "t"))
    assert [each.base for each in variants({"few": few})] == [None]
    assert variants({"t": all_}) == []


def test_a_codec_has_a_curve_beside_those_of_corruptions(result: Result) -> None:
    of_test = [each for each in worsenings(result) if each.set == "t"]
    assert [(each.name, each.axis) for each in of_test] == [
        ("jpeg", "quality"),
        ("av1", "crf"),
        ("h264", "crf"),
    ]
    assert [(level.name, level.value) for level in of_test[2].levels] == [
        ("h264-crf23", 23),
        ("h264-crf40", 40),
    ]


def test_a_codec_s_curve_has_the_estimates_of_its_sets(result: Result) -> None:
    curve = next(each for each in worsenings(result) if (each.set, each.name) == ("t", "h264"))
    for place in (0, 1):
        found = [level.estimates[place] for level in curve.levels]
        assert found == [row_of(result, place, name) for name in ("mild", "strong")]
        assert all(each.low is not None and each.low <= each.value <= each.high for each in found)
    assert curve.levels[1].estimates[0].value < curve.clean[0].value


def test_the_clean_point_is_the_plain_evaluation(
    result: Result, trained_run: Path, paths: dict[str, Path]
) -> None:
    alone = scored(checkpoint=(str(trained_run),), test=(f"t={paths['t']}",))
    curve = next(each for each in worsenings(result) if (each.set, each.name) == ("t", "h264"))
    assert curve.clean[0] == row_of(alone, 0, "t")


def test_base_and_variant_are_resampled_together(result: Result) -> None:
    tests = result.scores.tests[result.request.models[0].label]
    clusters = [tests[name].frames["cluster"].to_pylist() for name in ("t", "strong")]
    assert clusters[0] == clusters[1] and len(set(clusters[0])) == 6


def test_the_page_draws_the_codec_with_the_clean_set_dashed(page: Page, result: Result) -> None:
    names = ("mild", "strong")
    label = result.found[0].model.label
    drawn = [
        figure
        for figure in page.figures
        if any(trace.get("x") == ["23", "40"] and trace["name"] == label for trace in figure["data"])
    ]
    assert len(drawn) == 1
    traces = {trace["name"]: trace for trace in reversed(drawn[0]["data"])}
    assert traces[label]["y"] == [row_of(result, 0, name).value for name in names]
    assert traces["clean"]["y"] == [row_of(result, 0, "t").value] * 2
    assert traces["clean"]["line"]["dash"] == "dash"
    assert drawn[0]["layout"]["xaxis"]["title"]["text"] == "crf"


def test_the_page_tells_what_is_lacking(page: Page) -> None:
    assert "24 frames lacking" in page.text
    assert "without the same samples as they were among the test sets: other." in page.text


def test_variants_alone_are_told_without_a_curve(
    trained_run: Path, paths: dict[str, Path], tmp_path: Path
) -> None:
    result = scored(checkpoint=(str(trained_run),), test=(f"mild={paths['mild']}",))
    write_report(tmp_path / "report.html", result)
    page = Page(tmp_path / "report.html")
    assert worsenings(result) == [] and "Robustness" in page.headings
    assert "among the test sets: mild." in page.text
