"""Triton's configuration fits the graph beside it, and one that does not is found."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import yaml
from onnx import TensorProto, helper

from dfdet.export import triton


def graph(path: Path, *, score: int = TensorProto.FLOAT, rank: int = 4) -> Path:
    """A graph of the bundle's interface: the score is the first pixel's red."""
    crops = helper.make_tensor_value_info("crops", TensorProto.UINT8, ["n", "h", "w", 3][:rank])
    outputs = [
        helper.make_tensor_value_info("score", score, ["n"]),
        helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["n"]),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [rank - 1], list(range(1, rank))),
    ]
    nodes = [
        helper.make_node("Cast", ["crops"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["logit"], keepdims=0),
        helper.make_node("Cast", ["logit"], ["score"], to=score),
    ]
    made = helper.make_model(
        helper.make_graph(nodes, "g", [crops], outputs, constants),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
    onnx.save(made, path)
    return path


def repository(tmp_path: Path) -> Path:
    return triton.write(tmp_path / "triton", "My run_1", graph(tmp_path / "model.onnx"))


def test_a_repository_has_the_layout_that_triton_wants(tmp_path: Path) -> None:
    model = repository(tmp_path)
    assert model == tmp_path / "triton" / "my-run-1"
    assert (model / "1" / "model.onnx").samefile(tmp_path / "model.onnx")
    config = triton.parse((model / "config.pbtxt").read_text())
    assert config["name"] == ["my-run-1"]
    assert config["backend"] == ["onnxruntime"]
    assert config["max_batch_size"] == ["32"]
    assert config["input"] == [{"name": ["crops"], "data_type": ["TYPE_UINT8"], "dims": ["-1", "-1", "3"]}]
    assert [each["reshape"] for each in config["output"]] == [[{"shape": []}]] * 2
    assert config["dynamic_batching"] == [{"max_queue_delay_microseconds": ["2000"]}]
    assert config["instance_group"] == [{"count": ["1"], "kind": ["KIND_AUTO"]}]


def test_weights_beside_the_graph_go_with_it(tmp_path: Path) -> None:
    (tmp_path / "model.onnx.data").write_bytes(b"weights")
    assert (repository(tmp_path) / "1" / "model.onnx.data").read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("written", "wrong", "told"),
    [
        ('"crops"', '"images"', "its inputs"),
        ("TYPE_UINT8", "TYPE_FP32", "its inputs"),
        ("[ -1, -1, 3 ]", "[ -1, 3 ]", "its inputs"),
        ("[ -1, -1, 3 ]", "[ -1, -1, 4 ]", "its inputs"),
        ("max_batch_size: 32", "max_batch_size: 0", "its inputs"),
        ('"logit"', '"margin"', "its outputs"),
        ("reshape { shape: [ ] }", "", "its outputs"),
        ('name: "my-run-1"', 'name: "other"', "its folder is my-run-1"),
    ],
)
def test_a_configuration_that_does_not_fit_is_found(
    written: str, wrong: str, told: str, tmp_path: Path
) -> None:
    model = repository(tmp_path)
    config = model / "config.pbtxt"
    assert written in config.read_text()
    config.write_text(config.read_text().replace(written, wrong, 1))
    with pytest.raises(triton.TritonError, match=told):
        triton.check(model)


@pytest.mark.parametrize("wrong", [{"score": TensorProto.DOUBLE}, {"rank": 3}])
def test_a_graph_that_does_not_fit_is_found(wrong: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(triton.TritonError, match="are not those of the graph"):
        triton.write(tmp_path / "triton", "run", graph(tmp_path / "model.onnx", **wrong))


def test_protobuf_text_is_read() -> None:
    text = 'a: 1 # one\nb { c: "x y" }\nb: { c: TYPE_A, d: [ ] }\ne [ { f: -2 }, { f: .5 } ]'
    assert triton.parse(text) == {
        "a": ["1"],
        "b": [{"c": ["x y"]}, {"c": ["TYPE_A"], "d": []}],
        "e": [{"f": ["-2"]}, {"f": [".5"]}],
    }


@pytest.mark.parametrize("text", ["a {", "a }", "a: [ 1", "a: ;", "a"])
def test_what_is_no_protobuf_text_is_refused(text: str) -> None:
    with pytest.raises(triton.TritonError, match=r"config\.pbtxt"):
        triton.parse(text)


def test_kserve_serves_the_repository() -> None:
    service = yaml.safe_load(triton.kserve("My run_1", 1_200_000_000))
    assert service["kind"] == "InferenceService"
    assert service["metadata"]["name"] == "my-run-1"
    model = service["spec"]["predictor"]["model"]
    assert model["modelFormat"] == {"name": "triton"}
    assert model["protocolVersion"] == "v2"
    assert model["storageUri"].endswith("/triton")
    assert model["resources"]["requests"]["memory"] == "6Gi"


@pytest.mark.parametrize(
    ("name", "made"), [("gend-20261121", "gend-20261121"), ("A b.c", "a-b-c"), ("__", "dfdet")]
)
def test_names_are_those_of_kubernetes(name: str, made: str) -> None:
    assert triton.model_name(name) == made
