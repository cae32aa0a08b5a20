"""Face detectors of the RetinaFace family: boxes, scores and five landmarks for batches of frames."""

from shards.detect.faces import Detector, Faces, Image
from shards.detect.options import DetectorOptions, open_detector, resolve

__all__ = ["Detector", "DetectorOptions", "Faces", "Image", "open_detector", "resolve"]
