"""Face detectors of the RetinaFace family: boxes, scores and five landmarks for batches of frames."""
