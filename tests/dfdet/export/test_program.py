import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dfdet.export.program import DTYPES, export_program, load_program
from tests.dfdet.export.models import BATCHES, CLIP, KINDS, crops_of, eager, register_small_clip, shared

REPO = Path(__file__).parents[3]
AGAIN = """
import sys
from pathlib import Path
from dfdet.export.onnx_file import export_onnx
from dfdet.export.program import export_program
from tests.dfdet.export.models import deployed_of, detector_of
model, folder = deployed_of(detector_of("tiny", **{"model.image_size": 32})), Path(sys.argv[1])
export_program(model, folder / "again.pt2")
for precision in ("float32", "int8"):
    export_onnx(model, folder / f"again-{precision}.onnx", precision=precision)
"""


@pytest.fixture(scope="module", autouse=True)
def small_clip(tmp_path_factory):
    register_small_clip(tmp_path_factory.mktemp("configs"))


@pytest.mark.parametrize("backbone", KINDS)
def test_a_program_scores_any_batch_and_side_as_the_module_does(backbone, tmp_path):
    model = shared(backbone)
    export_program(model, tmp_path / "model.pt2")
    program = load_program(tmp_path / "model.pt2")
    for count, side in BATCHES:
        crops = crops_of(count, side)
        for found, expected in zip(program(torch.from_numpy(crops)), eager(model, crops), strict=True):
            np.testing.assert_allclose(found.numpy(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_products_of_16_bits_are_stored_in_them_and_score_as_under_autocast(precision, tmp_path):
    model = shared(CLIP)
    export_program(model, tmp_path / "model.pt2", precision=precision)
    state = torch.export.load(tmp_path / "model.pt2").state_dict
    low = {tensor.numel() for tensor in state.values() if tensor.dtype == DTYPES[precision]}
    assert max(low) == max(tensor.numel() for tensor in state.values())
    crops, program = crops_of(8, 96), load_program(tmp_path / "model.pt2")
    found = program(torch.from_numpy(crops))[1].numpy()
    np.testing.assert_allclose(found, eager(model.computing_in(DTYPES[precision]), crops)[1], atol=1e-5)
    assert 0 < np.abs(found - eager(model, crops)[1]).max() < 1e-2


def test_a_program_moves_to_another_device_whole(tmp_path):
    export_program(shared(CLIP), tmp_path / "model.pt2", precision="float16")
    program = load_program(tmp_path / "model.pt2", "meta")  # which refuses to meet any other
    scores, logits = program(torch.zeros(5, 60, 60, 3, dtype=torch.uint8, device="meta"))
    assert scores.shape == logits.shape == (5,)
    assert scores.device.type == "meta"


@pytest.mark.gpu
def test_a_program_scores_on_cuda_as_on_the_cpu(tmp_path):
    model = shared(CLIP)
    export_program(model, tmp_path / "model.pt2")
    crops = crops_of(9, 96)
    scores, _ = load_program(tmp_path / "model.pt2", "cuda")(torch.from_numpy(crops).cuda())
    np.testing.assert_allclose(scores.cpu().numpy(), eager(model, crops)[0], atol=1e-4)


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """Files of one model written by two processes."""
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", AGAIN, str(folder)],
            cwd=REPO,
            env={"PYTHONHASHSEED": str(number), "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
        )
        for number, folder in enumerate(folders, 1)
    ]
    assert [process.wait() for process in running] == [0, 0]
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("name", ["again.pt2", "again-float32.onnx", "again-int8.onnx"])
def test_two_processes_write_the_same_bytes_without_a_path_of_this_machine(twice, name):
    contents = [(folder / name).read_bytes() for folder in twice]
    assert len({hashlib.sha256(content).hexdigest() for content in contents}) == 1
    assert str(REPO).encode() not in contents[0]
    assert sys.prefix.encode() not in contents[0]
