"""Files that are no detectors, and damaged or dangerous ones, are refused in one line."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dfdet.errors import ConfigError, WeightsError
from dfdet.published import load
from tests.dfdet.published.authors import Reference, gend_folder, in_wrapper, lightning_file


class Calls:
    """Pickles as a call of a function, as an attacker's object does."""

    def __init__(self, function: Any, *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def assert_refused(source: Path | str, *words: str) -> str:
    with pytest.raises((WeightsError, ConfigError)) as refused:
        load(str(source))
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith(str(source))
    for word in words:
        assert word in message
    return message


def folder(path: Path, tensors: dict[str, Tensor]) -> Path:
    return gend_folder(path, tensors, backbone="clip", head="LinearNorm")


def changed(reference: Reference, **tensors: Tensor | None) -> dict[str, Tensor]:
    """The file's tensors with some replaced, or removed where None; ``__`` in a name stands for a dot."""
    merged = reference.state_dict() | {name.replace("__", "."): t for name, t in tensors.items()}
    return {name: tensor for name, tensor in merged.items() if tensor is not None}


def test_a_missing_tensor_of_the_tower_is_named(tmp_path: Path, reference: Reference) -> None:
    tensors = changed(reference, feature_extractor__vision_model__post_layernorm__weight=None)
    assert_refused(folder(tmp_path, tensors), "1 missing (visual.ln_post.weight)")


def test_a_missing_key_projection_is_named(tmp_path: Path, reference: Reference) -> None:
    name = "feature_extractor.vision_model.encoder.layers.1.self_attn.k_proj.weight"
    tensors = {k: v for k, v in reference.state_dict().items() if k != name}
    assert_refused(
        folder(tmp_path, tensors), "1 missing (visual.transformer.resblocks.1.attn.in_proj_weight)"
    )


@pytest.mark.parametrize("name", ["encoder__layers__0__extra", "surplus__weight"])
def test_a_surplus_tensor_of_the_tower_is_named(name: str, tmp_path: Path, reference: Reference) -> None:
    tensors = changed(reference, **{f"feature_extractor__vision_model__{name}": torch.zeros(3)})
    assert_refused(folder(tmp_path, tensors), "1 left over", name.replace("__", "."))


def test_a_tensor_of_neither_tower_nor_head_is_named(tmp_path: Path, reference: Reference) -> None:
    tensors = changed(reference, decoder__weight=torch.zeros(3))
    assert_refused(folder(tmp_path, tensors), "1 tensors are neither", "decoder.weight")


def test_a_detector_without_its_head_is_refused(tmp_path: Path, reference: Reference) -> None:
    tensors = changed(reference, model__linear__weight=None, model__linear__bias=None)
    assert_refused(folder(tmp_path, tensors), "(head)", "2 missing (linear.weight, linear.bias)")


def test_a_head_of_more_classes_is_refused_with_both_shapes(tmp_path: Path, reference: Reference) -> None:
    tensors = changed(reference, model__linear__weight=torch.zeros(5, 64))
    assert_refused(folder(tmp_path, tensors), "linear.weight [5, 64] instead of [2, 64]")


def test_a_norm_of_other_width_is_refused_with_both_shapes(tmp_path: Path, reference: Reference) -> None:
    tensors = changed(reference, feature_extractor__vision_model__post_layernorm__bias=torch.zeros(32))
    assert_refused(folder(tmp_path, tensors), "visual.ln_post.bias [32] instead of [64]")


def test_projections_that_cannot_be_joined_are_refused(tmp_path: Path, reference: Reference) -> None:
    name = "feature_extractor.vision_model.encoder.layers.0.self_attn.q_proj.weight"
    tensors = reference.state_dict() | {name: torch.zeros(64, 32)}
    assert_refused(folder(tmp_path, tensors), "do not fit one another")


def test_a_wrapper_without_its_adapter_misses_the_norm(tmp_path: Path, reference: Reference) -> None:
    tensors = {
        k: v
        for k, v in in_wrapper(reference.state_dict()).items()
        if "post_layernorm.ln_tuning_layers.default.weight" not in k
    }
    path = lightning_file(tmp_path / "dd.ckpt", tensors, head="LinearNorm")
    assert_refused(path, "1 missing (visual.ln_post.weight)")


def test_a_second_adapter_is_left_over(tmp_path: Path, reference: Reference) -> None:
    name = "feature_extractor.base_model.model.vision_model.post_layernorm.ln_tuning_layers.other.weight"
    tensors = in_wrapper(reference.state_dict()) | {name: torch.zeros(64)}
    assert_refused(lightning_file(tmp_path / "dd.ckpt", tensors, head="LinearNorm"), "1 left over")


def test_a_tower_of_unknown_sizes_is_refused_with_them(tmp_path: Path, reference: Reference) -> None:
    name = "feature_extractor.vision_model.embeddings.position_embedding.weight"
    tensors = reference.state_dict() | {name: torch.zeros(26, 64)}
    assert_refused(folder(tmp_path, tensors), "no CLIP tower", "layers 2, patch_size 8, image_size 40")


def test_a_tower_of_another_family_is_refused(tmp_path: Path, reference: Reference) -> None:
    tensors = {"feature_extractor.stem.weight": torch.zeros(3), "model.linear.weight": torch.zeros(2, 3)}
    assert_refused(folder(tmp_path, tensors), "none of CLIP, Perception Encoder or DINOv3", "stem.weight")


def test_an_unknown_head_is_refused(tmp_path: Path, reference: Reference) -> None:
    path = gend_folder(tmp_path, reference.state_dict(), backbone="clip", head="Cosine")
    assert_refused(path, "its head 'Cosine' is not known", "LinearNorm, linear")


def test_unknown_weights_are_refused_with_what_is_known(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"layer.weight": torch.zeros(3)}, path)
    assert_refused(path, "no known kind of detector", "layer.weight", "Lightning")


