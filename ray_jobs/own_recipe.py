"""How the faces of own files are cut: as the checkpoint's training faces were, or as the user names it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from dfdet.errors import ConfigError
from dfdet.schema import CropRecipe
from shards.detect import DetectorOptions, open_detector, resolve
from shards.detect.options import DetectorKind, Device
from shards.faces.align import Template

SIDE_PX = 200
"""Side of a tight face where the recipe tells no size: 320 px at 1.6, as shards are stored (pixels)."""


class CutFlags(BaseModel):
    """Flags of the cut, of prediction and serving; None: as the model's recipe has it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    crops: bool = False
    """Files are face crops already, cut as those of training: no detector is opened."""
    template: Literal["gend", "dfb"] | None = None
    """Cut by this template, where the model tells none."""
    scale: float | None = Field(None, ge=1, le=4)
    """Cut with this margin (of ready crops: their margin), as a multiple of the tight face."""
    size_px: int | None = Field(None, ge=32, le=2048)
    """Side of the crops (pixels)."""
    selection: Literal["largest", "track"] | None = None
    """Person: the largest face of each frame, or the one who is in view most."""
    detector: Literal["retinaface", "onnx"] | None = None
    """Face detector; else that of the model's recipe."""
    weights: Path | None = None
    """File of the detector's weights; else retinaface fetches its release."""
    detector_size: int = Field(640, ge=64, le=4096)
    """Longest side that faces are searched at (pixels)."""
    face_threshold: float = Field(0.5, ge=0.01, lt=1)
    """Least confidence of a face (0 to 1)."""


@dataclass(frozen=True)
class Chosen:
    """What a user says of the cut; None: as the checkpoint's recipe has it."""

    crops: bool = False
    template: Template | None = None
    scale: float | None = None
    size_px: int | None = None
    selection: Literal["largest", "track"] | None = None
    detector: DetectorKind | None = None
    weights: Path | None = None
    detector_size: int = 640
    face_threshold: float = 0.5
    device: Device = "auto"


@dataclass(frozen=True)
class Cutting:
    """How files are cut."""

    recipe: CropRecipe
    detector: DetectorOptions | None
    """None for ready crops."""
    remarks: tuple[str, ...] = ()
    """Where it is not as in training, a line each."""


def cutting(trained: CropRecipe, crop_scale: float, chosen: Chosen) -> Cutting:
    """The recipe and the detector for own files; the detector's weights are looked for and opened once.

    Args:
        trained: Recipe of the checkpoint.
        crop_scale: Margin that its model sees.
        chosen: What the user says.

    Raises:
        ConfigError: The recipe tells no cut and the user names none, or the cut is too narrow.
        WeightsError: The detector's weights are missing or are none.
    """
    if chosen.crops:
        return Cutting(_of_ready(trained, chosen), None)
    recipe = _named(trained, crop_scale, chosen)
    detector = _detector(trained, chosen)
    opened = open_detector(replace(detector, device="cpu"))  # this process may have another GPU, or none
    recipe = recipe.model_copy(
        update={"detector": opened.name, "detector_weights_sha256": opened.weights_sha256}
    )
    return Cutting(recipe, detector, tuple(_differences(trained, recipe)))


def _of_ready(trained: CropRecipe, chosen: Chosen) -> CropRecipe:
    """Ready crops have the margin that training's had, unless the user knows better."""
    given = {"scale": chosen.scale} if chosen.scale is not None else {}
    return trained.model_copy(update=given)


def _named(trained: CropRecipe, crop_scale: float, chosen: Chosen) -> CropRecipe:
    template = chosen.template or trained.template
    if template not in get_args(Template):
        raise ConfigError(
            f"the checkpoint was trained on crops of template {template!r}, which no detector cuts: give"
            " ready crops with --crops, or name a cut with --template gend or --template dfb"
        )
    scale = chosen.scale or trained.scale or crop_scale
    if scale < crop_scale - 1e-9:
        raise ConfigError(
            f"--scale {scale:g}: the model sees crops of scale {crop_scale:g}; give that or more"
        )
    return CropRecipe(
        template=template,
        scale=scale,
        size_px=chosen.size_px or trained.size_px or round(SIDE_PX * scale),
        selection=chosen.selection or trained.selection or "largest",
    )


def _detector(trained: CropRecipe, chosen: Chosen) -> DetectorOptions:
    is_onnx = (trained.detector or "").endswith("-onnx")
    kind = chosen.detector or ("onnx" if is_onnx else "retinaface")
    return resolve(
        DetectorOptions(
            kind=kind,
            weights=chosen.weights,
            size_px=chosen.detector_size,
            threshold=chosen.face_threshold,
            device="cpu" if kind == "onnx" else chosen.device,
        )
    )


def _differences(trained: CropRecipe, recipe: CropRecipe) -> list[str]:
    """What is not as in training, for people."""
    told = []
    for name, before in trained.model_dump().items():
        now = getattr(recipe, name)
        if before is None or before == now or (name, now) == ("detector", trained.detector):
            continue
        shown = (str(value)[:12] if name == "detector_weights_sha256" else value for value in (now, before))
        told.append("crop {}: {} here, {} in training; scores may differ".format(name, *shown))
    if recipe.selection == "mask":
        told.append("crop selection: mask, and there are no masks here: the largest face of a frame is taken")
    return told
