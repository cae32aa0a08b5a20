"""Writes a bundle: every file of it, the graphs compared with the checkpoint, all or nothing.

Same checkpoint, options and library versions give the same bytes: no times, paths or names of hosts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfdet import published
from dfdet.data.prepare import pillow_resize
from dfdet.errors import DfdetError
from dfdet.evaluation.evaluate import probabilities
from dfdet.export import card, crops, hugging_face, records, triton
from dfdet.export.crops import Crops, Pixels
from dfdet.export.graph import deployed, whole_state
from dfdet.export.onnx_file import OnnxScorer, export_onnx
from dfdet.export.parity import Parity, compare, judge
from dfdet.export.program import export_program, load_program
from dfdet.export.request import Precision, Request
from dfdet.export.staging import files_of, new_folder, sha256, write_sums
from dfdet.export.tensor_file import write_tensors
from dfdet.model.detector import Detector, frozen_sha256

Scores = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Fake probabilities and fake minus real logits ``[n]``."""
Score = Callable[[Pixels], Scores]
"""Scores crops ``[b, s, s, 3]``."""
Count = Callable[[int, int], None]
"""Called with the number done and the number of all."""

OnnxPrecision = Literal["float32", "float16", "int8"]
ProgramPrecision = Literal["float32", "float16", "bfloat16"]
ONNX: dict[OnnxPrecision, str] = {
    "float32": "model.onnx",
    "float16": "model-float16.onnx",
    "int8": "model-int8.onnx",
}
PROGRAMS: dict[ProgramPrecision, str] = {
    "float32": "model.pt2",
    "float16": "model-float16.pt2",
    "bfloat16": "model-bfloat16.pt2",
}


class ParityError(DfdetError):
    """A file of the bundle that does not score as the checkpoint does."""


@contextmanager
def _uncounted(what: str) -> Iterator[Count]:
    yield lambda done, total: None


@dataclass(frozen=True)
class Shown:
    """Where an export tells how it goes on."""

    say: Callable[[str], None] = lambda line: None
    """Takes a line."""
    counting: Callable[[str], AbstractContextManager[Count]] = _uncounted
    """Given what is counted, gives what is called after each step of long work."""


def write_bundle(request: Request, shown: Shown | None = None) -> Path:
    """Writes the bundle that is asked for; gives its folder.

    Raises:
        RunFolderError: The place cannot be written, or is written to by another export.
        ParityError: A file's scores differ from the checkpoint's by more than is allowed.
        DamagedSampleError: A crop of the validation set cannot be read.
        OSError: The disk is full.
    """
    out = Path(request.options.out)
    with new_folder(out) as folder:
        _Writing(request, folder, shown or Shown()).run()
    return out


