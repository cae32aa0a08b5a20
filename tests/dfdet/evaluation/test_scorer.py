"""Slices of an evaluation, scored and put together again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from dfdet.context import LocalContext
from dfdet.data.index import open_sets
from dfdet.errors import ConfigError, RunFolderError, ShardSetError, TrainingError, WeightsError
from dfdet.evaluation import request as requests
from dfdet.evaluation.assemble import Scores, assemble
from dfdet.evaluation.evaluate import score_index
from dfdet.evaluation.folder import Folder
from dfdet.evaluation.options import Options
from dfdet.evaluation.outcome import conclude
from dfdet.evaluation.request import Request, open_request
from dfdet.evaluation.scorer import Look, Scorer, slices
from dfdet.evaluation.summary import summarise
from dfdet.runs.runfolder import RunFolder


@pytest.fixture
def options(trained_run: Path, signal_sets: dict[str, Path], tmp_path: Path):
    def made(**values: Any) -> Options:
        given: dict[str, Any] = {
            "checkpoint": (str(trained_run),),
            "test": (f"t={signal_sets['test']}",),
            "out": str(tmp_path / "out"),
            "batch": 8,
            "resamples": 200,
        }
        return Options(**(given | values))

    return made


def score_all(request: Request) -> Scores:
    scorer = Scorer(request.work, "cpu", 1)
    parts = {part: scorer.score(part) for part in request.slices}
    return assemble(request, parts.__getitem__)


def finish(request: Request) -> dict[str, Any]:
    folder = Folder(Path(str(request.options.out)), request.record())
    scorer = Scorer(request.work, "cpu", 1)
    for part in request.slices:
        folder.keep(part, scorer.score(part))
    try:
        return conclude(request, folder)
    finally:
        folder.release()


def test_scores_are_those_of_the_end_of_training(options, trained_run: Path) -> None:
    result = json.loads((trained_run / "result.json").read_text())["metrics"]
    [found] = score_all(open_request(options())).tests.values()
    flat = summarise([found["t"]]).flat()
    assert flat["test/t/video/auroc"] == result["test/t/video/auroc"]
    assert flat["test/t/frame/ap"] == pytest.approx(result["test/t/frame/ap"], abs=1e-12)


def test_slices_cover_every_batch_once() -> None:
    looks = [Look(1.3), Look(1.3), Look(1.0)]
    found = slices({"a": {0: 13}, "b": {0: 1}}, looks, 4, ["a"])
    for name, batches in (("a", 13), ("b", 1)):
        for places in ((0, 1), (2,)):
            of_set = [part for part in found if part.set_key == name and part.checkpoints == places]
            assert [batch for part in of_set for batch in range(part.low, part.high)] == list(range(batches))
    assert {part.corrupted for part in found if part.set_key == "a"} == {True}
    assert {part.corrupted for part in found if part.set_key == "b"} == {False}


def test_scores_do_not_depend_on_the_slices(options, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score_all(open_request(options(robustness=("jpeg-40", "noise-0.1"))))
    monkeypatch.setattr(requests, "BATCHES", 1)
    request = open_request(options(robustness=("jpeg-40", "noise-0.1")))
    cut = score_all(request)
    assert len(request.slices) > 1
    assert cut.tests["run"]["t"].frames.equals(whole.tests["run"]["t"].frames)
    for name in ("jpeg-40", "noise-0.1"):
        assert cut.corrupted["run"]["t"][name].frames.equals(whole.corrupted["run"]["t"][name].frames)


@pytest.mark.gpu
def test_cuda_that_runs_behind_the_loader_scores_as_the_cpu_does(options) -> None:
    request = open_request(options(robustness=("jpeg-40", "blur-19-3"), batch=2))
    on_cpu, on_cuda = (Scorer(request.work, device, 2) for device in ("cpu", "cuda"))
    for part in request.slices:
        np.testing.assert_allclose(
            on_cuda.score(part).scores[..., 0], on_cpu.score(part).scores[..., 0], atol=0.03
        )


def test_a_corruption_changes_scores_and_a_clean_one_does_not(options) -> None:
    scores = score_all(open_request(options(robustness=("blur-0-0", "blur-19-3"))))
    plain = scores.tests["run"]["t"].frames
    corrupted = scores.corrupted["run"]["t"]
    assert corrupted["blur-0-0"].frames.equals(plain)
    assert not corrupted["blur-19-3"].frames["score"].equals(plain["score"])


def test_pillows_resize_is_used_where_the_run_used_it(options, trained_run: Path, tmp_path: Path) -> None:
    request = open_request(options())
    scorer = Scorer(request.work, "cpu", 1)
    [model] = scorer.models
    scorer.models = [replace(model, config=model.config.replace({"data.resize": "pillow", "eval.batch": 8}))]
    [part] = request.slices
    context = LocalContext(RunFolder(tmp_path))
    config = scorer.models[0].config
    expected = score_index(model.detector, model.detector, request.tests["t"], config, context)
    found = scorer.score(part).scores[:, 0, 0, 0]
    assert np.array_equal(found, expected.scores)
    assert not np.array_equal(found, Scorer(request.work, "cpu", 1).score(part).scores[:, 0, 0, 0])


def test_the_result_has_what_was_asked_for(
    options, signal_sets: dict[str, Path], trained_run: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(trained_run, tmp_path / "run")
    (threshold_json,) = own.glob("checkpoints/*/threshold.json")
    before = json.loads(threshold_json.read_text())
    given = {"val": (f"v={signal_sets['val']}",), "robustness": ("jpeg-10",), "aggregate": "max"}
    request = open_request(options(checkpoint=(str(own),) * 2, **given))
    result = finish(request)
    out = Path(str(request.options.out))
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    assert json.loads(threshold_json.read_text()) == result["checkpoints"]["run"]["threshold"] != before
    assert set(result["checkpoints"]) == {"run", "run-2"}
    metrics = result["metrics"]
    assert (
        metrics["test/t/video/auroc_low"]
        <= metrics["test/t/video/auroc"]
        <= metrics["test/t/video/auroc_high"]
    )
    assert metrics["test/t/video/auroc@jpeg-10"] is not None
    assert metrics["test/t/video/balanced_accuracy"] is not None
    assert metrics["test/t/video/ece"] is not None
    found = result["checkpoints"]["run"]
    assert (found["threshold"]["set_name"], found["threshold_origin"]) == ("v", "fitted in this evaluation")
    [compared] = result["comparison"]
    assert (compared["first"], compared["second"], compared["auroc"], compared["auroc_p"]) == (
        "run",
        "run-2",
        0,
        1,
    )
    assert (out / "scores/run/test-t.parquet").exists()
    assert (out / "scores/run-2/test-t@jpeg-10.parquet").exists()
    assert (out / "metrics.csv").read_text().count("\n") > 4
    assert not (out / "parts").exists()


def test_what_is_scored_already_is_not_scored_again(options) -> None:
    request = open_request(options())
    out = Path(str(request.options.out))
    folder = Folder(out, request.record())
    [part] = request.slices
    assert folder.kept(part) is None
    scores = Scorer(request.work, "cpu", 1).score(part)
    folder.keep(part, scores)
    kept = folder.kept(part)
    assert kept is not None and np.array_equal(kept.scores, scores.scores)
    [path] = (out / "parts").glob("*.npz")
    path.write_bytes(path.read_bytes()[:100])
    assert folder.kept(part) is None
    folder.release()


def test_a_folder_of_another_evaluation_is_refused(options) -> None:
    Folder(Path(str(options().out)), open_request(options()).record()).release()
    with pytest.raises(RunFolderError, match=r"holds another evaluation \(batch: 8 -> 4\); give"):
        Folder(Path(str(options().out)), open_request(options(batch=4)).record())


def test_a_folder_in_use_is_refused(options) -> None:
    request = open_request(options())
    folder = Folder(Path(str(request.options.out)), request.record())
    with pytest.raises(RunFolderError, match=r"^--out \S+: in use by process .* or give another --out$"):
        Folder(folder.path, request.record())
    folder.release()


def test_more_damage_than_allowed_ends_it(options, signal_sets: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(signal_sets["test"].parent, tmp_path / "sets")
    path = tmp_path / "sets" / "test.json"
    index = open_sets([path])
    with Path(str(index.shards[0])).open("r+b") as tar:
        for sample in (0, 5):
            tar.seek(int(index.offset[sample]) + 20)
            tar.write(b"damage")
    damaged = {"test": (f"t={path}",), "on_damage": "skip"}
    scores = score_all(open_request(options(**damaged)))
    assert scores.skipped == {"test-t": 2}
    assert len(scores.tests["run"]["t"].frames) == len(index) - 2
    with pytest.raises(TrainingError, match="2 samples could not be read, more than --max_damaged 1"):
        request = open_request(options(**damaged, max_damaged=1))
        parts = {
            part: Scorer(open_request(options(**damaged)).work, "cpu", 1).score(part)
            for part in request.slices
        }
        assemble(request, parts.__getitem__)


@pytest.mark.parametrize(
    ("values", "kind", "said"),
    [
        ({"robustness": ("jepg-40",)}, ConfigError, "the nearest are jpeg-40"),
        ({"crop_scale": 2.0}, ConfigError, "larger than the stored crop scale 1.6"),
        ({"checkpoint": ("/nowhere",)}, WeightsError, "neither a checkpoint"),
        ({"test": ("t=/nowhere.json",)}, ShardSetError, "no such manifest"),
    ],
)
def test_bad_input_is_one_line(options, values: dict[str, Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said) as error:
        open_request(options(**values))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"test": ("cdfv2",)}, "give NAME=SET.json"),
        ({"test": ("../a=b.json",)}, "give NAME=SET.json"),
        ({"test": ("a=b.json", "a=c.json")}, "a name is given twice"),
        ({"test": ("macro=b.json",)}, "the name macro is that of a sum"),
        ({"aggregate": "men"}, "give mean, median, max, or topK"),
    ],
)
def test_bad_options_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Options(**({"checkpoint": ("c",), "test": ("t=t.json",)} | values))


def test_crops_that_were_cut_in_another_way_are_refused(
    options, signal_sets: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(signal_sets["test"].parent, tmp_path / "sets")
    path = tmp_path / "sets" / "test.json"
    manifest = json.loads(path.read_text())
    manifest["crop"]["selection"] = "mask"
    path.write_text(json.dumps(manifest))
    assert open_request(options(test=(f"t={path}",))).tests  # which face is taken is the set's to say
    manifest["crop"]["template"] = "dfb"
    path.write_text(json.dumps(manifest))
    with pytest.raises(ShardSetError, match=r"aligned to template 'dfb', .* to 'demo'"):
        open_request(options(test=(f"t={path}",)))
    assert open_request(options(test=(f"t={path}",), mix_crops=True)).tests
