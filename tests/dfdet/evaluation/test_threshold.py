import numpy as np
import pytest

from dfdet.errors import DfdetError, WeightsError
from dfdet.evaluation import threshold


def _logits(temperature, n=20_000):
    """Labels drawn from sigmoid(z); the model says z times the temperature."""
    generator = np.random.default_rng(0)
    z = generator.normal(0, 2, n)
    labels = (generator.random(n) < 1 / (1 + np.exp(-z))).astype(int)
    return labels, z * temperature


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0])
def test_temperature_of_an_over_or_underconfident_model_is_found(temperature):
    labels, logits = _logits(temperature)
    assert threshold.fit_temperature(labels, logits) == pytest.approx(temperature, rel=0.05)


def test_temperature_is_where_a_fine_grid_has_its_least_loss():
    labels, logits = _logits(1.7, 500)
    signed = np.where(labels == 1, logits, -logits)
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 5001))
    losses = [np.mean(np.logaddexp(0, -signed / t)) for t in grid]
    assert threshold.fit_temperature(labels, logits) == pytest.approx(grid[np.argmin(losses)], rel=2e-3)


@pytest.mark.parametrize(("sign", "bound"), [(1, threshold.COLDEST), (-1, threshold.HOTTEST)])
def test_separable_scores_end_at_a_bound(sign, bound):
    assert threshold.fit_temperature([0, 1], [-3.0 * sign, 3.0 * sign]) == pytest.approx(bound)


def test_huge_logits_do_not_overflow():
    assert threshold.fit_temperature([0, 1, 1], [-1e4, 1e4, -1e4]) == pytest.approx(threshold.HOTTEST)


def test_threshold_is_fitted_to_means_of_videos_where_they_are_given():
    labels, video = [0, 0, 1, 1], [0, 0, 1, 1]
    scores = [0.1, 0.7, 0.6, 0.8]  # frames overlap, videos are .4 and .7
    fitted = threshold.fit(labels, scores, "f00d", "demo", video=video)
    assert (fitted.level, fitted.threshold, fitted.eer) == ("video", pytest.approx(0.55), 0.0)
    assert threshold.fit(labels, scores, "f00d", "demo").level == "frame"


def test_record_names_set_and_fingerprint():
    fitted = threshold.fit([0, 1], [0.2, 0.8], "f00d", "demo")
    assert (fitted.set_name, fitted.set_fingerprint, fitted.frames) == ("demo", "f00d", 2)


def test_logits_of_saturated_probabilities_come_from_the_caller():
    labels, logits = _logits(30.0, 2000)
    probabilities = (1 / (1 + np.exp(-np.clip(logits, -80, 80)))).astype(np.float32)
    fitted = threshold.fit(labels, probabilities, "f", "s", logits=logits)
    assert fitted.temperature == pytest.approx(threshold.HOTTEST)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_gives_none_with_the_reason(label, caplog):
    assert threshold.fit([label] * 2, [0.1, 0.2], "f", "demo") is None
    assert f"demo has {'fakes' if label else 'reals'} only" in caplog.text


def test_scores_that_are_no_probabilities_need_logits():
    with pytest.raises(DfdetError, match="logits"):
        threshold.fit([0, 1], [-3.0, 3.0], "f", "s")


def test_json_round_trip_is_exact(tmp_path):
    fitted = threshold.fit(*_logits(1.0, 50)[:1], np.random.default_rng(3).random(50), "f", "s")
    path = tmp_path / "threshold.json"
    path.write_text(fitted.model_dump_json(), encoding="utf-8")
    assert threshold.read(path) == fitted


@pytest.mark.parametrize("text", [None, "{}", "no json"])
def test_file_that_is_no_threshold_is_one_clear_error(tmp_path, text):
    path = tmp_path / "threshold.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(WeightsError, match=r"threshold\.json: no threshold"):
        threshold.read(path)
