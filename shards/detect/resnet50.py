"""RetinaFace with ResNet-50 in batches: network, priors and decoding are those of retinaface-pytorch.

Only modules of it are imported that need torch and torchvision alone: its ``predict_single`` would
bring in albumentations.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import retinaface
import safetensors.torch
import torch
from numpy.typing import NDArray
from retinaface.box_utils import decode, decode_landm
from retinaface.network import RetinaFace
from retinaface.prior_box import priorbox
from torch import Tensor
from torch.backends import cudnn
from torch.nn import functional as F

from dfdet.errors import WeightsError
from shards.detect.faces import Faces, Image
from shards.detect.geometry import PRIOR_SIDES, STRIDES, VARIANCES, Fit, finish, fit_frame, shrink
from shards.detect.weights import read_weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, RGB in [0, 1]."""
_SHOWN = 3


class ResNet50Detector:
    """Detector from a state dict of retinaface-pytorch's ResNet-50, in float32 throughout.

    Frames of one size share a forward pass. Every pass has exactly ``batch`` images (a part-filled
    one is filled up with black), and no image is mixed with another, so the faces of a frame depend
    on the frame, the batch size, the device and the library builds, not on what else is in the call.

    Args:
        weights: ``.pth`` or ``.safetensors``, or a ``.zip`` of one of them.
        size_px: Largest long side of the input (pixels).
        threshold: Least score of a face.
        nms: Largest intersection over union of two faces.
        device: Where it runs.
        batch: Images a pass. Default: 8 on a GPU; 1 on a CPU, where batches gain nothing (one
            thread, 640x384: 2.3 frames/s one by one, 2.0 in batches of 4).

    Raises:
        WeightsError: The file is missing, damaged, holds more than tensors, or does not fit.
    """

    name = f"retinaface-resnet50 {retinaface.__version__}"

    def __init__(
        self,
        weights: Path,
        *,
        size_px: int,
        threshold: float,
        nms: float,
        device: torch.device,
        batch: int | None = None,
    ) -> None:
        data, self.weights_sha256 = read_weights(weights)
        self._size_px, self._threshold, self._nms = size_px, threshold, nms
        self._batch = batch or (8 if device.type == "cuda" else 1)
        self._device = device
        network = make_network(_tensors(data, weights), str(weights))
        self._network = network.to(device, memory_format=torch.channels_last)
        self._mean = torch.tensor(MEAN, device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(STD, device=device).view(1, 3, 1, 1) * 255

    def __call__(self, frames: Sequence[Image]) -> list[Faces]:
        """Faces of each frame; frames may differ in size."""
        fits = [fit_frame(frame.shape[1], frame.shape[0], self._size_px) for frame in frames]
        found: dict[int, Faces] = {}
        for numbers in _chunks(fits, self._batch):
            first = fits[numbers[0]]
            batch = np.zeros((self._batch, first.height, first.width, 3), np.uint8)
            for row, number in enumerate(numbers):
                batch[row] = shrink(frames[number], fits[number])
            rows, boxes, scores, landmarks = self._detect(batch, first)
            for row, number in enumerate(numbers):
                own = rows == row
                found[number] = finish(boxes[own], scores[own], landmarks[own], fits[number], self._nms)
        return [found[number] for number in range(len(frames))]

    @torch.inference_mode()
    def _detect(self, batch: NDArray[np.uint8], fit: Fit) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        """Candidates of a batch: its row, box [4], score and landmarks [5, 2] of each (input pixels)."""
        with cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            boxes, logits, landmarks = self._network(self._input(batch, fit))
        scores = logits.softmax(-1)[..., 1]
        rows, chosen = torch.nonzero(scores > self._threshold, as_tuple=True)
        prior = _priors(fit.input_height, fit.input_width, self._device)[chosen]
        size = torch.tensor([fit.input_width, fit.input_height], device=self._device)
        corners = decode(boxes[rows, chosen], prior, VARIANCES) * size.repeat(2)
        points = decode_landm(landmarks[rows, chosen], prior, VARIANCES).view(-1, 5, 2) * size
        results = (rows, corners, scores[rows, chosen], points)
        return tuple(result.cpu().numpy() for result in results)  # type: ignore[return-value]

    def _input(self, batch: NDArray[np.uint8], fit: Fit) -> Tensor:
        """Normalised images [B, 3, H, W]; the padding has the mean colour."""
        images = torch.from_numpy(batch).to(self._device).permute(0, 3, 1, 2).float()
        images = (images - self._mean) / self._std
        padding = (0, fit.input_width - fit.width, 0, fit.input_height - fit.height)
        return F.pad(images, padding).contiguous(memory_format=torch.channels_last)


def make_network(tensors: Mapping[str, Tensor] | None = None, source: str = "weights") -> RetinaFace:
    """The network for inference; with random weights where none are given.

    Raises:
        WeightsError: Tensors are missing, unexpected, or of other shapes.
    """
    layers = {"layer2": 1, "layer3": 2, "layer4": 3}
    with warnings.catch_warnings(), torch.device("meta" if tensors is not None else "cpu"):
        warnings.simplefilter("ignore")  # It calls torchvision with a deprecated argument.
        network = RetinaFace("Resnet50", False, in_channels=256, return_layers=layers, out_channels=256)
    if tensors is not None:
        _require_fit(tensors, network.state_dict(), source)
        floats = {name: x.float() if x.is_floating_point() else x for name, x in tensors.items()}
        network.load_state_dict(floats, assign=True)
    return network.eval().requires_grad_(False)


def _require_fit(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    kinds = {
        "missing": [name for name in wanted if name not in tensors],
        "unexpected": [name for name in tensors if name not in wanted],
        "of other shape": [n for n, x in tensors.items() if n in wanted and x.shape != wanted[n].shape],
    }
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:_SHOWN])})" for kind, names in kinds.items() if names
    ]
    if problems:
        raise WeightsError(
            f"--weights {source}: not of RetinaFace with ResNet-50: tensors {'; '.join(problems)}; give the"
            " file of retinaface-pytorch's release"
        )


def _tensors(data: bytes, path: Path) -> dict[str, Tensor]:
    try:
        if data[8:9] == b"{":  # The header of safetensors follows its length.
            return safetensors.torch.load(data)
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # A damaged pickle raises whatever it happens to (8 kinds in 6000 trials).
        # What torch says of a pickle it refuses is how to run it after all.
        pickled = isinstance(error, pickle.UnpicklingError)
        reason = "damaged, or objects in a pickle" if pickled else (str(error).splitlines() or [""])[0][:200]
        raise WeightsError(
            f"--weights {path}: cannot be read as plain tensors ({reason}); give a saved state dict (.pth),"
            " a .zip of one, or .safetensors"
        ) from error
    if not isinstance(loaded, Mapping) or not all(isinstance(x, Tensor) for x in loaded.values()):
        raise WeightsError(f"--weights {path}: holds no state dict; give a saved state dict of tensors")
    return {str(name): tensor for name, tensor in loaded.items()}


def _chunks(fits: Sequence[Fit], size: int) -> Iterator[list[int]]:
    """Numbers of frames that share a size, at most ``size`` at once."""
    groups: dict[tuple[int, int], list[int]] = {}
    for number, fit in enumerate(fits):
        groups.setdefault((fit.height, fit.width), []).append(number)
    for numbers in groups.values():
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size]


@lru_cache(maxsize=32)
def _priors(height: int, width: int, device: torch.device) -> Tensor:
    """Centre and sides of each prior as parts of the input, [P, 4]."""
    return priorbox(PRIOR_SIDES, STRIDES, clip=False, image_size=(height, width)).to(device)
