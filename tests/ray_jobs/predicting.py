"""A checkpoint trained for a moment on drawn faces, and files to predict on."""

from __future__ import annotations

from pathlib import Path

from dfdet.config import Augment, Config, Data, Engine, Model, Optim, Run
from dfdet.context import LocalContext
from dfdet.runs.runfolder import RunFolder
from dfdet.train import train
from shards.mapping import here
from shards.options import VideoSets
from shards.videos import find, make_video_sets, making
from tests.shards.clips import write_clip
from tests.shards.marker_detector import write_marker_detector

FRAMES = 4


def write_detector(folder: Path) -> Path:
    """The detector of drawn faces."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_marker_detector(folder / "marker.onnx")


def write_set(folder: Path, weights: Path, selection: str = "largest") -> Path:
    """A set of two real and two fake clips, made by shards; the clips lie in ``folder/raw``."""
    rows = []
    for number, label in enumerate(("real", "fake", "real", "fake")):
        write_clip(folder / "raw" / f"{number}.mp4", seed=3 * number, size=56 + 8 * number)
        rows.append(f"{number}.mp4,{label},val\n")
    (folder / "raw" / "labels.csv").write_text("file,label,split\n" + "".join(rows))
    options = VideoSets(
        dataset="own",
        root=folder / "raw",
        out=folder / "sets",
        frames=FRAMES,
        size_px=96,
        detector="onnx",
        weights=weights,
        selection=selection,
    )
    found = find(options)
    make = making(options, found)
    return make_video_sets(make, found, lambda: here(make)).manifests[0]


def write_checkpoint(folder: Path, manifest: Path) -> Path:
    """A run folder whose checkpoint has the set's crop recipe and a threshold."""
    config = Config(
        run=Run(recipe="test", storage=str(folder), name="run"),
        data=Data(
            train=(str(manifest),), val=(f"v={manifest}",), global_batch=8, augment=Augment(strength=0.0)
        ),
        model=Model(backbone="tiny", pretrained=None, image_size=32),
        optim=Optim(lr=1e-2, epochs=1),
        engine=Engine(precision="fp32"),
    )
    run, _ = RunFolder.claim(folder, "run", config)
    try:
        train(config, LocalContext(run))
    finally:
        run.release()
    return folder / "run"
