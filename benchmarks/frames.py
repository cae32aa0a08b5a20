"""Reading frames: this project against public code, on clips that the program makes itself.

32 frames spread over a 640x480 H.264 clip of 750 frames, with the long groups of pictures that x264 makes
by default and with short ones. ``reopened``: the file opened by OpenCV for each frame, as public code
does; ``one pass``: every frame read once by OpenCV, the wanted ones kept.

    python benchmarks/frames.py [--rounds 5] [--frames 32] [--length 750]

One thread each. The sides alternate; the table has medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import cv2
import numpy as np

from shards.media.frames import pick
from shards.media.video import VideoFile

WIDTH, HEIGHT = 640, 480
GROUPS = (250, 12)
Images = dict[int, np.ndarray]


def picture(
    index: int, texture: np.ndarray, paint: Callable[[int, np.ndarray], None] | None = None
) -> np.ndarray:
    """A frame [H, W, 3] of a scene that moves as a talking head does, with the noise of a camera."""
    noise = np.random.default_rng(index).normal(0, 5, (HEIGHT, WIDTH, 1))
    top, left = int(40 + 20 * np.sin(index / 20)), int(40 + 30 * np.sin(index / 33))
    view = texture[top : top + HEIGHT, left : left + WIDTH].copy()
    if paint is not None:
        paint(index, view)
    return (view + noise).clip(0, 255).astype(np.uint8)


def make_clip(
    path: Path, length: int, group: int, paint: Callable[[int, np.ndarray], None] | None = None
) -> Path:
    """An H.264 clip by x264's defaults (crf 23, three B-frames), as FaceForensics++ c23.

    Args:
        path: File to write.
        length: Frames.
        group: Most frames from one key frame to the next.
        paint: Paints something into frame ``index`` of the moving scene, before the camera's noise.
    """
    small = np.random.default_rng(0).normal(128, 50, (24, 32, 3)).astype(np.float32)
    texture = cv2.resize(small, (WIDTH + 120, HEIGHT + 120), interpolation=cv2.INTER_CUBIC)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "23", "g": str(group)})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(length):
            frame = av.VideoFrame.from_ndarray(picture(index, texture, paint), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def ours(path: Path, indices: Sequence[int]) -> Images:
    """Opened once; decoded on, or from the key frame before."""
    with VideoFile(path) as video:
        return dict(video.frames(indices))


def reopened(path: Path, indices: Sequence[int]) -> Images:
    """Opened for each frame."""
    found = {}
    for index in indices:
        capture = _capture(path)
        capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        read, image = capture.read()
        capture.release()
        if read:
            found[index] = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return found


def one_pass(path: Path, indices: Sequence[int]) -> Images:
    """Every frame up to the last one wanted."""
    capture, wanted, found = _capture(path), set(indices), {}
    for index in range(max(wanted) + 1):
        read, image = capture.read()
        if read and index in wanted:
            found[index] = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    capture.release()
    return found


def _capture(path: Path) -> cv2.VideoCapture:
    return cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])


SIDES: dict[str, Callable[[Path, Sequence[int]], Images]] = {
    "ours": ours,
    "reopened": reopened,
    "one pass": one_pass,
}


def measure(path: Path, indices: Sequence[int], rounds: int) -> dict[str, float]:
    """Median seconds of each side; all must give the same pixels."""
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(rounds):
        images = {}
        for name, read in SIDES.items():
            start = time.perf_counter()
            images[name] = read(path, indices)
            seconds[name].append(time.perf_counter() - start)
        for name, found in images.items():
            same = sum(np.array_equal(found.get(index), images["ours"][index]) for index in indices)
            if same < len(indices):
                print(f"{name}: {len(indices) - same} of {len(indices)} frames differ")
    return {name: statistics.median(each) for name, each in seconds.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each side (times)")
    parser.add_argument("--frames", type=int, default=32, help="frames read of each clip (frames)")
    parser.add_argument("--length", type=int, default=750, help="length of the clips (frames)")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    indices = pick(options.length, options.frames, "uniform")
    print(f"{len(indices)} of {options.length} frames, {WIDTH}x{HEIGHT} H.264, one thread; frames/s")
    names = "".join(f"{name:>10}" for name in SIDES)
    print(f"{'group':>5}{'MB':>6}{names}{'ours/reopened':>16}{'ours/one pass':>16}")
    with tempfile.TemporaryDirectory() as folder:
        for group in GROUPS:
            path = make_clip(Path(folder) / f"{group}.mp4", options.length, group)
            seconds = measure(path, indices, options.rounds)
            rates = "".join(f"{len(indices) / each:10.1f}" for each in seconds.values())
            ratios = "".join(f"{seconds[name] / seconds['ours']:15.1f}x" for name in ("reopened", "one pass"))
            print(f"{group:5d}{path.stat().st_size / 1e6:6.1f}{rates}{ratios}", flush=True)


if __name__ == "__main__":
    main()
