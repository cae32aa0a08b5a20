"""The page that an evaluation leaves."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import plotly.graph_objects as go
import pytest

from dfdet.data.index import open_sets
from dfdet.evaluation.report.mistakes import SIDE_PX, shown_each
from dfdet.evaluation.report.write import write_report
from dfdet.evaluation.result import Result
from tests.dfdet.evaluation.report.made import scored, write_set
from tests.dfdet.evaluation.scored_sets import lost
from tests.dfdet.html.parsed import Page

EVIL = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def written(result: Result, folder: Path) -> Page:
    write_report(folder / "report.html", result)
    return Page(folder / "report.html")


def figures_named(page: Page, name: str) -> list[dict]:
    return [figure for figure in page.figures if any(trace["name"] == name for trace in figure["data"])]


@pytest.fixture(scope="module")
def alone(trained_run: Path, signal_sets: dict[str, Path]) -> Result:
    """One checkpoint on one set, with all that can be asked for."""
    return scored(
        checkpoint=(str(trained_run),),
        test=(f"t={signal_sets['test']}",),
        val=(f"v={signal_sets['val']}",),
        robustness=("jpeg", "resize-64-box"),
    )


@pytest.fixture(scope="module")
def page(alone: Result, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return written(alone, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def pair(trained_run: Path, signal_sets: dict[str, Path]) -> Result:
    """Two checkpoints on two sets, with the threshold that they came with."""
    return scored(
        checkpoint=(str(trained_run),) * 2,
        test=(f"cdfv2-mine={signal_sets['test']}", f"other={signal_sets['val']}"),
    )


@pytest.fixture(scope="module")
def pair_page(pair: Result, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return written(pair, tmp_path_factory.mktemp("pair"))


def test_the_page_has_all_its_parts_in_order(page: Page) -> None:
    assert page.headings == [
        "What was evaluated",
        "Results, video level",
        "Beside published results",
        "By method",
        "ROC, precision and recall",
        "Scores by method",
        "Robustness",
        "Calibration",
        "Worst mistakes",
        "Undetected videos",
        "Configuration and fingerprints",
    ]
    assert page.html.endswith("</html>\n")
    assert len(page.figures) == 3 + 1 + 2 + 1


@pytest.mark.parametrize("name", ["page", "pair_page"])
def test_all_pictures_are_what_plotly_takes(name: str, request: pytest.FixtureRequest) -> None:
    for figure in request.getfixturevalue(name).figures:
        go.Figure(figure)  # raises on an unknown property or a bad value
        assert figure["data"], figure["layout"]
        for trace in figure["data"]:
            assert len(trace["x"]) == len(trace["y"]) > 0


def test_the_page_asks_nothing_of_any_network_and_runs_its_own_two_scripts(page: Page) -> None:
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in page.scripts]
    allowed = page.policy.partition("script-src ")[2].partition(";")[0]
    assert allowed.split() == [f"'sha256-{one}'" for one in hashes]
    assert (len(hashes), page.handlers) == (2, [])


def test_the_first_sentence_tells_auroc_interval_and_where_the_threshold_is_from(
    page: Page, alone: Result
) -> None:
    metrics = alone.to_json()["metrics"]
    value, low, high = (metrics[f"test/t/video/auroc{end}"] for end in ("", "_low", "_high"))
    head = page.text.partition("What was evaluated")[0]
    assert f"run: video AUROC {value:.4f} on t (95 % interval {low:.3f} to {high:.3f}; 18 videos)." in head
    threshold = alone.found[0].threshold
    assert threshold is not None
    where = "at the equal error rate of v (videos, 72 frames), fitted in this evaluation"
    assert f"run: threshold {threshold.threshold:.4f}, {where}; carried to every test set." in head


def test_the_tables_hold_the_numbers_of_the_result(pair_page: Page, pair: Result) -> None:
    names = ("auroc", "ap", "eer", "balanced_accuracy", "f1")
    head = ("AUROC", "AP", "EER", "balanced accuracy", "F1")
    shown = {"cdfv2-mine": "cdfv2-mine", "all, pooled": "pooled", "mean of the sets (macro)": "macro"}
    written_ = pair.to_json()["checkpoints"]
    for level in ("video", "frame"):
        place = next(at for at, row in enumerate(pair_page.rows) if f"{level}s" in row and "AUROC" in row)
        table = pair_page.rows[place : place + 9]
        columns = [table[0].index(title) for title in head]
        for title, name in shown.items():
            for label in ("run", "run-2"):
                [row] = [row for row in table if row[:2] == [title, label]]
                metrics = written_[label]["metrics"]
                expected = [metrics[f"test/{name}/{level}/{metric}"] for metric in names]
                assert [row[at] for at in columns] == [f"{value:.4f}" for value in expected]


def test_differences_are_those_of_the_result(pair_page: Page, pair: Result) -> None:
    for each in pair.to_json()["comparison"]:
        if each["set"] == "other":
            [row] = [row for row in pair_page.rows if row[:2] == ["other", "run - run-2"]]
            assert row[2:5] == [f"{each[name]:+.4f}" for name in ("auroc", "ap", "eer")]
            assert f"p = {each['auroc_p']:.2g}" in pair_page.text
            return
    raise AssertionError("no comparison on the set")


def test_methods_stand_beside_each_other(pair_page: Page, pair: Result) -> None:
    metrics = [found.metrics() for found in pair.found]
    for method in ("dim", "tint"):
        [row] = [row for row in pair_page.rows if row[:2] == ["other", method]]
        assert row[2:4] == ["6", "6"]
        assert row[4:] == [f"{each[f'test/other/video/auroc/{method}']:.4f}" for each in metrics]


def test_published_rows_stand_beside_sets_of_their_names(pair_page: Page, page: Page) -> None:
    [head] = [row for row in pair_page.rows if row and row[0] == "detector"]
    assert head == ["detector", "cdfv2-mine (CDFv2)", "source"]
    assert ["LN-tuning, published", "94.88", "arXiv 2503.19683"] in pair_page.rows
    assert ["LNCLIP-DF (GenD), published", "96.50", "arXiv 2508.06248v1"] in pair_page.rows
    assert "no test set is named as one of CDFv2, DFD" in page.text
    assert not any(", published" in cell for row in page.rows for cell in row)


def test_checkpoints_differ_in_more_than_colour(pair_page: Page) -> None:
    curves = [f for f in pair_page.figures if "run-2" in [trace["name"] for trace in f["data"]]]
    assert len(curves) == 2 * 3
    lines = {trace["name"]: trace["line"] for trace in curves[0]["data"] if trace["name"] in ("run", "run-2")}
    assert lines["run"]["dash"] != lines["run-2"]["dash"]
    assert lines["run"]["color"] != lines["run-2"]["color"]
    assert 'class="key"' in pair_page.html


def test_robustness_curves_have_the_numbers_of_the_result(page: Page, alone: Result) -> None:
    metrics = alone.to_json()["metrics"]
    [jpeg] = [f for f in page.figures if f["layout"]["xaxis"].get("title", {}).get("text") == "quality"]
    [line] = [trace for trace in jpeg["data"] if trace["name"] == "run"]
    assert line["x"] == ["100", "80", "60", "40", "20", "10"]
    assert line["y"] == [metrics[f"test/t/video/auroc@jpeg-{level}"] for level in line["x"]]
    [clean] = [trace for trace in jpeg["data"] if trace["name"] == "clean"]
    assert clean["y"] == [metrics["test/t/video/auroc"]] * 2
    assert ["t", "jpeg-10", f"{metrics['test/t/video/auroc@jpeg-10']:.4f}"] in page.rows


def test_calibration_is_shown_before_and_after(page: Page, alone: Result) -> None:
    metrics = alone.to_json()["metrics"]
    before, after = metrics["test/t/video/ece_uncalibrated"], metrics["test/t/video/ece"]
    assert len(figures_named(page, f"before: ECE {before:.4f}")) == 1
    assert len(figures_named(page, f"after: ECE {after:.4f}")) == 1
    [row] = [row for row in page.rows if row[:3] == ["t", "run", "video"]]
    assert row[4] == f"{metrics['test/t/video/brier_uncalibrated']:.4f}"


def test_histograms_have_a_row_a_method_and_the_threshold(page: Page, alone: Result) -> None:
    [histograms] = figures_named(page, "tint")
    assert [note["text"] for note in histograms["layout"]["annotations"]] == ["dim (6)", "tint (6)"]
    threshold = alone.found[0].threshold
    assert threshold is not None
    assert histograms["layout"]["shapes"][0]["x0"] == threshold.threshold
    [tint] = [trace for trace in histograms["data"] if trace["name"] == "tint"]
    assert sum(share for share in tint["y"][:-1] if share > 0.05) == pytest.approx(100, abs=0.1)


def test_the_worst_videos_are_shown_as_they_were_scored(page: Page, alone: Result) -> None:
    assert len(page.links) == 6 + 12
    image = cv2.imdecode(np.frombuffer(base64.b64decode(page.links[0].split(",")[1]), np.uint8), 1)
    assert image.shape == (SIDE_PX, SIDE_PX, 3)
    frames = alone.scores.tests["run"]["t"].frames.to_pandas()
    reals = frames[frames.label == 0].groupby("video", observed=True).score.mean().sort_values()
    after = page.text.partition("Reals with the highest scores")[2].partition("Fakes with")[0]
    first = re.search(r"(\d\.\d{4})\s+real.*?(signal/real/v\d+), frame \d", after, re.DOTALL)
    assert first is not None
    assert (first[1], first[2]) == (f"{reals.iloc[-1]:.4f}", reals.index[-1])


def test_many_checkpoints_have_fewer_pictures_each() -> None:
    assert [shown_each(groups) for groups in (1, 20, 30, 1000)] == [12, 12, 8, 3]


def test_a_set_that_is_gone_leaves_a_sentence(
    trained_run: Path, signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(signal_sets["test"].parent, tmp_path / "sets")
    manifest = tmp_path / "sets" / "test.json"
    result = scored(checkpoint=(str(trained_run),), test=(f"t={manifest}",))
    for shard in open_sets([manifest]).shards:
        Path(str(shard)).unlink()
    page = written(result, tmp_path)
    assert page.text.count("The pictures cannot be read any more: ") == 2
    assert page.links == []
    assert "signal/real/v" in page.text


def test_names_from_outside_are_shown_and_do_not_run(trained_run: Path, tmp_path: Path) -> None:
    manifest = write_set(tmp_path / "<b>set", ("real", EVIL), EVIL)
    gone = replace(lost("x"), reason=EVIL)

    def with_lost(_request, scores):
        found = scores.tests["run"]["t"]
        scores.tests["run"]["t"] = replace(found, undetected=(gone,))
        return scores

    result = scored(with_lost, checkpoint=(str(trained_run),), test=(f"t={manifest}",))
    page = written(result, tmp_path)
    assert page.text.count(EVIL) > 3
    assert len(page.scripts) == 2
    assert all(link.startswith("data:") for link in page.links)
    assert page.handlers == []
    assert "<img" not in "".join(page.data)
    assert "\\u003cimg" not in "".join(page.data)  # nor for Plotly, which obeys tags in labels


def test_a_set_of_one_class_has_no_curves_and_says_why(trained_run: Path, tmp_path: Path) -> None:
    manifest = write_set(tmp_path / "set", ("real",), "v")
    given = {"checkpoint": (str(trained_run),), "test": (f"t={manifest}",), "robustness": ("jpeg-10",)}
    page = written(scored(**given), tmp_path)
    assert ["t", "jpeg-10", "-"] in page.rows
    assert "run: no AUROC on t, which needs both classes: 3 real and 0 fake videos." in page.text
    assert "t has one class only: no curves." in page.text
    assert "By method" not in page.headings
    for figure in page.figures:
        go.Figure(figure)


def test_without_a_threshold_nothing_is_told_that_needs_one(
    trained_run: Path, signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    given = {"checkpoint": (str(trained_run),), "test": (f"t={signal_sets['test']}",)}
    page = written(scored(without_threshold=True, **given), tmp_path)
    assert "run: no threshold, so nothing is told that needs one" in page.text
    assert not any("balanced accuracy" in row and "F1" in row for row in page.rows)
    assert not any("shapes" in figure["layout"] for figure in page.figures)
    assert not any("threshold" in trace["name"] for figure in page.figures for trace in figure["data"])
    assert "false alarm" not in page.text.partition("Worst mistakes")[2]
    assert {"Calibration", "Robustness", "Checkpoints compared"}.isdisjoint(page.headings)


def test_a_threshold_of_another_aggregation_is_not_carried_to_videos(
    trained_run: Path, signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    given = {"checkpoint": (str(trained_run),), "test": (f"t={signal_sets['test']}",)}
    page = written(scored(aggregate="max", **given), tmp_path)
    assert "It is for videos scored by mean, not by max" in page.text
    assert not any("shapes" in figure["layout"] for figure in page.figures)


def test_undetected_videos_are_listed_up_to_fifty(
    trained_run: Path, signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    def with_lost(_request, scores):
        found = scores.tests["run"]["t"]
        videos = tuple(lost(f"gone{number}", "dim") for number in range(60))
        scores.tests["run"]["t"] = replace(found, undetected=videos)
        return scores

    given = {"checkpoint": (str(trained_run),), "test": (f"t={signal_sets['test']}",)}
    page = written(scored(with_lost, **given), tmp_path)
    assert "60 videos have no score" in page.text
    assert ["t", "d/dim/gone49", "dim", "no face"] in page.rows
    assert not any("d/dim/gone50" in row for row in page.rows)
    assert "And 10 more." in page.text
    assert "Video level, undetected videos at .5" in page.text


def test_six_checkpoints_make_one_page(
    trained_run: Path, signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    given = {"checkpoint": (str(trained_run),) * 6, "test": (f"t={signal_sets['test']}",)}
    page = written(scored(**given), tmp_path)
    [roc, *_] = figures_named(page, "run-6")
    lines = [t["line"] for t in roc["data"] if re.fullmatch(r"run(-\d)?", t["name"])]
    assert len({(line["color"], line["dash"]) for line in lines}) == 6
    assert len({line["color"] for line in lines}) == len({line["dash"] for line in lines}) == 6
    assert len([row for row in page.rows if len(row) > 1 and re.fullmatch(r"run\S* - run-\d", row[1])]) == 15
    assert page.html.count("<summary>") > 6


def test_options_and_fingerprints_are_there_to_look_up(page: Page, alone: Result) -> None:
    model = alone.request.models[0]
    assert ["checkpoint", "run", model.fingerprint] in page.rows
    assert ["validation set", "v", alone.request.val["v"].digest] in page.rows
    assert json.dumps(model.config, indent=2) in page.text


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_draws_every_picture_without_an_error(pair: Result, tmp_path: Path) -> None:
    page = written(pair, tmp_path)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    flags += ["--virtual-time-budget=8000", f"--user-data-dir={tmp_path / 'profile'}"]
    address = (tmp_path / "report.html").as_uri()
    done = subprocess.run(
        [str(CHROMIUM), *flags, address], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in done.stderr
    drawn = re.findall(
        r'<div class="plot[^>]*>(?:(?!<script).)*?<svg class="main-svg"', done.stdout, re.DOTALL
    )
    assert len(drawn) == len(page.figures) > 6
