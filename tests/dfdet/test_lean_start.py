"""What a process that trains does not import."""

from __future__ import annotations

import subprocess
import sys

STEP = """
import sys, torch, torch.distributed as dist
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
from dfdet.training.engine import import_deepspeed
from dfdet.training.optimizer import GuardedAdamW
import_deepspeed(torch.device("cpu"))
weight = torch.nn.Parameter(torch.ones(2))
optimizer = GuardedAdamW([weight], partitioned=False, lr=0.1, weight_decay=0.0)
weight.grad = torch.ones(2)
optimizer.step()
optimizer.zero_grad()
loaded = [name for name in ("torch._dynamo", "mlflow") if name in sys.modules]
print([round(value, 4) for value in weight.tolist()], loaded)
try:
    import mlflow
except ImportError:
    pass  # not installed
"""


def test_a_step_imports_neither_dynamo_nor_mlflow_and_leaves_mlflow_importable() -> None:
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0.9, 0.9] []"
