"""Dashboards and alerts of the chart: fresh, parsed, and asking for metrics that exist.

That these metrics are told by a real cluster is checked in ``tests/system/test_metrics.py``.
"""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster.metric_table import TABLE as CONTROLLER
from core.metric_spec import COMMON, MetricKind, MetricSpec
from promql_queries import (
    Query,
    alert_files,
    alert_queries,
    alert_rules,
    dashboard_files,
    dashboard_queries,
    grouped_labels,
    parsed,
    selectors,
)
from router.metrics.metric_table import TABLE as ROUTER
from worker.metric_table import PROCESS_LABELS
from worker.metric_table import TABLE as WORKER

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"
QUERIES = [*dashboard_queries(), *alert_queries()]
# Of Prometheus' own library; Prometheus adds where it scraped.
PROCESS = {"process_cpu_seconds_total": {"worker", "role", "instance", "namespace"}}
SCRAPED = {"instance", "namespace"}


def labels_of(spec: MetricSpec, more: tuple[str, ...] = ()) -> dict[str, set[str]]:
    bucket = {"le"} if spec.kind is MetricKind.HISTOGRAM else set()
    return {name: {*spec.labels, *more, *bucket, *SCRAPED} for name in spec.samples}


KNOWN = {
    **PROCESS,
    **{k: v for spec in (*ROUTER, *CONTROLLER, *COMMON) for k, v in labels_of(spec).items()},
    **{k: v for spec in WORKER for k, v in labels_of(spec, PROCESS_LABELS).items()},
}


def test_no_two_processes_have_a_metric_of_the_same_name() -> None:
    names = [spec.name for spec in (*ROUTER, *WORKER, *CONTROLLER, *COMMON)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("script", ["metrics", "dashboards"])
def test_what_is_generated_is_fresh(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--check"])
    found = runpy.run_path(str(SCRIPTS / script))
    assert found["main"]() == 0, f"run scripts/{script}"


def test_there_is_a_dashboard_for_each_subject() -> None:
    names = {file.stem for file in dashboard_files()}
    assert names == {"serving", "pools", "edges", "router", "tenants"}
    assert alert_files()


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.where)
def test_a_query_asks_for_metrics_and_labels_that_exist(query: Query) -> None:
    parsed(query)
    asked = selectors(query)
    assert asked
    there: set[str] = set()
    for selector in asked:
        assert selector.metric in KNOWN, query.where
        assert selector.labels <= KNOWN[selector.metric], (query.where, selector)
        there |= KNOWN[selector.metric]
    assert grouped_labels(query) <= there, query.where
    assert query.shown <= there, query.where


def test_a_query_that_asks_for_something_else_is_found() -> None:
    wrong = Query("x", 'sum by (nobody) (rate(crossdock_nothing_total{a="b"}[5m]))', frozenset())
    (selector,) = selectors(wrong)
    assert selector.metric not in KNOWN
    assert selector.labels == {"a"}
    assert grouped_labels(wrong) == {"nobody"}
    with pytest.raises(ValueError, match="x: "):
        parsed(Query("x", "sum(", frozenset()))


def test_alerts_say_how_bad_it_is_and_what_to_do() -> None:
    rules = dict(alert_rules())
    assert len({rule["alert"] for rule in rules.values()}) == len(rules)
    for where, rule in rules.items():
        assert rule["labels"]["severity"] in ("info", "warning", "critical"), where
        assert rule["for"], where
        assert set(rule["annotations"]) == {"summary", "description"}, where


def test_every_alert_that_the_operator_needs_is_there() -> None:
    names = {rule["alert"] for _, rule in alert_rules()}
    assert names >= {
        *("CrossdockSLOBurnFast", "CrossdockSLOBurnSlow", "CrossdockNoKVEvents"),
        *("CrossdockOrphanBlocks", "CrossdockSlowEdge", "CrossdockRatioImbalance"),
        "CrossdockCertificateExpires",
    }


@pytest.mark.thorough
def test_alerts_fire_in_trouble_and_are_silent_in_health() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (it comes with Prometheus)")
    rules = Path(__file__).parent / "alerts_fire.yaml"
    done = subprocess.run([promtool, "test", "rules", str(rules)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# Ten and thirty tokens a minute in a cluster whose pools cost 2 and 4; ten in one for 100.
SPENT = {
    'crossdock_prompt_tokens_total{namespace="x",tenant="a"}': "0+20x60",
    'crossdock_cached_tokens_total{namespace="x",tenant="a"}': "0+10x60",
    'crossdock_prompt_tokens_total{namespace="x",tenant="b"}': "0+30x60",
    'crossdock_cached_tokens_total{namespace="x",tenant="b"}': "0x60",
    'crossdock_generation_tokens_total{namespace="x",tenant="a"}': "0+10x60",
    'crossdock_generation_tokens_total{namespace="x",tenant="b"}': "0+30x60",
    'crossdock_pool_hour_price{namespace="x",pool="prefill"}': "2x60",
    'crossdock_pool_hour_price{namespace="x",pool="decode"}': "4x60",
    'crossdock_generation_tokens_total{namespace="y",tenant="a"}': "0+10x60",
    'crossdock_pool_hour_price{namespace="y",pool="decode"}': "100x60",
}


@pytest.mark.parametrize(("pool", "costs"), [("prefill", (0.5, 1.5)), ("decode", (101.0, 3.0))])
def test_tenants_share_the_cost_of_the_cluster_that_they_use(
    pool: str, costs: tuple[float, float], tmp_path: Path
) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (it comes with Prometheus)")
    [query] = [q for q in dashboard_queries() if "Cost" in q.where and f'"{pool}"' in q.expression]
    asked = query.expression.replace("$__rate_interval", "5m").replace("$namespace", ".*")
    samples = [
        {"labels": f'{{tenant="{tenant}"}}', "value": cost}
        for tenant, cost in zip("ab", costs, strict=True)
    ]
    series = [{"series": name, "values": values} for name, values in SPENT.items()]
    test = {
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [
            {"expr": f"round({asked}, 0.01)", "eval_time": "30m", "exp_samples": samples}
        ],
    }
    (tmp_path / "costs.yaml").write_text(yaml.safe_dump({"rule_files": [], "tests": [test]}))
    command = [promtool, "test", "rules", str(tmp_path / "costs.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_panels_that_are_explained_are_there() -> None:
    """docs/OPERATIONS.md: question | dashboard: panels; dashboard: … | what to make of it."""
    text = (SCRIPTS.parent / "docs" / "OPERATIONS.md").read_text(encoding="utf-8")
    titles = {
        file.stem: [panel["title"] for panel in json.loads(file.read_text())["panels"]]
        for file in dashboard_files()
    }
    explained = re.findall(r"^\|[^|]+\| (\w+): ([^|]+?) \|", text, re.MULTILINE)
    assert {dashboard for dashboard, _ in explained} == titles.keys()
    for dashboard, panels in explained:
        for panel in panels.split(", "):
            assert any(title.startswith(panel) for title in titles[dashboard]), panel
