"""Comparisons for people and for programs. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tuner.search.uncertainty import Interval
from tuner.validate.compare import (
    APART,
    NUMBERS,
    Case,
    Outcome,
    coverage,
    median_errors,
    ranking,
)
from tuner.validate.ratios import Ratio, ratio_coverage, ratios

Row = tuple[str, ...]

# How much of each number: milliseconds, requests per second, percent.
_WORDS = {
    "ttft_p50_s": ("TTFT p50 ms", 1000, "{:.0f}"),
    "ttft_p90_s": ("TTFT p90 ms", 1000, "{:.0f}"),
    "tpot_p50_s": ("TPOT p50 ms", 1000, "{:.1f}"),
    "tpot_p90_s": ("TPOT p90 ms", 1000, "{:.1f}"),
    "goodput": ("goodput/s", 1, "{:.2f}"),
    "share": ("in SLO", 100, "{:.0f}%"),
}


def table(cases: Sequence[Case]) -> tuple[Row, list[Row]]:
    """Columns and rows: for each case "predicted / measured" of each number."""
    columns = ("configuration", "traffic", "rate", *(_WORDS[name][0] for name in NUMBERS))
    return columns, [_row(case) for case in cases]


def _row(case: Case) -> Row:
    numbers = (
        f"{_number(case.predicted, name)} / {_number(case.measured, name)}" for name in NUMBERS
    )
    return (case.configuration, case.traffic, f"{case.rate:g}", *numbers)


def _number(outcome: Outcome, name: str) -> str:
    value = outcome.number(name)
    _, factor, form = _WORDS[name]
    return "–" if value is None else form.format(value * factor)


def summary_lines(cases: Sequence[Case]) -> list[str]:
    """Errors where threads have cores of their own and where they don't, ranking, coverage."""
    lines = [
        line
        for shared in (False, True)
        if (line := _errors([case for case in cases if case.shares_cores is shared], shared))
    ]
    order = ranking(cases)
    if order.tau is not None:
        lines.append(
            f"ranking by goodput: {order.right} of {order.pairs} pairs that differ by more than "
            f"{APART:.0%} are in the predicted order, Kendall τ {order.tau:.2f}"
        )
    held = {name: one for name, one in coverage(cases).items() if one.total}
    if held:
        shares = ", ".join(
            f"{_WORDS[name][0].removesuffix(' ms')} {one.inside} of {one.total}"
            for name, one in held.items()
        )
        lines.append(f"measured inside the predicted 80 % interval: {shares}")
    return [*lines, *_ratio_lines(ratios(cases))]


def _ratio_lines(found: Sequence[Ratio]) -> list[str]:
    """Of alike clusters the interval is a point that is easily hit, so the others are told, too."""
    if not found:
        return []
    every, apart = ratio_coverage(found), ratio_coverage([r for r in found if r.is_apart])
    return [
        f"measured ratio of two clusters' goodput inside the predicted 80 % interval: "
        f"{every.inside} of {every.total}, of those more than {APART:.0%} apart "
        f"{apart.inside} of {apart.total}"
    ]


def _errors(cases: Sequence[Case], shared: bool) -> str:
    if not cases:
        return ""
    where = "cores are shared" if shared else "threads have cores of their own"
    errors = ", ".join(
        f"{_WORDS[name][0].removesuffix(' ms')} {_percent(error)}"
        for name, error in median_errors(cases).items()
    )
    return f"median relative error where {where} ({len(cases)} runs): {errors}"


def _percent(error: float | None) -> str:
    return "–" if error is None else "∞" if math.isinf(error) else f"{error:.0%}"


def as_json(cases: Sequence[Case]) -> dict[str, Any]:
    """Errors that are infinite are None: JSON has no such number."""
    order = ranking(cases)
    return {
        "cases": [_case_json(case) for case in cases],
        "median_error": _finite(median_errors(cases)),
        "median_error_own_cores": _finite(median_errors([c for c in cases if not c.shares_cores])),
        "median_error_shared_cores": _finite(median_errors([c for c in cases if c.shares_cores])),
        "ranking": asdict(order) | {"tau": order.tau, "apart": APART},
        "coverage": {
            name: asdict(one) | {"share": one.share} for name, one in coverage(cases).items()
        },
        "ratios": _ratios_json(ratios(cases)),
    }


def _ratios_json(found: Sequence[Ratio]) -> dict[str, Any]:
    """Of goodput, of each pair of clusters under the same load."""
    every, apart = ratio_coverage(found), ratio_coverage([r for r in found if r.is_apart])
    return {
        "pairs": [asdict(r) | {"inside": r.is_inside, "apart": r.is_apart} for r in found],
        "coverage": asdict(every) | {"share": every.share},
        "coverage_apart": asdict(apart) | {"share": apart.share},
    }


def _case_json(case: Case) -> dict[str, Any]:
    return {
        "configuration": case.configuration,
        "traffic": case.traffic,
        "rate": case.rate,
        "shares_cores": case.shares_cores,
        "predicted": asdict(case.predicted),
        "measured": asdict(case.measured),
        "error": _finite({name: case.error(name) for name in NUMBERS}),
        "likely": {name: _interval(interval) for name, interval in case.likely.items()},
    }


def _interval(interval: Interval) -> dict[str, float]:
    return asdict(interval)


def _finite(errors: dict[str, float | None]) -> dict[str, float | None]:
    return {
        name: error if error is not None and math.isfinite(error) else None
        for name, error in errors.items()
    }
