"""From a sample's bytes to the crop in its batch: what the decode threads do."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from dfdet.data.augment import Parameters, apply, recompress
from dfdet.data.decode import Pixels, cut_middle, decode
from dfdet.data.reader import DamageError
from dfdet.errors import ConfigError

_FILTERS = ("bicubic", "bilinear")


@dataclass(frozen=True)
class Prepare:
    """Decodes, cuts, augments and perhaps resizes."""

    max_side: int
    """Larger crops are shrunk to it, unless ``resize`` does (pixels)."""
    jpeg_first: bool = False
    """Order of the augmentation."""
    jpeg_only: bool = False
    """Leave the augmentation after JPEG to the device."""
    resize: tuple[int, str] | None = None
    """Side (pixels) and filter of Pillow's resize."""

    def __post_init__(self) -> None:
        if self.resize and self.resize[1] not in _FILTERS:
            raise ConfigError(
                f"data.resize=pillow: cannot resize by the backbone's {self.resize[1]!r}, only by"
                f" {' or '.join(_FILTERS)}; set --data.resize device"
            )

    def crop(
        self,
        data: bytes,
        stored_side: int,
        side: int,
        parameters: Parameters | None,
        into: Pixels | None = None,
    ) -> Pixels:
        """The crop of a sample, [s, s, 3] uint8.

        Args:
            data: An encoded image.
            stored_side: Its shorter side, as the index says (pixels).
            side: Side of the middle square to cut (pixels).
            parameters: Augmentation; None for none.
            into: Room of the stored image's size where the crop may lie already, if it is the image.

        Raises:
            DamageError: It does not decode, or has another size.
        """
        whole = into is not None and parameters is None and not self.resize
        image = decode(data, into if whole and side == stored_side else None)
        if min(image.shape[:2]) != stored_side:
            raise DamageError("size", f"is {image.shape[1]}x{image.shape[0]} px, unlike its index")
        image = cut_middle(image, side)
        if side > self.max_side and not self.resize:
            image = cv2.resize(image, (self.max_side, self.max_side), interpolation=cv2.INTER_AREA)
        if parameters is not None and self.jpeg_only:
            image = recompress(image, parameters)
        elif parameters is not None:
            image = apply(image, parameters, jpeg_first=self.jpeg_first)
        return pillow_resize(image, *self.resize) if self.resize else image


def pillow_resize(image: Pixels, side: int, filter_name: str = "bicubic") -> Pixels:
    """Pillow's antialiased resize of a square image: that of open_clip's ``image_transform``, to the bit."""
    resample = Image.Resampling[filter_name.upper()]
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((side, side), resample))
