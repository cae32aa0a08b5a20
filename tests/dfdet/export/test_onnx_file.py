import numpy as np
import onnx
import onnx_ir
import pytest

from dfdet.errors import ConfigError
from dfdet.export import onnx_file
from dfdet.export.onnx_file import OPSET, OnnxScorer, export_onnx
from dfdet.export.parity import compare, judge
from tests.dfdet.export.models import BATCHES, CLIP, KINDS, crops_of, eager, register_small_clip, shared


@pytest.fixture(scope="module", autouse=True)
def small_clip(tmp_path_factory):
    register_small_clip(tmp_path_factory.mktemp("configs"))


@pytest.fixture(scope="module")
def clip(small_clip):
    return shared(CLIP)


@pytest.fixture(scope="module")
def written(clip, tmp_path_factory):
    """Files of the CLIP detector by precision."""
    folder = tmp_path_factory.mktemp("onnx")
    paths = {precision: folder / f"{precision}.onnx" for precision in ("float32", "float16", "int8")}
    for precision, path in paths.items():
        export_onnx(clip, path, precision=precision)
    return paths


@pytest.mark.parametrize("backbone", KINDS)
def test_onnx_runtime_scores_any_batch_and_side_as_the_module_does(backbone, tmp_path):
    model = shared(backbone)
    export_onnx(model, tmp_path / "model.onnx")
    scorer = OnnxScorer(tmp_path / "model.onnx", threads=1)
    for count, side in BATCHES:
        crops = crops_of(count, side)
        parity = compare(*eager(model, crops), *scorer(crops))
        assert parity.max_score_difference < 2e-6
        assert judge(parity, "float32", bound=0) is None


def test_names_types_dimensions_and_opset_are_those_of_the_contract(written):
    graph = onnx.load(written["float32"])
    onnx.checker.check_model(graph, full_check=True)
    ends = {value.name: value.type.tensor_type for value in (*graph.graph.input, *graph.graph.output)}
    dims = {name: [dim.dim_param or dim.dim_value for dim in end.shape.dim] for name, end in ends.items()}
    assert dims == {"crops": ["batch", "height", "width", 3], "score": ["batch"], "logit": ["batch"]}
    types = {name: end.elem_type for name, end in ends.items()}
    assert types == {"crops": onnx.TensorProto.UINT8, "score": 1, "logit": 1}
    assert {(imported.domain, imported.version) for imported in graph.opset_import} == {("", OPSET)}


def test_float16_halves_the_file_and_keeps_norms_softmax_and_head_in_float32(written):
    graph = onnx.shape_inference.infer_shapes(onnx.load(written["float16"]))
    types = {value.name: value.type.tensor_type.elem_type for value in graph.graph.value_info}
    types |= {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
    kept = [node for node in graph.graph.node if node.op_type in ("Softmax", "LayerNormalization", "Gemm")]
    assert {node.op_type for node in kept} == {"Softmax", "LayerNormalization", "Gemm"}
    assert {types[node.input[0]] for node in kept} == {onnx.TensorProto.FLOAT}
    assert written["float16"].stat().st_size < 0.6 * written["float32"].stat().st_size


def test_int8_quantises_every_linear_of_the_tower_and_not_the_head(written):
    graph = onnx.load(written["int8"]).graph
    plain = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    stored = {tensor.name for tensor in graph.initializer}
    assert [name for node in plain for name in node.input if name in stored] == ["head.linear.weight"]
    assert sum(node.op_type == "MatMulInteger" for node in graph.node) == 4 + 5  # the last asks once
    assert written["int8"].stat().st_size < 0.45 * written["float32"].stat().st_size


@pytest.mark.parametrize(("precision", "cost"), [("float16", 1e-3), ("int8", 1e-2)])
def test_a_lower_precision_changes_scores_a_little(clip, written, precision, cost):
    crops = crops_of(33, 96)
    parity = compare(*eager(clip, crops), *OnnxScorer(written[precision], threads=1)(crops))
    assert 0 < parity.max_score_difference < cost


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_large_weights_lie_in_a_file_beside(clip, written, precision, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "SINGLE_FILE_BYTES", 100_000)
    path = tmp_path / "model.onnx"
    export_onnx(clip, path, precision=precision)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    crops = crops_of(3, 48)
    whole, apart = OnnxScorer(written[precision], threads=1)(crops), OnnxScorer(path, threads=1)(crops)
    np.testing.assert_array_equal(apart[1], whole[1])


def test_int8_of_a_tower_without_linear_layers_is_refused():
    weight = onnx.numpy_helper.from_array(np.ones((3, 2), np.float32), "head.weight")
    head = onnx.helper.make_node("Gemm", ["crops", "head.weight"], ["score"], "head")
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", width])
        for name, width in (("crops", 3), ("score", 2))
    ]
    graph = onnx.helper.make_graph([head], "main", ends[:1], ends[1:], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=9)
    with pytest.raises(ConfigError, match=r"int8.*no linear layer"):
        onnx_file._quantised(onnx_ir.from_proto(model))
