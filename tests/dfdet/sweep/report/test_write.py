import base64
import hashlib
import math
import random

import optuna
import plotly.graph_objects as go
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from dfdet.recipes import demo
from dfdet.sweep.report.parts import distributions_of, short_names
from dfdet.sweep.report.write import write_report
from tests.dfdet.html.parsed import Page

METRIC = "val/demo/video/auroc"
EVIL = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'
DIMENSIONS = {
    "loss.uniformity": {"low": 0.0, "high": 1.0},
    "optim.lr": {"low": 1e-3, "high": 1e-1, "log": True},
    "model.head": {"choices": ["linear", "cosine"]},
    "model.margin": {"low": 0.05, "high": 0.5, "when": {"model.head": ["cosine"]}},
}


def header(objectives=(f"{METRIC}:max",), **options):
    return {
        "format": 1,
        "base": demo().model_dump(mode="json"),
        "space": {"dimensions": DIMENSIONS},
        "options": {"trials": 16, "seeds": 1} | options,
        "objectives": list(objectives),
    }


def distribution(path):
    dimension = DIMENSIONS[path]
    if "choices" in dimension:
        return CategoricalDistribution(dimension["choices"])
    return FloatDistribution(dimension["low"], dimension["high"], log=dimension.get("log", False))


def new_study(directions=("maximize",)):
    return optuna.create_study(directions=list(directions))


def add(study, state=TrialState.COMPLETE, scores=None, params=None, curve=None, **attrs):
    params = params or {}
    study.add_trial(
        create_trial(
            state=state,
            values=scores,
            params=params,
            distributions={path: distribution(path) for path in params},
            intermediate_values=curve or {},
            user_attrs={"values": params, "runs": [f"{len(study.trials):04d}"]} | attrs,
        )
    )


def drawn(rng):
    params = {"loss.uniformity": rng.random(), "optim.lr": 10 ** rng.uniform(-3, -1)}
    params["model.head"] = rng.choice(["linear", "cosine"])
    if params["model.head"] == "cosine":
        params["model.margin"] = rng.uniform(0.05, 0.5)
    return params


def searched(count, objectives=1):
    """Conditional settings; every fourth stopped early, the eighth failed, the last running."""
    rng = random.Random(0)
    study = new_study(["maximize", "minimize"][:objectives])
    for number in range(count):
        params = drawn(rng)
        score = 0.9 - (params["loss.uniformity"] - 0.4) ** 2 + rng.gauss(0, 0.005)
        curve = {epoch: score * (1 - math.exp(-epoch)) for epoch in range(1, 11)} if objectives == 1 else {}
        extra = {"published": "recipe"} if number == 0 else {}
        if number == count - 1 and count > 2:
            add(study, TrialState.RUNNING, None, params, {1: 0.5})
        elif number == 7:
            add(study, TrialState.FAIL, None, params, reason=f"out of memory {EVIL}", epochs=1)
        elif number % 4 == 3 and objectives == 1:
            stopped = {epoch: curve[epoch] for epoch in (1, 2, 3)}
            add(study, TrialState.PRUNED, None, params, stopped, stopped_epoch=3, epochs=3, worker_s=60)
        else:
            scores = [score, rng.random()][:objectives]
            add(study, TrialState.COMPLETE, scores, params, curve, epochs=10, worker_s=200, **extra)
    return study


def last_runs(scores):
    study = new_study()
    for setting, values in scores.items():
        for seed, value in enumerate(values):
            name = {"published": "recipe"} if setting == 0 else {}
            add(study, scores=[value], setting=setting, seed=1000 + seed, epochs=10, worker_s=200, **name)
    return study


def written(folder, study, final=None, head=None):
    return Page(write_report(folder, study, final or new_study(), head or header()))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """40 settings and last runs that show a difference."""
    folder = tmp_path_factory.mktemp("sweeps") / "margins"
    folder.mkdir()
    final = last_runs({0: [0.80, 0.81, 0.82], 1: [0.90, 0.91, 0.921]})
    return written(folder, searched(40), final, header(trials=40))


