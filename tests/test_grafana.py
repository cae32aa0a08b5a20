"""The dashboard: its form, and that every query asks for metrics that there are."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray.autoscaler._private.prom_metrics import AutoscalerPrometheusMetrics
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from dfdet.serving.metrics import Metrics
from ray_jobs.prometheus import COUNTERS, GAUGES, SCORE, STARTED

DASHBOARD = Path(__file__).parents[1] / "deploy" / "grafana.json"
VARIABLES = {"$__rate_interval": "1m", "$__interval": "15s", "$__range": "6h"}
"""Of Grafana, which has put them in when Prometheus gets a query."""
COLUMNS = 24
OF_RUNS = {f"ray_{name}" for name, _ in [*GAUGES.values(), *COUNTERS.values(), SCORE, STARTED]}


@pytest.fixture(scope="module")
def dashboard():
    return json.loads(DASHBOARD.read_text())


@pytest.fixture(scope="module")
def queries(dashboard):
    """Every expression, parsed."""
    return [parsed(target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", ())]


def parsed(text):
    for name, value in VARIABLES.items():
        text = text.replace(name, value)
    return promql_parser.parse(text)


def selectors(query):
    """The selectors of a parsed query."""
    found = []
    promql_parser.walk(query, found.append)
    return [part for part in found if isinstance(part, promql_parser.VectorSelector)]


def of_serving():
    """Names that a server's /metrics may have, with what Prometheus' format makes of histograms."""
    metrics = Metrics()
    metrics.requests.labels("200").inc()
    metrics.files.labels("real").inc()
    metrics.retries.labels("model").inc()
    metrics.under_way.labels("model").inc()
    families = text_string_to_metric_families(metrics.text().decode())
    return {sample.name for family in families for sample in family.samples}


def family(name):
    """The metric that a counter's or histogram's series is of."""
    return re.sub("_(total|created|sum|count|bucket)$", "", name)


def of_ray():
    autoscaler = AutoscalerPrometheusMetrics("session")
    gauges = (autoscaler.pending_nodes, autoscaler.recently_failed_nodes)
    return {f"ray_{name}" for name in METRICS_GAUGES} | {gauge._name for gauge in gauges}


def test_panels_have_ids_of_their_own(dashboard):
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in dashboard["panels"]:
        refs = [target["refId"] for target in panel.get("targets", ())]
        assert len(set(refs)) == len(refs)


def test_panels_do_not_overlap_and_fit(dashboard):
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= COLUMNS for place in places)
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above


def test_every_panel_asks_the_chosen_prometheus(dashboard):
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            assert panel["targets"]
            assert panel["datasource"] == chosen
            assert all(target["datasource"] == chosen for target in panel["targets"])


def test_queries_ask_only_for_metrics_that_there_are(queries):
    asked = {selector.name for query in queries for selector in selectors(query)}
    assert asked - OF_RUNS - of_serving() - of_ray() == set()


def test_every_metric_of_runs_and_servers_is_on_a_panel(queries):
    asked = {selector.name for query in queries for selector in selectors(query)}
    assert asked >= OF_RUNS
    assert {family(name) for name in of_serving()} <= {family(name) for name in asked}


def test_metrics_of_runs_are_those_of_the_chosen_runs_and_trials(queries):
    for query in queries:
        for selector in selectors(query):
            if selector.name in OF_RUNS:
                chosen = {matcher.name: matcher.value for matcher in selector.matchers.matchers}
                assert (chosen["run"], chosen["trial"]) == ("$run", "$trial")


def test_runs_and_trials_are_chosen_by_labels_that_all_records_have(dashboard):
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    assert variables["run"]["definition"] == "label_values(ray_dfdet_step, run)"
    assert variables["trial"]["definition"] == 'label_values(ray_dfdet_step{run=~"$run"}, trial)'
    assert variables["trial"]["allValue"] == ".*"  # outside sweeps there is none