class _Writing:
    """One export: the steps in their order, and what they share."""

    def __init__(self, request: Request, folder: Path, shown: Shown) -> None:
        self.request, self.folder, self.shown = request, folder, shown
        self.opened, self.options = request.opened, request.options
        self.model = deployed(request.opened, pretrained=request.options.pretrained)
        self.crops = self._crops()
        self.reference: Scores
        self.files: dict[str, dict[str, Any]] = {}
        """Parity by file, as parity.json has it."""

    def run(self) -> None:
        """Every file of the bundle, the checksums last."""
        self.reference = self._scored(_torch_score(self.model), "crops by the model")
        own = self._own()
        self._weights()
        self._graphs()
        if self.options.hugging_face:
            self._hugging_face()
        if self.options.triton or self.options.kserve:
            self._triton()
        self._texts(own)
        self._seal()

    def _crops(self) -> Crops:
        scale, most = self.opened.config.data.crop_scale, self.options.crops
        if self.request.sample is None:
            return crops.synthetic(self.opened.crop, scale, most)
        name, index = self.request.sample
        self.shown.say(f"reading up to {most} crops of {name}")
        return crops.from_set(name, index, scale, most)

    def _scored(self, score: Score, what: str) -> Scores:
        """Scores and logits of all crops in their order."""
        scores, logits = (np.empty(len(self.crops), np.float32) for _ in range(2))
        done = 0
        with self.shown.counting(what) as count:
            for places, images in self.crops.batches():
                scores[places], logits[places] = score(images)
                done += len(places)
                count(done, len(self.crops))
        return scores, logits

    def _compared(self, score: Score, what: str) -> Parity:
        return compare(*self.reference, *self._scored(score, what), self.crops.labels)

    def _own(self) -> Parity:
        """The checkpoint's own scoring; in float32 it must be that of the exported model.

        Raises:
            ParityError: It is not.
        """
        parity = self._compared(own_score(self.request), "crops by the checkpoint")
        in_float32 = self.opened.config.engine.precision == "fp32"
        if in_float32 and (refusal := judge(parity, "float32", self.options.bound)):
            raise ParityError(f"{self.options.checkpoint}: its own scores are others: {refusal}")
        return parity

    def _weights(self) -> None:
        self.shown.say("writing model.safetensors")
        about = {"format": "dfdet", "format_version": "1"}
        write_tensors(self.folder / "model.safetensors", whole_state(self.model), about)
        if delta := delta_metadata(self.request):
            trained = self.opened.detector.trainable()
            tensors = {name: trained[name].detach().float().cpu().contiguous() for name in sorted(trained)}
            write_tensors(self.folder / "delta.safetensors", tensors, delta)

    def _graphs(self) -> None:
        """Writes each graph, reads it back and compares it."""
        wanted = {"float32", *self.options.precisions}
        for kind, name in ONNX.items():
            if kind in wanted:
                self.shown.say(f"writing {name}")
                export_onnx(self.model, self.folder / name, precision=kind)
                score: Score = OnnxScorer(self.folder / name)
                self._judge(name, kind, self._compared(score, f"crops by {name}"))
        for form, name in PROGRAMS.items():
            if form in wanted:
                self.shown.say(f"writing {name}")
                export_program(self.model, self.folder / name, precision=form)
                program = load_program(self.folder / name, "cpu")
                self._judge(name, form, self._compared(_torch_score(program), f"crops by {name}"))

    def _judge(self, name: str, precision: Precision, parity: Parity) -> None:
        """Records a file's parity.

        Raises:
            ParityError: It costs more than is allowed.
        """
        refusal = judge(parity, precision, self.options.bound)
        if refusal and (precision == "float32" or not self.options.force):
            raise ParityError(f"{name}: {refusal}")
        self.files[name] = {"precision": precision, **_measured(parity), "forced": refusal is not None}

    def _hugging_face(self) -> None:
        self.shown.say("writing huggingface/")
        folder = self.folder / "huggingface"
        state, backbone = whole_state(self.model), self.opened.config.model.backbone
        hugging_face.write(folder, self.model, state, backbone)
        theirs = published.load(str(folder)).detector
        score = _detector_score(theirs, pillow=self.opened.config.data.resize == "pillow")
        self._judge(
            "huggingface/model.safetensors", "float32", self._compared(score, "crops by huggingface/")
        )

    def _triton(self) -> None:
        self.shown.say("writing triton/")
        graph = self.folder / "model.onnx"
        triton.write(self.folder / "triton", self.request.name, graph)
        if self.options.kserve:
            text = triton.kserve(self.request.name, graph.stat().st_size)
            (self.folder / "kserve.yaml").write_text(text, encoding="utf-8")

    def _texts(self, own: Parity) -> None:
        opened = self.opened
        scale = opened.config.data.crop_scale
        self._json("preprocess.json", records.preprocess(opened.crop, scale, opened.detector.preprocess))
        if self.request.threshold:
            self._json("threshold.json", self.request.threshold.model_dump(mode="json"))
        self._write("config.json", records.portable(opened.config).to_json())
        parity = {
            "crops": len(self.crops),
            "set": self.crops.name,
            "set_fingerprint": self.crops.fingerprint,
            "bound": self.options.bound,
            "checkpoint": {"precision": opened.config.engine.precision, **_measured(own)},
            "files": self.files,
        }
        self._json("parity.json", parity)
        example = (resources.files("dfdet.export.bundled") / "example.py").read_text(encoding="utf-8")
        self._write("example.py", example)
        self._write("MODEL_CARD.md", card.write(self.request, self.model, parity))

    def _seal(self) -> None:
        """bundle.json and the checksums, last of all."""
        sums = {path: sha256(self.folder / path) for path in files_of(self.folder)}
        files = {
            path: {"sha256": digest, "bytes": (self.folder / path).stat().st_size}
            for path, digest in sums.items()
        }
        request = self.request
        self._json("bundle.json", records.bundle(request.name, self.opened.fingerprint, files, self._notes()))
        write_sums(self.folder, sums)

    def _notes(self) -> tuple[str, ...]:
        forced = [name for name, entry in self.files.items() if entry["forced"]]
        notes = [*self.request.notes, *(f"{name} was forced past the bound." for name in forced)]
        if not (self.folder / "delta.safetensors").exists():
            notes.append("There is no delta.safetensors: the tower has no public weights to add it to.")
        return tuple(notes)

    def _json(self, name: str, tree: dict[str, Any]) -> None:
        self._write(name, json.dumps(tree, indent=2, ensure_ascii=False) + "\n")

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")


def delta_metadata(request: Request) -> dict[str, str] | None:
    """What ``delta.safetensors`` goes on; None where that is no public tower, or nothing is left of it."""
    opened = request.opened
    config = opened.config
    if opened.folder is None or config.model.pretrained is None or config.tuning.mode == "full":
        return None
    return {
        "format": "dfdet-delta",
        "format_version": "1",
        "backbone": config.model.backbone,
        "pretrained": str(records.pretrained_name(config)),
        "image_size": str(config.model.image_size),
        "frozen_sha256": frozen_sha256(opened.detector),
        "frozen_precision": config.engine.precision,
    }


def own_score(request: Request) -> Score:
    """The checkpoint's own scores, computed as an evaluation does and in its own precision."""
    opened = request.opened
    return _detector_score(opened.detector, pillow=opened.config.data.resize == "pillow")


def _detector_score(detector: Detector, *, pillow: bool) -> Score:
    side, how = detector.preprocess.image_size, detector.preprocess.interpolation

    @torch.no_grad()
    def score(images: Pixels) -> Scores:
        sized = np.stack([pillow_resize(image, side, how) for image in images]) if pillow else images
        logits = detector.head(detector(detector.to_input(torch.from_numpy(sized))))
        found = probabilities(logits).numpy()
        return found[:, 0], found[:, 1]

    return score


def _torch_score(run: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Score:
    @torch.no_grad()
    def score(images: Pixels) -> Scores:
        scores, logits = run(torch.from_numpy(images))
        return scores.numpy(), logits.numpy()

    return score


def _measured(parity: Parity) -> dict[str, Any]:
    """A parity without the number of crops, which is equal for all files."""
    return {name: value for name, value in asdict(parity).items() if name != "crops"}