CASES = {
    "nothing": lambda: (searched(0), 1),
    "one setting": lambda: (searched(1), 1),
    "two settings": lambda: (searched(2), 1),
    "sixteen": lambda: (searched(16), 1),
    "two objectives": lambda: (searched(16, objectives=2), 2),
}


@pytest.mark.parametrize("case", CASES)
def test_every_page_is_whole_and_its_pictures_are_what_plotly_takes(tmp_path, case):
    study, objectives = CASES[case]()
    page = written(tmp_path, study, head=header([f"{METRIC}:max", "perf/step_s:min"][:objectives]))
    assert page.html.endswith("</html>\n")
    for figure in page.figures:
        go.Figure(figure)  # raises on an unknown property or a bad value
        assert figure["data"], figure["layout"]
        for trace in figure["data"]:
            assert len(trace["x"]) == len(trace["y"]) == len(trace.get("customdata", trace["x"]))


def test_the_page_asks_nothing_of_any_network(full):
    assert full.links == []
    assert full.policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in full.policy
    assert "url(" not in full.html.partition("<style>")[2].partition("</style>")[0]


def test_only_the_pages_own_two_scripts_may_run(full):
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in full.scripts]
    allowed = full.policy.partition("script-src ")[2].partition(";")[0]
    assert allowed.split() == [f"'sha256-{one}'" for one in hashes]
    assert len(hashes) == 2
    assert full.handlers == []


def test_what_trials_hold_is_shown_and_does_not_run(tmp_path):
    study = new_study()
    add(study, TrialState.FAIL, reason=EVIL, runs=[EVIL])
    add(study, scores=[0.5], published=EVIL, curve={1: 0.5})
    evil = CategoricalDistribution((EVIL, "b"))
    for choice in (EVIL, "b"):
        study.add_trial(create_trial(value=0.6, params={EVIL: choice}, distributions={EVIL: evil}))
    final = new_study()
    for seed in (1, 2):
        add(final, scores=[0.5], setting=1, seed=seed, published=EVIL)
    head = header() | {"space": {"dimensions": {EVIL: {"choices": [EVIL], "when": {EVIL: [EVIL]}}}}}
    head["base"]["run"]["recipe"] = EVIL
    folder = tmp_path / "<b>x"
    folder.mkdir()
    page = written(folder, study, final, head)
    assert EVIL in page.text
    assert len(page.scripts) == 2
    assert (page.links, page.handlers) == ([], [])
    assert "<img" not in "".join(page.data)
    assert "\\u003cimg" not in "".join(page.data)  # nor for Plotly, which obeys tags in labels


def test_the_verdict_stands_first_with_difference_and_interval(full):
    before = full.text.partition("On fresh seeds")[0]
    assert "Setting 0001 is better than the published one: video AUROC on demo .9103" in before
    assert "(95 % interval +.0989 to +.1018, 3 paired seeds)" in before
    assert "Not finished: this may change." in before  # one setting still runs


def test_no_difference_is_an_answer(tmp_path):
    final = last_runs({0: [0.80, 0.85, 0.82], 1: [0.86, 0.83, 0.84]})
    assert "No difference shown. Setting 0001" in written(tmp_path, searched(2), final).text


def test_without_last_runs_nothing_is_named_better(tmp_path):
    text = written(tmp_path, searched(6)).text
    assert "Best score of the search: setting" in text
    assert "not trained again on fresh seeds, so no difference is shown" in text


def test_the_whole_page_has_all_its_parts_in_order(full):
    assert full.headings == [
        "On fresh seeds",
        "Settings",
        "History",
        "Importance of the dimensions",
        "Settings as lines",
        "Slices",
        "Learning curves",
        "Cost",
        "Failed",
        "Use it",
        "What was searched",
    ]
    assert len(full.figures) == 1 + 1 + 1 + 1 + len(DIMENSIONS) + 1 + 1


def test_a_sweep_that_has_not_begun_has_no_empty_pictures(tmp_path):
    page = written(tmp_path, searched(0))
    assert page.figures == []
    assert page.headings == ["Settings", "Use it", "What was searched"]
    assert "No setting has completed yet." in page.text


