"""`deploy/monitoring/` without a run: queries parse and name what exists, promtool's tests of the alerts pass."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

from common.telemetry.catalogue import EXPORTED, METRICS
from tests.helpers.jobs import ROOT
from tests.helpers.prometheus import MONITORING, TOOL, Selector, list_labels, list_panels, list_rules, list_selectors

RULES = list_rules()
RECORDED = {rule["record"]: list_labels(rule["expr"]) for rule in RULES if "record" in rule}
ALERTS = [rule for rule in RULES if "alert" in rule]
QUERIES = [query for _, query in list_panels()] + [rule["expr"] for rule in RULES]

needs_promtool = pytest.mark.skipif(TOOL is None, reason="no promtool: install Debian's `prometheus`")


@pytest.mark.parametrize("query", QUERIES)
def test_every_query_names_metrics_and_labels_that_exist(query: str) -> None:
    known = {EXPORTED + name: {"run", *metric.labels} for name, metric in METRICS.items()} | RECORDED
    selectors = list_selectors(query)
    assert selectors
    for one in selectors:
        assert one.metric in known
        assert one.labels <= known[one.metric]
    assert list_labels(query) <= set.union(*(known[one.metric] for one in selectors))


def test_every_metric_is_on_the_dashboard_or_in_an_alert() -> None:
    used = {one.metric for query in QUERIES for one in list_selectors(query)}
    assert {EXPORTED + name for name in METRICS} - used == set()


def test_a_query_that_cannot_be_is_found_out() -> None:
    found = list_selectors('rate(a{x="1"}[5m]) / on (run) b')
    assert found == [Selector("a", frozenset({"x"}), 'a{x="1"}'), Selector("b", frozenset(), "b{}")]
    with pytest.raises(ValueError, match="unclosed"):
        list_selectors("sum by (run) (ray_rollcall_steps")


def test_the_dashboard_is_the_one_that_its_script_writes() -> None:
    done = subprocess.run(
        [sys.executable, "deploy/monitoring/dashboard.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == (MONITORING / "dashboard.json").read_text()


def test_panels_have_places_and_titles_of_their_own() -> None:
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    for key in ("id", "title", "gridPos"):
        values = [str(panel[key]) for panel in panels]
        assert len(values) == len(set(values))


def test_every_alert_says_what_to_do_and_is_tested() -> None:
    tests = yaml.safe_load((MONITORING / "rules_test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", [])]
    for alert in ALERTS:
        assert {"summary", "remedy"} == set(alert["annotations"])
        assert "{{ $labels.run }}" in alert["annotations"]["summary"]
        own = [case["exp_alerts"] for case in cases if case["alertname"] == alert["alert"]]
        assert [] in own, f"{alert['alert']}: when is it silent?"
        assert any(own), f"{alert['alert']}: when does it fire?"


@needs_promtool
@pytest.mark.parametrize(
    "words", ["check rules rules.yml", "test rules rules_test.yml", "check config --syntax-only prometheus.yml"]
)
def test_promtool_accepts(words: str) -> None:
    assert TOOL is not None
    done = subprocess.run([TOOL, *words.split()], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
