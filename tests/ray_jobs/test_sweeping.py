"""How many settings fit, without Ray."""

import pytest

from dfdet.errors import ConfigError
from dfdet.recipes import demo
from ray_jobs.sweeping import concurrency


@pytest.mark.parametrize(
    ("workers", "cpus", "available", "cuda", "fits"),
    [
        (2, 1.0, {"CPU": 8.0}, False, 4),
        (2, 1.5, {"CPU": 8.0}, False, 2),
        (1, 0.1, {"CPU": 0.3}, False, 3),
        (2, 1.0, {"CPU": 32.0, "GPU": 8.0}, True, 4),
        (2, 4.0, {"CPU": 16.0, "GPU": 8.0}, True, 2),
        (1, 1.0, {"CPU": 4.0, "GPU": 0.0}, False, 4),
    ],
)
def test_as_many_as_fit_by_cpus_and_gpus(
    workers: int, cpus: float, available: dict[str, float], cuda: bool, fits: int
) -> None:
    config = demo().replace({"run.workers": workers, "run.cpus_per_worker": cpus})
    assert concurrency(config, 0, available, cuda=cuda) == fits
    assert concurrency(config, 1, available, cuda=cuda) == 1
    with pytest.raises(ConfigError, match=f"set --concurrent {fits},"):
        concurrency(config, fits + 1, available, cuda=cuda)


def test_what_does_not_fit_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(ConfigError) as error:
        concurrency(demo(), 3, {"CPU": 4.0, "GPU": 1.0}, cuda=True)
    assert "3 settings x 2 workers x 1 CPU (of 4) and 1 GPU (of 1) do not fit" in str(error.value)
