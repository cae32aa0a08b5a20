"""Small videos of drawn faces, which the marker detector finds, and datasets laid out with them."""

import json
from pathlib import Path

import av
import numpy as np

from tests.shards.marker_detector import draw_face

WIDTH, HEIGHT = 320, 240


def background(index, seed=0, width=WIDTH, height=HEIGHT):
    """A soft texture that differs by clip and moves with the frame, [H, W, 3]."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin((x + 2 * index) / (9 + seed % 7) + phase) + np.cos(y / 11 + phase) for phase in (0, 1, 2)]
    return (110 + 20 * np.stack(waves, -1)).astype(np.uint8)


def write_clip(path, frames=24, faces=1, seed=0, size=64, width=WIDTH, height=HEIGHT, step=1, movflags=""):
    """An MP4 of drawn faces that drift to the right by ``step`` pixels a frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "12", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            image = background(index, seed, width, height)
            for number in range(faces):
                draw_face(image, 96 + step * index + 120 * number, 112 + seed % 5, size)
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


FFPP_PAIRS = {"train": [["000", "001"], ["002", "003"]], "val": [["004", "005"]], "test": [["006", "007"]]}
FFPP_METHODS = {"Deepfakes": "DF", "Face2Face": "F2F"}


def write_ffpp(root, compression="c23", frames=24):
    """FaceForensics++ of eight reals and two methods, with its split lists."""
    (root / "splits").mkdir(parents=True)
    for split, pairs in FFPP_PAIRS.items():
        (root / "splits" / f"{split}.json").write_text(json.dumps(pairs))
        for a, b in pairs:
            for name in (a, b):
                folder = root / "original_sequences" / "youtube" / compression / "videos"
                write_clip(folder / f"{name}.mp4", frames, seed=int(name))
            for method in FFPP_METHODS:
                folder = root / "manipulated_sequences" / method / compression / "videos"
                for target, source in ((a, b), (b, a)):
                    write_clip(folder / f"{target}_{source}.mp4", frames - 4, seed=int(target) + 1)
    return root


def files(folder) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }
