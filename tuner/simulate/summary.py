"""From a simulation's arrays to the numbers that people compare.

Pure. The latencies are those of ``tuner.load.metrics``; docs/BENCH.md says what each means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tuner.load.metrics import ErrorCount, Goodput, Slo, Spread, rate
from tuner.simulate.period import counted_period, tokens_out
from tuner.simulate.pools import PoolSummary, summarize_pools
from tuner.simulate.result import SimulationResult, TokenGaps

_PERCENTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class SimulationSummary:
    """Of the counted requests. Latencies in seconds, None without a single value.

    ``window_s``: from the first arrival to the last; ``elapsed_s``: of the period in which requests
    and tokens per second and busy engines are counted, see ``summarize``. ``hit_rate``: prompt
    tokens that a cache held, as a share of all of answered requests. ``itl_s``,
    ``transferred_tokens`` and ``edges_busy`` (mean number of transfers under way) are of the whole
    simulation.
    """

    requests: int
    completed: int
    failed: int
    errors: dict[str, ErrorCount]
    window_s: float
    elapsed_s: float
    requests_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float
    hit_rate: float
    ttft_s: Spread | None
    tpot_s: Spread | None
    itl_s: Spread | None
    e2e_s: Spread | None
    goodput: Goodput
    pools: tuple[PoolSummary, ...]
    transferred_tokens: int
    edges_busy: float


def summarize(result: SimulationResult, slo: Slo, skipped: int = 0) -> SimulationSummary:
    """Failed requests are counted, and meet no limit.

    The first ``skipped`` requests, fewer than all, fill the cluster up and are not counted; then
    what comes per second, and how busy the pools are, is that of the time in which counted ones
    arrive. Without them it is that of the whole simulation, until the last answer has ended.
    """
    period = counted_period(result, skipped)
    started, ended = period.holds(result.first_token_s), period.holds(result.last_token_s)
    done = np.isfinite(result.last_token_s[skipped:])
    failures = [reason for index, reason in result.failures.items() if index >= skipped]
    window = float(result.arrivals_s[-1] - result.arrivals_s[skipped]) or period.seconds
    e2e = (result.last_token_s - result.arrivals_s)[skipped:]
    prompts = int(result.prompt_tokens[skipped:][done].sum())
    return SimulationSummary(
        requests=len(done),
        completed=int(done.sum()),
        failed=len(failures),
        errors=_errors(failures),
        window_s=window,
        elapsed_s=period.seconds,
        requests_per_s=rate(float(ended.sum()), period.seconds),
        input_tokens_per_s=rate(float(result.prompt_tokens[started].sum()), period.seconds),
        output_tokens_per_s=rate(tokens_out(result, period), period.seconds),
        hit_rate=rate(float(result.cached_tokens[skipped:][done].sum()), prompts),
        ttft_s=_spread(result.ttft_s[skipped:][done]),
        tpot_s=_spread(result.tpot_s[skipped:][done]),
        itl_s=spread_of_gaps(result.gaps),
        e2e_s=_spread(e2e[done]),
        goodput=_goodput(result, skipped, int(done.sum()) + len(failures), window, slo),
        pools=summarize_pools(result, period),
        transferred_tokens=result.transferred_tokens,
        edges_busy=rate(result.transfer_busy_s, result.ended_s),
    )


def met(result: SimulationResult, slo: Slo) -> npt.NDArray[np.bool_]:
    """Which requests met both limits, bool [n]. An answer of one token has no TPOT to miss."""
    in_ttft, in_tpot = _within(result, slo)
    return in_ttft & in_tpot


def _within(
    result: SimulationResult, slo: Slo
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    done = np.isfinite(result.last_token_s)
    tpot = result.tpot_s
    return done & (result.ttft_s <= slo.ttft_s), done & (np.isnan(tpot) | (tpot <= slo.tpot_s))


def spread_of_gaps(gaps: TokenGaps) -> Spread | None:
    """Of all times between tokens. A group of growing gaps is spread over at most eight values, so
    that millions of tokens stay cheap; its ends are exact."""
    steps = gaps.steps.astype(np.int64)
    if not steps.sum():
        return None
    pieces = np.minimum(steps, 8)
    group = np.repeat(np.arange(len(steps)), pieces)
    place = np.arange(len(group)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    share = place / np.maximum(pieces[group] - 1, 1)
    values = gaps.first_s[group] + gaps.growth_s[group] * share * (steps[group] - 1)
    weights = gaps.weights[group] * steps[group] / pieces[group]
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    places = np.searchsorted(reached, np.array(_PERCENTILES) * reached[-1])
    p50, p90, p99 = values[order][np.minimum(places, len(values) - 1)].tolist()
    mean = float((values * weights).sum() / weights.sum())
    return Spread(mean, p50, p90, p99, float(values.max()))


def _errors(failures: Sequence[str]) -> dict[str, ErrorCount]:
    """The kind of a failure is the first word of its reason."""
    kinds = Counter(reason.split(" ", 1)[0].rstrip(":") for reason in failures)
    examples = {r.split(" ", 1)[0].rstrip(":"): r for r in reversed(failures)}
    return {kind: ErrorCount(count, examples[kind]) for kind, count in kinds.most_common()}


def _goodput(
    result: SimulationResult, skipped: int, ended: int, window_s: float, slo: Slo
) -> Goodput:
    in_ttft, in_tpot = (good[skipped:] for good in _within(result, slo))
    both = float((in_ttft & in_tpot).sum())
    return Goodput(
        requests_per_s=rate(both, window_s),
        share=rate(both, ended),
        share_ttft=rate(float(in_ttft.sum()), ended),
        share_tpot=rate(float(in_tpot.sum()), ended),
    )


def _spread(values: npt.NDArray[np.float64]) -> Spread | None:
    known = values[np.isfinite(values)]
    return Spread.of(known) if len(known) else None