def test_settings_that_all_failed_are_listed_with_their_reasons(tmp_path):
    study = new_study()
    for number in range(3):
        add(study, TrialState.FAIL, reason=f"disk {number} is full")
    page = written(tmp_path, study)
    assert all(f"disk {number} is full" in page.text for number in range(3))
    assert page.figures == []


def test_importances_say_what_they_rest_on(full):
    assert "PED-ANOVA on 30 complete settings" in full.text


def test_importances_of_few_settings_are_hidden_with_the_reason(tmp_path):
    page = written(tmp_path, searched(6))
    assert "4 complete settings are too few to tell: 8 are needed." in page.text
    assert not any(
        trace["type"] == "bar" and "orientation" in trace for f in page.figures for trace in f["data"]
    )


def test_stopped_settings_are_grey_in_the_learning_curves(full):
    (curves,) = [f for f in full.figures if f["data"][-1]["name"] == "best of the search"]
    stopped = curves["data"][0]
    assert (stopped["name"], stopped["line"]["color"]) == ("stopped early", "#8c8c8c")
    assert stopped["x"][:4] == [1, 2, 3, None]


def test_the_history_keeps_the_best_so_far(full):
    (history,) = [f for f in full.figures if f["data"][-1]["name"] == "best so far"]
    best = history["data"][-1]["y"]
    assert best == sorted(best)
    assert history["data"][-1]["x"][-1] == 39


def test_a_dimension_that_does_not_exist_is_no_value(full):
    (lines,) = [f for f in full.figures if any(t["name"] == "best fifth" for t in f["data"])]
    assert any(note["text"] == "not<br>used" for note in lines["layout"]["annotations"])
    assert any(-0.14 in trace["y"] for trace in lines["data"])
    margin = [f for f in full.figures if f["layout"]["xaxis"].get("range") == pytest.approx([0.032, 0.518])]
    assert sum(len(trace["x"]) for trace in margin[0]["data"]) < 39


def test_a_logarithmic_dimension_has_a_logarithmic_axis(full):
    (rate,) = [f for f in full.figures if f["layout"]["xaxis"].get("type") == "log"]
    assert rate["layout"]["xaxis"]["ticktext"] == ["0.001", "0.002", "0.005", "0.01", "0.02", "0.05", "0.1"]


def test_the_cost_tells_what_stopping_has_saved(full):
    # 8 settings stopped after 3 of 10 epochs, 30 trained to the end, two trained for 1: 56 of 382
    assert "Early stopping saved 56 epochs, 15% of what the search would have taken" in full.text


def test_the_winner_can_be_trained_with_the_command_shown(full):
    assert "python ray_jobs/train.py --config" in full.text
    assert "margins/best.json" in full.text


def test_the_space_and_the_base_config_are_there_to_look_up(full):
    assert "model.head is cosine" in full.text
    assert "0.001 to 0.1, log" in full.text
    assert '"backbone": "tiny"' in full.text


def test_of_several_objectives_there_is_a_front_and_no_winner(tmp_path):
    page = written(tmp_path, searched(16, objectives=2), head=header([f"{METRIC}:max", "perf/step_s:min"]))
    assert "There is no best one among them" in page.text
    assert "Pareto front" in page.headings
    assert "best.json" not in page.text
    assert "/config.json --run.name NAME" in page.text


def test_a_page_replaces_the_one_before(tmp_path):
    written(tmp_path, searched(0))
    assert "Best score of the search" in written(tmp_path, searched(2)).text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_short_names_stay_different():
    paths = ["optim.lr", "model.scale", "data.augment.scale", "scale"]
    assert short_names(paths) == {
        "optim.lr": "lr",
        "model.scale": "model.scale",
        "data.augment.scale": "augment.scale",
        "scale": "scale",
    }


def test_a_range_that_was_changed_is_drawn_whole():
    trials = [
        create_trial(value=0.0, params={"a": 1.0}, distributions={"a": FloatDistribution(0, 1)}),
        create_trial(value=0.0, params={"a": 3.0}, distributions={"a": FloatDistribution(0.5, 4)}),
    ]
    assert distributions_of(trials, ["a"]) == {"a": FloatDistribution(0, 4)}
