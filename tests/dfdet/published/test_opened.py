"""A published checkpoint, opened as ours are."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dfdet.checkpoints.opened import open_checkpoint
from tests.dfdet.published.authors import Reference, gend_folder


def test_it_scores_as_its_authors_code_does(tmp_path: Path, reference: Reference, images: Tensor) -> None:
    folder = gend_folder(tmp_path / "gend", reference.state_dict(), backbone="some/clip", head="LinearNorm")
    opened = open_checkpoint(str(folder))
    reference.normalize = True
    with torch.no_grad():
        found = opened.detector.head(opened.detector(images))
        torch.testing.assert_close(found, reference(images), rtol=0, atol=1e-5)
    assert (opened.folder, opened.threshold, opened.crop.template) == (None, None, "gend")
    assert opened.fingerprint == open_checkpoint(str(folder)).fingerprint


def test_another_model_has_another_fingerprint(tmp_path: Path, reference: Reference) -> None:
    tensors = reference.state_dict()
    one = gend_folder(tmp_path / "one", tensors, backbone="some/clip", head="linear")
    changed = {name: tensor.clone() for name, tensor in tensors.items()}
    next(tensor for name, tensor in changed.items() if name.endswith("linear.bias"))[0] += 1e-3
    other = gend_folder(tmp_path / "other", changed, backbone="some/clip", head="linear")
    assert open_checkpoint(str(one)).fingerprint != open_checkpoint(str(other)).fingerprint
