"""From a simulation's arrays to the numbers that people compare.

Pure. The latencies are those of ``tuner.load.metrics``; docs/BENCH.md says what each means.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.request import Role
from tuner.load.metrics import ErrorCount, Goodput, Slo, Spread, rate
from tuner.simulate.result import SimulationResult, TokenGaps, WorkerTrack

_PERCENTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class PoolSummary:
    """All workers of one role. ``busy``: share (0 to 1) of the time in which their engines
    computed; ``waiting_mean``, ``waiting_max``: requests that wait at one worker;
    ``used_blocks_max``: largest share of a worker's KV pool that was in use."""

    role: Role
    workers: int
    busy: float
    waiting_mean: float
    waiting_max: int
    used_blocks_max: float
    prefill_tokens: int
    recomputed_tokens: int
    decode_tokens: int
    preemptions: int


@dataclass(frozen=True, slots=True)
class SimulationSummary:
    """Latencies in seconds, None without a single value. ``window_s``: from the first to the last
    arrival; ``elapsed_s``: until the last answer had ended. ``hit_rate``: prompt tokens that a
    cache held, as a share of all of answered requests. ``edges_busy``: mean number of transfers
    under way."""

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


def summarize(result: SimulationResult, slo: Slo) -> SimulationSummary:
    """Failed requests are counted, and meet no limit."""
    done = np.isfinite(result.last_token_s)
    window = float(result.arrivals_s[-1]) or result.ended_s
    elapsed = result.ended_s
    e2e = result.last_token_s - result.arrivals_s
    prompts = int(result.prompt_tokens[done].sum())
    return SimulationSummary(
        requests=len(done),
        completed=int(done.sum()),
        failed=len(result.failures),
        errors=_errors(result),
        window_s=window,
        elapsed_s=elapsed,
        requests_per_s=rate(float(done.sum()), elapsed),
        input_tokens_per_s=rate(prompts, elapsed),
        output_tokens_per_s=rate(float(result.output_tokens[done].sum()), elapsed),
        hit_rate=rate(float(result.cached_tokens[done].sum()), prompts),
        ttft_s=_spread(result.ttft_s[done]),
        tpot_s=_spread(result.tpot_s[done]),
        itl_s=spread_of_gaps(result.gaps),
        e2e_s=_spread(e2e[done]),
        goodput=_goodput(result, done, window, slo),
        pools=_pools(result.workers, elapsed),
        transferred_tokens=result.transferred_tokens,
        edges_busy=rate(result.transfer_busy_s, elapsed),
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


def _errors(result: SimulationResult) -> dict[str, ErrorCount]:
    """The kind of a failure is the first word of its reason."""
    kinds = Counter(reason.split(" ", 1)[0].rstrip(":") for reason in result.failures.values())
    examples = {r.split(" ", 1)[0].rstrip(":"): r for r in reversed(result.failures.values())}
    return {kind: ErrorCount(count, examples[kind]) for kind, count in kinds.most_common()}


def _goodput(
    result: SimulationResult, done: npt.NDArray[np.bool_], window_s: float, slo: Slo
) -> Goodput:
    in_ttft, in_tpot = _within(result, slo)
    both, ended = in_ttft & in_tpot, int(done.sum()) + len(result.failures)
    return Goodput(
        requests_per_s=rate(float(both.sum()), window_s),
        share=rate(float(both.sum()), ended),
        share_ttft=rate(float(in_ttft.sum()), ended),
        share_tpot=rate(float(in_tpot.sum()), ended),
    )


def _pools(workers: tuple[WorkerTrack, ...], elapsed_s: float) -> tuple[PoolSummary, ...]:
    roles = [role for role in Role if any(worker.role is role for worker in workers)]
    return tuple(_pool(role, [w for w in workers if w.role is role], elapsed_s) for role in roles)


def _pool(role: Role, workers: list[WorkerTrack], elapsed_s: float) -> PoolSummary:
    waiting = np.concatenate([worker.waiting for worker in workers])
    used = [float(w.used_blocks.max(initial=0)) / w.num_blocks for w in workers]
    return PoolSummary(
        role=role,
        workers=len(workers),
        busy=rate(sum(worker.busy_s for worker in workers), elapsed_s * len(workers)),
        waiting_mean=float(waiting.mean()) if len(waiting) else 0.0,
        waiting_max=int(waiting.max(initial=0)),
        used_blocks_max=max(used),
        prefill_tokens=sum(worker.prefill_tokens for worker in workers),
        recomputed_tokens=sum(worker.recomputed_tokens for worker in workers),
        decode_tokens=sum(worker.decode_tokens for worker in workers),
        preemptions=sum(worker.preemptions for worker in workers),
    )


def _spread(values: npt.NDArray[np.float64]) -> Spread | None:
    known = values[np.isfinite(values)]
    return Spread.of(known) if len(known) else None
