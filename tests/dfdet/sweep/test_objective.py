import pytest

from dfdet.config import Config
from dfdet.errors import ConfigError
from dfdet.sweep.objective import Objective, parse_objectives

AUROC = Objective("val/demo/video/auroc")
SPEED = Objective("perf/step_s", "minimize")


@pytest.mark.parametrize(
    ("text", "metric", "direction"),
    [
        ("val/demo/video/auroc", "val/demo/video/auroc", "maximize"),
        ("val/demo/frame/eer", "val/demo/frame/eer", "minimize"),
        ("val/demo/video/auroc/DF", "val/demo/video/auroc/DF", "maximize"),
        ("perf/step_s", "perf/step_s", "minimize"),
        ("perf/images_per_s", "perf/images_per_s", "maximize"),
        ("perf/peak_memory_mib", "perf/peak_memory_mib", "minimize"),
        ("perf/mfu:min", "perf/mfu", "minimize"),
        ("perf/step_s:max", "perf/step_s", "maximize"),
    ],
)
def test_objective_is_read_with_its_usual_direction(text, metric, direction):
    objective = Objective.parse(text)
    assert (objective.metric, objective.direction) == (metric, direction)
    assert Objective.parse(str(objective)) == objective


def test_objective_is_found_in_a_result():
    result = {
        "metrics": {"val/demo/video/auroc": 0.75, "val/demo/video/ap": None},
        "speed": {"perf/step_s": 2},
    }
    assert AUROC.value(result) == 0.75
    assert SPEED.value(result) == 2.0
    assert Objective("val/demo/video/ap").value(result) is None
    assert AUROC.value({}) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("test/cdf/video/auroc", "a setting chosen on a test set makes its result worthless"),
        ("val/demo/video/auroc:up", "ends with :up; end it with :min, :max or nothing"),
        ("auroc", "no metric of a run; give val/NAME/video/METRIC"),
        ("val/other/video/auroc", "other is no validation set; data.val has: demo"),
    ],
)
def test_bad_objective_is_refused(text, said):
    base = Config().replace({"data.val": ("demo=val.json",)})
    with pytest.raises(ConfigError) as error:
        parse_objectives([text], base)
    assert said in str(error.value)


def test_default_objective_is_the_first_validation_set():
    base = Config().replace({"data.val": ("demo=val.json", "other=o.json")})
    assert parse_objectives([], base) == [AUROC]


def test_objective_given_twice_or_without_any_set_is_refused():
    base = Config().replace({"data.val": ("demo=val.json",)})
    with pytest.raises(ConfigError, match="given twice"):
        parse_objectives(["val/demo/video/auroc", "val/demo/video/auroc:min"], base)
    with pytest.raises(ConfigError, match=r"data\.val is empty"):
        parse_objectives([], Config())
