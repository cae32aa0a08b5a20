"""dfdet: distributed training of generalizable face-deepfake detectors."""

__version__ = "0.1.0"
