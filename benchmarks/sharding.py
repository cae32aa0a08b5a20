"""The chain from video to encoded crops against the usual way: frames/s on one core, stage by stage.

    python benchmarks/sharding.py --weights DETECTOR.onnx [--video FILE] [--frames 32] [--rounds 5]

The usual way opens the file again for each frame and seeks with OpenCV, looks for faces in one frame
at a time, cuts and writes a PNG, as public preprocessing does; the detector file and its input size
are the same, and so is the number of threads: one. Without --video a clip is made as that of
benchmarks/frames.py, with a rendered head in it. Rounds alternate; the table has medians.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import tyro
from frames import GROUPS, make_clip

from shards.demo.people import draw_person, draw_scene, pose_at
from shards.demo.render import render
from shards.detect import Detector, open_detector
from shards.faces.align import TEMPLATES
from shards.media.frames import pick
from shards.options import SCALE, VideoSets
from shards.plan import Job
from shards.videos import Making, find, making

STAGES = ("read", "detect", "align", "encode")
LENGTH, FACE = 750, 300


def make_head_clip(path: Path) -> None:
    """A rendered head that moves before a moving scene."""
    rng = np.random.default_rng(0)
    person, scene = draw_person(rng), draw_scene(rng)

    def paint(index: int, image: np.ndarray) -> None:
        head = render(person, scene, pose_at(scene, index)).image
        x = int(170 + 60 * np.sin(index / 30))
        image[90 : 90 + FACE, x : x + FACE] = cv2.resize(head * 255, (FACE, FACE))

    make_clip(path, LENGTH, GROUPS[0], paint)


def ours(make: Making, job: Job, detector: Detector) -> Counter[str]:
    """Seconds by stage of the chain."""
    prepared = make.with_detector(detector)(job)
    assert prepared.failure is None, prepared.failure
    return Counter(prepared.seconds) + Counter(crops=len(prepared.items))


def usual(make: Making, job: Job, detector: Detector) -> Counter[str]:
    """Seconds by stage of the usual way."""
    size = make.options.size_px
    target = ((TEMPLATES["gend"] - 0.5) / SCALE + 0.5) * size
    seconds: Counter[str] = Counter()
    length = int(cv2.VideoCapture(str(job.video.path)).get(cv2.CAP_PROP_FRAME_COUNT))
    with tempfile.TemporaryDirectory() as folder:
        for index in pick(length, make.options.frames, "uniform"):
            marks = [time.perf_counter()]
            capture = cv2.VideoCapture(str(job.video.path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
            capture.set(cv2.CAP_PROP_POS_FRAMES, index)
            _, image = capture.read()
            capture.release()
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            marks.append(time.perf_counter())
            (faces,) = detector([image])
            marks.append(time.perf_counter())
            if len(faces.scores):
                matrix, _ = cv2.estimateAffinePartial2D(faces.landmarks[0], target, method=cv2.LMEDS)
                face = cv2.warpAffine(image, matrix, (size, size))
                marks.append(time.perf_counter())
                cv2.imwrite(f"{folder}/{index:06d}.png", cv2.cvtColor(face, cv2.COLOR_RGB2BGR))
                seconds["crops"] += 1
            marks.append(time.perf_counter())
            for stage, begin, end in zip(STAGES, marks, marks[1:], strict=False):
                seconds[stage] += end - begin
    return seconds


def median(rounds: list[Counter[str]], stage: str | None = None) -> float:
    """Median seconds of a stage, or of all."""
    return statistics.median(sum(each[s] for s in ([stage] if stage else STAGES)) for each in rounds)


def main(weights: Path, video: Path | None = None, frames: int = 32, rounds: int = 5) -> None:
    """Times both ways on one core.

    Args:
        weights: RetinaFace-style ONNX file.
        video: Any video with a face; else one is made.
        frames: Frames taken of it.
        rounds: Rounds of each way.
    """
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        if video is None:
            make_head_clip(clip)
        else:
            clip.symlink_to(video.absolute())
        (Path(folder) / "labels.csv").write_text("file,label,split\nclip.mp4,real,test\n")
        options = VideoSets(
            dataset="own",
            root=Path(folder),
            out=Path(folder),
            frames=frames,
            detector="onnx",
            weights=weights,
        )
        found = find(options)
        make = making(options, found)
        assert make.detector is not None
        detector, job = open_detector(make.detector), Job(found.selected.videos[0], "clip")
        ways: dict[str, Callable[[Making, Job, Detector], Counter[str]]] = {"usual": usual, "ours": ours}
        timed: dict[str, list[Counter[str]]] = {name: [] for name in ways}
        for number in range(rounds + 1):
            for name, way in ways.items():
                result = way(make, job, detector)
                timed[name] += [result] * (number > 0)  # The first round warms up.
    clip_name = video or "a clip of 750 frames of 640x480"
    print(f"{frames} frames of {clip_name}; medians of {rounds} rounds, one core")
    print(f"{'':10}{'usual':>12}{'ours':>12}{'ratio':>8}")
    for stage in (*STAGES, None):
        both = [median(timed[name], stage) for name in ways]
        rates = "".join(f"{frames / seconds:10.1f}/s" for seconds in both)
        print(f"{stage or 'all':10}{rates}{both[0] / both[1]:7.1f}x")
    print(f"crops: usual {timed['usual'][0]['crops']}, ours {timed['ours'][0]['crops']}")


if __name__ == "__main__":
    tyro.cli(main)
