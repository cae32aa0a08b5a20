"""Scores of clips: trained, evaluated, kept and aggregated beside those of frames."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from dfdet.checkpoints.opened import Opened, open_checkpoint
from dfdet.data.index import open_sets
from dfdet.data.loader import Loader
from dfdet.data.plan import evaluation_plan
from dfdet.errors import ConfigError
from dfdet.evaluation import aggregate, scored, summary
from dfdet.evaluation import request as requests
from dfdet.evaluation.assemble import Scores, assemble
from dfdet.evaluation.evaluate import probabilities, score_index
from dfdet.evaluation.options import Options
from dfdet.evaluation.request import Request, open_request
from dfdet.evaluation.scorer import Scorer
from dfdet.runs.runfolder import read_metrics
from tests.dfdet.evaluation.scored_sets import scored_set
from tests.group import run_group
from tests.signal_runs import config_for, run

CLIP = {
    "model.temporal": True,
    "data.sampling": "clip",
    "data.clip_frames": 3,
    "data.global_batch": 24,
    "loss.consistency": 0.1,
    "optim.epochs": 2,
    "optim.lr": 5e-3,
    "eval.batch": 7,
}
"""Videos have 4 frames: clips of 2 frames and padding; 7 samples are two clips."""


@pytest.fixture(scope="module")
def temporal_run(signal_sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run with a temporal head."""
    storage = tmp_path_factory.mktemp("temporal")
    run(config_for(signal_sets, storage, **CLIP))
    return storage / "run"


@pytest.fixture(scope="module")
def opened(temporal_run: Path) -> Opened:
    return open_checkpoint(str(temporal_run))


def score_all(request: Request) -> Scores:
    scorer = Scorer(request.work, "cpu", 1)
    return assemble(request, {part: scorer.score(part) for part in request.slices}.__getitem__)


