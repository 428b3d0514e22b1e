"""The queries of the chart's dashboards and alerts, parsed, and what they ask for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
import yaml

CHART = Path(__file__).resolve().parent.parent / "helm" / "crossdock"


@dataclass(frozen=True)
class Query:
    """``where``: file and panel or alert; ``shown``: labels that its legend or texts name."""

    where: str
    expression: str
    shown: frozenset[str]


@dataclass(frozen=True)
class Selector:
    """A metric in a query, and the labels by which it is selected."""

    metric: str
    labels: frozenset[str]


def dashboard_files() -> list[Path]:
    return sorted((CHART / "dashboards").glob("*.json"))


def alert_files() -> list[Path]:
    return sorted((CHART / "alerts").glob("*.yaml"))


def dashboard_queries() -> Iterator[Query]:
    for file in dashboard_files():
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                shown = re.findall(r"{{(\w+)}}", target["legendFormat"])
                yield Query(f"{file.name}: {panel['title']}", target["expr"], frozenset(shown))


def alert_rules() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in alert_files():
        for group in yaml.safe_load(file.read_text())["groups"]:
            for rule in group["rules"]:
                yield f"{file.name}: {rule['alert']}", rule


def alert_queries() -> Iterator[Query]:
    for where, rule in alert_rules():
        shown = re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values()))
        yield Query(where, rule["expr"], frozenset(shown))


def parsed(query: Query) -> promql_parser.Expr:
    """Grafana puts a duration for its variable; raises ``ValueError`` with the place."""
    try:
        return promql_parser.parse(query.expression.replace("$__rate_interval", "5m"))
    except ValueError as error:
        raise ValueError(f"{query.where}: {error}: {query.expression}") from None


def selectors(query: Query) -> list[Selector]:
    found: list[Selector] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            labels = frozenset(matcher.name for matcher in node.matchers.matchers)
            found.append(Selector(node.name, labels))
        return True

    promql_parser.walk(parsed(query), visit)
    return found


def grouped_labels(query: Query) -> frozenset[str]:
    """Labels by which anything is grouped or matched."""
    found: set[str] = set()

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            found.update(node.modifier.labels)
        elif isinstance(node, promql_parser.BinaryExpr) and node.modifier is not None:
            matching = node.modifier.matching
            found.update(matching.labels if matching is not None else ())
        return True

    promql_parser.walk(parsed(query), visit)
    return frozenset(found)
