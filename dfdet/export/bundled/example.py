"""From a face crop to its score, with NumPy, Pillow and onnxruntime: python example.py CROP.png."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

BUNDLE = Path(__file__).parent
RECIPE = json.loads((BUNDLE / "preprocess.json").read_text())

image = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB")
side, stored = min(image.size), RECIPE["crop"]["scale"]
if stored:  # the middle of the stored crop, as in training
    side = max(1, min(side, int(side * RECIPE["crop_scale"] / stored + 0.5)))
left, top = (image.width - side) // 2, (image.height - side) // 2
crop = np.asarray(image.crop((left, top, left + side, top + side)))
session = onnxruntime.InferenceSession(BUNDLE / "model.onnx")
score = session.run(["score"], {"crops": crop[None]})[0][0]
fitted = BUNDLE / "threshold.json"
threshold = json.loads(fitted.read_text())["threshold"] if fitted.exists() else None
verdict = "no threshold" if threshold is None else "fake" if score >= threshold else "real"
print(f"score {score:.6f} {verdict}")