@pytest.fixture(scope="module")
def options(temporal_run: Path, signal_sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("out")

    def made(**values: Any) -> Options:
        given = {
            "checkpoint": (str(temporal_run),),
            "test": (f"t={signal_sets['test']}",),
            "out": str(out),
            "batch": 7,
            "resamples": 200,
        }
        return Options(**(given | values))

    return made


def test_a_run_logs_the_terms_and_chooses_its_best_by_the_clips(temporal_run: Path) -> None:
    records = read_metrics(temporal_run / "metrics.jsonl")
    steps = [record for record in records if "train/loss/clip" in record]
    assert len(steps) > 2 and all(np.isfinite(record["train/loss/consistency"]) for record in steps)
    (best,) = (temporal_run / "checkpoints").glob("best.json")
    state = json.loads((best.parent / json.loads(best.read_text())["checkpoint"] / "state.json").read_text())
    assert state["metric_name"] == "val/v/video/ap_temporal"
    assert state["metric"] == max(r["val/v/video/ap_temporal"] for r in records if "val/v/video/ap" in r)


def test_the_temporal_head_is_kept_with_what_trains(opened: Opened) -> None:
    names = {name for name in opened.detector.trainable() if name.startswith("temporal.")}
    assert names == {
        *("temporal.query", "temporal.norm.weight", "temporal.norm.bias", "temporal.key.weight"),
        *("temporal.value.weight", "temporal.value.bias", "temporal.out.weight"),
    }
    assert opened.detector.temporal.out.weight.abs().max() > 0  # type: ignore[union-attr]
    assert opened.detector.temporal.frames == 3  # type: ignore[union-attr]


def test_scores_of_clips_are_those_of_a_loop_over_them(options: Any, opened: Opened) -> None:
    """Clip by clip without padding: what padding adds is nothing."""
    request = open_request(options())
    table = score_all(request).tests["run"]["t"]
    index = request.tests["t"]
    plan = evaluation_plan(index, 7, 3)
    expected = np.full(len(index), np.nan)
    detector = opened.detector
    with open_loader(index) as loader, torch.no_grad():
        for batch in loader.batches(plan, epoch=0, rank=0, world=1):
            features = detector(detector.to_input(batch.images, batch.sizes))
            for start in range(0, len(features), 3):
                own = start + np.flatnonzero(batch.valid[start : start + 3].numpy())
                if len(own):
                    whole = torch.ones(1, len(own), dtype=torch.bool)
                    clip = detector.temporal(features[own][None], batch.times[own][None], whole)  # type: ignore
                    expected[batch.ids[own]] = float(probabilities(detector.head(clip))[0, 0])
    np.testing.assert_allclose(table.column("clip_score"), expected, rtol=0, atol=1e-6)
    assert np.ptp(expected) > 1e-3


def open_loader(index: Any) -> Loader:
    return Loader(
        index, crop_scale=1.3, augment=None, seed=0, threads=1, prefetch=1, on_damage="raise", max_damaged=0
    )


def test_scores_do_not_depend_on_the_slices(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score_all(open_request(options(robustness=("jpeg-40",))))
    monkeypatch.setattr(requests, "BATCHES", 1)
    request = open_request(options(robustness=("jpeg-40",)))
    cut = score_all(request)
    assert len(request.slices) == 18
    assert cut.tests["run"]["t"].frames.equals(whole.tests["run"]["t"].frames)
    assert cut.corrupted["run"]["t"]["jpeg-40"].frames.equals(whole.corrupted["run"]["t"]["jpeg-40"].frames)
    plain, corrupted = (each["t"] for each in (cut.tests["run"], {"t": cut.corrupted["run"]["t"]["jpeg-40"]}))
    assert not plain.frames["clip_score"].equals(corrupted.frames["clip_score"])


def scores_on(rank: int, world: int, checkpoint: str, manifest: str) -> list[list[float]]:
    """What training's own evaluation gives on so many ranks."""
    opened, index = open_checkpoint(checkpoint), open_sets([manifest])
    context: Any = SimpleNamespace(rank=rank, world_size=world, device=torch.device("cpu"))
    found = score_index(opened.detector, opened.detector, index, opened.config, context)
    assert found.clip_scores is not None
    return [found.ids.tolist(), found.scores.tolist(), found.clip_scores.tolist()]


def test_one_rank_scores_as_three_do(temporal_run: Path, signal_sets: dict[str, Path], options: Any) -> None:
    given = (str(temporal_run), str(signal_sets["test"]))
    ranks = run_group(3, scores_on, *given)
    assert ranks[0] == ranks[1] == ranks[2]
    alone = scores_on(0, 1, *given)
    assert alone[0] == ranks[0][0] == list(range(72))
    np.testing.assert_allclose(alone[1:], ranks[0][1:], rtol=0, atol=1e-6)
    evaluated = score_all(open_request(options())).tests["run"]["t"]
    np.testing.assert_allclose(evaluated.column("clip_score"), alone[2], rtol=0, atol=1e-6)


def test_a_temporal_and_a_plain_checkpoint_are_scored_side_by_side(
    options: Any, temporal_run: Path, trained_run: Path
) -> None:
    both = score_all(open_request(options(checkpoint=(str(trained_run), str(temporal_run)))))
    plain, temporal = both.tests["run"]["t"], both.tests["run-2"]["t"]
    assert (plain.has_clips, temporal.has_clips) == (False, True)
    assert plain.frames["key"].equals(temporal.frames["key"])
    assert temporal.frames.equals(score_all(open_request(options())).tests["run"]["t"].frames)


def test_temporal_is_the_mean_over_a_videos_frames_of_their_clips(options: Any) -> None:
    table = score_all(open_request(options())).tests["run"]["t"]
    video, _ = table.codes("video")
    expected = [table.column("clip_score")[video == code].mean(dtype=float) for code in np.unique(video)]
    np.testing.assert_allclose(aggregate.videos(table, "temporal").score, expected, rtol=1e-12)
    logits = table.column("clip_logit").astype(float) / 2
    expected = [aggregate.sigmoid(logits[video == code]).mean() for code in np.unique(video)]
    found = aggregate.videos(table, "temporal", temperature=2.0)
    np.testing.assert_allclose(found.score, expected, rtol=1e-12)


def test_a_threshold_knows_that_it_is_of_clips(options: Any) -> None:
    table = score_all(open_request(options())).tests["run"]["t"]
    fitted = summary.fit_threshold(table, "temporal")
    assert fitted is not None and fitted.aggregate == "temporal"
    settings = summary.Settings("temporal", fitted)
    assert (settings.threshold_at("video"), settings.threshold_at("frame")) == (fitted.threshold,) * 2
    assert summary.Settings("mean", fitted).threshold_at("video") is None


def test_scores_of_clips_go_to_a_file_and_back(options: Any, tmp_path: Path) -> None:
    table = score_all(open_request(options())).tests["run"]["t"]
    table.write(tmp_path / "t.parquet")
    again = scored.read(tmp_path / "t.parquet")
    assert again.frames.equals(table.frames) and again.has_clips
    assert scored.pool([again]).has_clips


def test_without_a_temporal_head_there_is_nothing_to_aggregate(options: Any, trained_run: Path) -> None:
    with pytest.raises(ConfigError, match=r"aggregate=temporal: .*run: without a temporal head") as error:
        open_request(options(checkpoint=(str(trained_run),), aggregate="temporal"))
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="aggregate=temporal: the scores of s: without a temporal head"):
        aggregate.videos(scored_set(), "temporal")


def test_scores_of_clips_that_are_not_finite_are_refused() -> None:
    table = scored_set(videos=3, frames=1).frames
    bad = pa.array([0.1, float("nan"), 0.2], pa.float32())
    with pytest.raises(Exception, match="finite"):
        scored.Scored("s", "", "", table.append_column("clip_score", bad).append_column("clip_logit", bad))
