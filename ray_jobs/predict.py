"""Scores a user's own videos and images with a checkpoint: fake, real, or no face.

    python ray_jobs/predict.py --checkpoint runs/NAME clip.mp4 photos/ 'more/**/*.mp4' [--out FOLDER]
    ray job submit --working-dir . -- python ray_jobs/predict.py --checkpoint C --out FOLDER VIDEOS

Faces are found and cut as those that the checkpoint was trained on. A few files are done in this
process, many on Ray. With ``--out`` the same command goes on after a kill.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro
from pydantic import Field
from rich.console import Console

from dfdet.checkpoints.opened import Opened, open_checkpoint
from dfdet.cli import parse_flags
from dfdet.errors import ConfigError
from dfdet.evaluation.aggregate import TEMPORAL, aggregator, without_clips
from dfdet.prediction.records import Folder, Prediction, claimed
from dfdet.prediction.summary import counts, table
from dfdet.prediction.verdict import rule_of
from ray_jobs.cluster import absolute, absolute_source, home, join_or_start, joins_cluster, logical_cpus
from ray_jobs.exits import exit_code, heed_sigterm, sigterm_as_exit
from ray_jobs.own_faces import Looking
from ray_jobs.own_files import Target, find_targets
from ray_jobs.own_recipe import Chosen, CutFlags, cutting
from ray_jobs.predicting import here, in_tasks, plan_tasks
from ray_jobs.predictor import Ask
from shards.places import local_folder
from shards.progress import show_progress

FEW = 8
"""Fewer files than this are done in this process: Ray takes some seconds to start."""
SHOWN = 100
"""Rows of the table on the terminal."""


class Predict(CutFlags):
    """Score videos and images with a checkpoint: fake, real, or no face."""

    paths: tyro.conf.Positional[tuple[str, ...]]
    """Videos and images: files, folders (searched below), or quoted patterns as 'clips/**/*.mp4'."""
    checkpoint: str
    """Checkpoint or run folder (its best), a published file, or hf:OWNER/NAME."""
    pretrained: str | None = None
    """The tower's weights, where they are not any more where training found them."""
    out: Path | None = None
    """Folder for predictions.jsonl, predictions.csv and pictures; goes on where it was left."""
    frames: int = Field(32, ge=1)
    """Frames of a video, spread evenly."""
    faces: Literal["one", "all"] = "one"
    """one: the person that the checkpoint's recipe selects; all: every person, the highest score counts."""
    aggregate: str = "mean"
    """Score of a person from those of the frames: mean, median, max, or topK as top3; temporal: the mean
    of their clips' scores, where the checkpoint has a temporal head."""
    threshold: float | None = None
    """Score from which a file is called fake (0 to 1), instead of the checkpoint's own."""

    sheet: bool = False
    """Draw each file's faces with their scores (PNG)."""
    video: bool = False
    """Write each video with boxes and scores (MP4)."""
    heatmap: bool = False
    """Draw where the evidence lies, for up to 8 faces a file (PNG); slow without a GPU."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the model and of retinaface."""
    workers: int | None = Field(None, ge=0)
    """Ray tasks at a time; 0: this process alone. None: 0 below 8 files, else as many as have room."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of a task; default 1, in this process all. Equal threads give equal bits."""

    @property
    def chosen(self) -> Chosen:
        """What concerns the cut."""
        names = Chosen.__dataclass_fields__
        return Chosen(**{name: getattr(self, name) for name in names})


def main(argv: list[str]) -> int:
    """Runs the command line; gives the exit code (0 done, 2 bad input, 1 all damaged, 130/143 signals)."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    return exit_code(
        lambda: run(parse_flags(Predict, argv, "predict.py", switches=True)),
        "stopped; with --out the same command goes on",
    )


def run(options: Predict) -> int:
    """Checks, predicts on what has no result yet, tells."""
    options = with_absolute_paths(options)
    targets = check(options)
    local = options.workers == 0 or (options.workers is None and len(targets) < FEW)
    cuda = _wants_cuda(options)
    opened = open_checkpoint(
        options.checkpoint,
        device="cuda" if local and cuda else "cpu",
        pretrained=options.pretrained,
    )
    ask, remarks = make_ask(options, opened, local=local, cuda=cuda)
    predicted = partial(_predicted, options, ask, opened, local=local, cuda=cuda)
    console = Console(width=None if sys.stdout.isatty() else 120)
    with claimed(ask.out):
        folder = Folder(ask.out, result_options(ask)) if ask.out else None
        for line in [*before(opened, ask), *remarks]:
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        found = predict_all(targets, folder, predicted)
    after(found, ask, console)
    return 1 if all(record.status == "damaged" for record in found) else 0


def predict_all(
    targets: Sequence[Target],
    folder: Folder | None,
    predicted: Callable[[Sequence[Target]], Iterable[Prediction]],
) -> list[Prediction]:
    """Results of all files, in their order; what is missing in the folder is predicted and added to it."""
    records = {each.name: folder.done[each.name] for each in targets if folder and _has(folder, each)}
    todo = [each for each in targets if each.name not in records]
    with sigterm_as_exit(), show_progress("files") as progress:
        for number, record in enumerate(predicted(todo), 1):
            records[record.path] = record
            if folder:
                folder.add(record)
            progress(number, len(todo))
    names = [each.name for each in targets]
    return folder.close(names) if folder else [records[name] for name in names]


def with_absolute_paths(options: Predict) -> Predict:
    """The options with every path absolute but those of the files, whose patterns are the user's."""
    pretrained, paths = options.pretrained, {"out": options.out, "weights": options.weights}
    local_folder(options.out or "")
    found = {name: Path(absolute(str(path))) for name, path in paths.items() if path is not None}
    return options.model_copy(
        update={
            "checkpoint": absolute_source(options.checkpoint),
            "pretrained": absolute(pretrained) if pretrained else None,
            **found,
        }
    )