@pytest.mark.parametrize("name", ["notes.txt", "model.safetensors", "empty.ckpt"])
def test_a_file_that_holds_no_weights_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"" if name.startswith("empty") else b"these are notes of a meeting")
    assert_refused(path, "cannot be read as")


@pytest.mark.parametrize("part", [0.3, 0.99])
@pytest.mark.parametrize("name", ["gend.safetensors", "dd.ckpt"])
def test_a_truncated_file_is_refused(part: float, name: str, tmp_path: Path, reference: Reference) -> None:
    path = tmp_path / name
    if name.endswith("ckpt"):
        lightning_file(path, reference.state_dict(), head="LinearNorm")
    else:
        save_file(reference.state_dict(), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    assert_refused(path, "cannot be read as", "get it again")


def test_a_torchscript_archive_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "model.torchscript"
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(path))
    assert_refused(path, "a TorchScript archive", "--model.pretrained openai")


@pytest.mark.parametrize("function", [eval, exec], ids=["eval", "exec"])
def test_a_file_that_calls_a_function_of_python_is_refused_and_not_run(
    function: Any, tmp_path: Path, reference: Reference
) -> None:
    mark = tmp_path / "ran"
    attack = Calls(function, f"open({str(mark)!r}, 'w')")
    path = lightning_file(tmp_path / "bad.ckpt", reference.state_dict(), head=attack)
    assert_refused(path, function.__name__, "nothing was run")
    assert not mark.exists()


def test_a_file_that_calls_the_shell_is_refused_and_not_run(tmp_path: Path, reference: Reference) -> None:
    import os

    mark = tmp_path / "ran"
    path = lightning_file(
        tmp_path / "bad.ckpt", reference.state_dict(), run=Calls(os.system, f"touch {mark}")
    )
    assert_refused(path, "system")
    assert not mark.exists()


def test_an_old_torch_file_that_calls_the_shell_is_refused_and_not_run(tmp_path: Path) -> None:
    import os

    mark = tmp_path / "ran"
    path = tmp_path / "old.pth"
    torch.save({"a": Calls(os.system, f"touch {mark}")}, path, _use_new_zipfile_serialization=False)
    assert_refused(path, "cannot be read as weights")
    assert not mark.exists()


def test_classes_of_other_packages_are_not_run_even_where_they_can_be_imported(
    tmp_path: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    module = types.ModuleType("their_package")
    monkeypatch.setitem(sys.modules, "their_package", module)

    def note(text: str) -> str:
        ran.append(text)
        return text

    note.__module__, note.__qualname__ = "their_package", "note"
    module.note = note  # type: ignore[attr-defined]
    path = lightning_file(tmp_path / "dd.ckpt", reference.state_dict(), extra=Calls(note, "loaded"))
    published = load(str(path))
    assert ran == []
    assert "not loaded: their_package.note" in published.note


def test_objects_in_place_of_tensors_are_refused(tmp_path: Path, reference: Reference) -> None:
    path = lightning_file(tmp_path / "dd.ckpt", reference.state_dict() | {"model.linear.bias": "text"})
    assert_refused(path, "1 entries that are no tensors (model.linear.bias)")


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "gone.ckpt", "no such file")


def test_a_config_that_is_no_json_is_refused(tmp_path: Path, reference: Reference) -> None:
    path = folder(tmp_path, reference.state_dict())
    (path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json: cannot be read as JSON"):
        load(str(path))
