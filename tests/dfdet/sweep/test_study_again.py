"""A study that is opened again, or by another sweep."""

import optuna
import pytest

from dfdet.errors import ConfigError, RunFolderError
from dfdet.sweep.space.space import Dimension, Space
from tests.dfdet.sweep.studies import AUROC, BASE, SPACE, SPEED, finish

# ---- the same sweep?


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": BASE.replace({"optim.epochs": 20})}, "optim.epochs: 10 -> 20"),
        ({"base": BASE.replace({"loss.slerp": True})}, "loss.slerp: false -> true"),
        ({"objectives": (SPEED,)}, '--objective: ["val/demo/video/auroc:max"] -> ["perf/step_s:min"]'),
        ({"objectives": (AUROC, SPEED)}, '-> ["val/demo/video/auroc:max", "perf/step_s:min"]'),
        ({"options": {"seeds": 3}}, "--seeds: 1 -> 3"),
    ],
)
def test_study_of_another_sweep_is_refused_with_the_difference(open_study, url, changes, said):
    open_study(url).close()
    with pytest.raises(ConfigError) as error:
        open_study(url, **changes)
    assert said in str(error.value)
    assert "study search: was begun with another sweep" in str(error.value)


def test_refused_driver_leaves_nothing_behind(open_study, tmp_path):
    open_study().close()
    with pytest.raises(ConfigError):
        open_study(base=BASE.replace({"optim.epochs": 20}))
    assert list((tmp_path / "sweep" / "drivers").iterdir()) == []


def test_what_does_not_change_what_is_learned_may_change(open_study, url):
    open_study(url).close()
    base = BASE.replace({"run.workers": 4, "engine.log_every": 1, "run.storage": "elsewhere"})
    study = open_study(url, base=base)
    assert study.study.user_attrs["header"]["base"]["run"]["workers"] == 4


def test_study_of_another_format_is_refused(open_study):
    study = open_study()
    study.study.set_user_attr("header", study.study.user_attrs["header"] | {"format": 2})
    with pytest.raises(ConfigError, match="is of format 2, and this version reads 1"):
        open_study()


def test_database_of_a_sweep_in_another_folder_is_refused(open_study, sqlite_url):
    open_study(sqlite_url)
    with pytest.raises(ConfigError, match="study search: belongs to a sweep in another folder"):
        open_study(sqlite_url, folder="other")


def test_moved_sweep_goes_on(open_study, tmp_path, url):
    finish(open_study(url, folder="old"), 2)
    (tmp_path / "old").rename(tmp_path / "new")
    assert [ask.number for ask in finish(open_study(url, folder="new"), 3)] == [2]


def test_study_that_is_no_sweeps_is_refused(open_study, sqlite_url):
    optuna.create_study(storage=sqlite_url, study_name="search").ask()
    with pytest.raises(ConfigError, match="study search: is no sweep's, though it has trials"):
        open_study(sqlite_url)


# ---- a changed space


def test_widened_range_and_new_dimension_go_on(open_study, url):
    finish(open_study(url), 3)
    wider = SPACE.dimensions | {
        "loss.uniformity": Dimension(low=0.0, high=4.0),
        "loss.alignment": Dimension(low=0.0, high=1.0),
    }
    asks = finish(open_study(url, space=Space(dimensions=wider)), 13)
    assert any(ask.values["loss.uniformity"] > 1.0 for ask in asks)
    assert all("loss.alignment" in ask.values for ask in asks)


@pytest.mark.parametrize(
    ("path", "dimension"),
    [
        ("model.head", Dimension(choices=("linear", "cosine", "angular"))),
        ("loss.uniformity", Dimension(low=0.01, high=1.0, log=True)),
        ("loss.uniformity", Dimension(choices=(0.0, 0.5))),
    ],
)
def test_dimension_changed_beyond_its_range_is_refused(open_study, url, path, dimension):
    finish(open_study(url), 1)
    with pytest.raises(ConfigError, match=f"--space: {path} was searched as .* now .* ranges may change"):
        open_study(url, space=Space(dimensions=SPACE.dimensions | {path: dimension}))


def test_sampler_that_cannot_use_another_range_is_refused_it(open_study):
    def space(high):
        return Space(
            dimensions={
                "loss.uniformity": Dimension(low=0.0, high=high),
                "optim.lr": Dimension(low=1e-4, high=1e-2),
            }
        )

    finish(open_study(space=space(1.0), sampler="cmaes"), 2)
    open_study(space=space(1.0), sampler="cmaes")
    with pytest.raises(ConfigError, match=r"--sampler cmaes: loss\.uniformity was not searched over 0 to 2"):
        open_study(space=space(2.0), sampler="cmaes")


# ---- where it lives


def test_folder_that_cannot_be_written_is_named(open_study, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match=r"cannot be written .* give a writable --run.storage"):
        open_study(folder="file/sweep")


def test_close_removes_the_drivers_folder(open_study, tmp_path):
    study = open_study()
    assert len(list((tmp_path / "sweep" / "drivers").iterdir())) == 1
    study.close()
    study.close()
    assert list((tmp_path / "sweep" / "drivers").iterdir()) == []