def check(options: Predict) -> list[Target]:
    """The files, after all that can be refused before a model is opened.

    Raises:
        InputError: A file that is not there, or options that contradict each other.
    """
    if not options.paths:
        raise ConfigError("no PATH: give videos, images, folders or patterns")
    aggregator(options.aggregate)
    rule_of(None, options.threshold)
    pictures = [name for name in ("sheet", "video", "heatmap") if getattr(options, name)]
    if pictures and options.out is None:
        raise ConfigError(f"--{pictures[0]}: has nowhere to go; give --out FOLDER")
    if options.crops and (options.template or options.selection or options.faces == "all"):
        raise ConfigError("--crops: nothing is cut; leave out --template, --selection and --faces all")
    return find_targets(options.paths, home() or Path.cwd())


def make_ask(options: Predict, opened: Opened, *, local: bool, cuda: bool) -> tuple[Ask, tuple[str, ...]]:
    """What is asked of each process, and what a user should know of it.

    Raises:
        ConfigError: Scores of clips are asked for and the checkpoint has none, or faces cannot be cut as
            those of training.
    """
    if options.aggregate == TEMPORAL and opened.detector.temporal is None:
        raise without_clips(f"--checkpoint {opened.source}")
    crop_scale = opened.config.data.crop_scale
    cut = cutting(opened.crop, crop_scale, options.chosen)
    ask = Ask(
        checkpoint=opened.source,
        pretrained=options.pretrained,
        fingerprint=opened.fingerprint,
        device="cuda" if cuda else "cpu",
        threads=options.threads or (logical_cpus() if local else 1),
        looking=Looking(
            cut.recipe, options.frames, options.faces == "all", options.crops, thumbnails=options.sheet
        ),
        detector=cut.detector,
        aggregate=options.aggregate,
        rule=rule_of(opened.threshold, options.threshold, options.aggregate),
        crop_scale=crop_scale,
        out=options.out,
        sheet=options.sheet,
        video=options.video,
        heatmap=options.heatmap,
    )
    return ask, cut.remarks


def result_options(ask: Ask) -> dict[str, Any]:
    """What results depend on, as JSON."""
    detector = ask.detector
    return {
        "model": ask.fingerprint,
        "crop": ask.looking.recipe.model_dump(),
        "crop_scale": ask.crop_scale,
        "frames": ask.looking.frames,
        "faces": "all" if ask.looking.everyone else "one",
        "crops": ask.looking.ready,
        "detector_size": detector.size_px if detector else None,
        "face_threshold": detector.threshold if detector else None,
        "aggregate": ask.aggregate,
        "rule": asdict(ask.rule),
        "pictures": [name for name in ("sheet", "video", "heatmap") if getattr(ask, name)],
    }


def _predicted(
    options: Predict, ask: Ask, opened: Opened, todo: Sequence[Target], *, local: bool, cuda: bool
) -> Iterator[Prediction]:
    if not todo or local:
        yield from here(ask, opened, todo) if todo else ()
        return
    import ray

    resources = join_or_start()
    heed_sigterm()  # after Ray's own handler
    try:
        tasks = plan_tasks(options.workers or 0, ask.threads, resources, cuda=cuda)
        yield from in_tasks(ask, tasks, todo)
    finally:
        ray.shutdown()


def _has(folder: Folder, target: Target) -> bool:
    return folder.has(target.name, target.bytes, target.modified_ns)


def _wants_cuda(options: Predict) -> bool:
    """Whether the model runs on a GPU; what a cluster has only Ray knows, so there it must be said."""
    import torch

    if options.device == "auto":
        return torch.cuda.is_available()
    if options.device == "cuda" and not torch.cuda.is_available() and not joins_cluster():
        raise ConfigError("--device cuda: this machine has no GPU that torch sees; use --device cpu")
    return options.device == "cuda"


def before(opened: Opened, ask: Ask) -> list[str]:
    """What a run tells first: model, cut, and where the verdict comes from."""
    crop, rule = ask.looking.recipe, ask.rule
    how = "ready crops" if ask.looking.ready else f"{crop.detector}, {crop.selection} face"
    scale = "unknown" if crop.scale is None else f"{crop.scale:g}"
    threshold = "none" if rule.threshold is None else f"{rule.threshold:.4f}"
    temperature = "" if rule.temperature is None else f", temperature {rule.temperature:.3g}"
    return [
        f"model: {opened.config.model.backbone} of {opened.folder or opened.source} ({ask.fingerprint[:12]})",
        f"crop: {how}, template {crop.template}, scale {scale}, of which the model sees {ask.crop_scale:g}",
        f"threshold: {threshold}{temperature} ({rule.origin})",
    ]


def after(records: Sequence[Prediction], ask: Ask, console: Console) -> None:
    """What a run tells last: a table, the counts, where the results lie."""
    console.print(table(records[:SHOWN]))
    if len(records) > SHOWN:
        console.print(f"and {len(records) - SHOWN} more", highlight=False)
    console.print(counts(records), highlight=False)
    if ask.out:
        console.print(f"results: {ask.out}", soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
