"""What a cluster can serve at most, from capacities alone: a bound that simulation can't exceed.

Each pool has to spend so much engine time, KV memory or link time on an average request; the pool
that runs out first sets the rate. Queueing, bursts and bad luck only take away from it, so
candidates whose bound is below what another one reached need no simulation.

Pure. Does not cover: latencies under load (``tuner.simulate``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from core.latency_profile import FEMTOSECONDS, StepModel, StepWork
from tuner.load.metrics import Slo
from tuner.search.space import Candidate, PoolChoice
from tuner.simulate.requests import RequestTrace

# A bound counts every request, a goal leaves some of them out, and fits are not exact: so much more
# than its bound a candidate may be asked for.
SLACK = 1.2


class Resource(Enum):
    """What a cluster runs out of first."""

    PREFILL_COMPUTE = "prefill compute"
    DECODE_BANDWIDTH = "decode bandwidth"
    KV_MEMORY = "KV memory"
    LINK = "link"


@dataclass(frozen=True, slots=True)
class Traffic:
    """Means over a trace, in tokens. ``hit_rate``: share of prompt tokens that an endless cache,
    common to all workers, would hold: no cluster has more."""

    prompt_tokens: float
    output_tokens: float
    pairs: float
    hit_rate: float

    @property
    def mean_context(self) -> float:
        """Of a decoding sequence, half-way through its answer."""
        return self.prompt_tokens + self.output_tokens / 2

    @classmethod
    def of(cls, trace: RequestTrace) -> Traffic:
        prompts = trace.prompt_tokens.astype(np.float64)
        return cls(
            prompt_tokens=float(prompts.mean()),
            output_tokens=float(trace.output_tokens.mean()),
            pairs=float((prompts * (prompts + 1) / 2).mean()),
            hit_rate=endless_hit_rate(trace),
        )


def endless_hit_rate(trace: RequestTrace) -> float:
    """Share of prompt tokens that were the beginning of an earlier prompt. A part that was seen
    was seen after the same parts: ids of parts are those of chains."""
    seen: set[int] = set()
    hits = 0
    for ids, length in zip(trace.shared, trace.prompt_tokens.tolist(), strict=False):
        known = 0
        for part in ids.tolist():
            if part not in seen:
                break
            known += 1
        seen.update(ids.tolist())
        hits += min(known * trace.part_tokens, length - 1)
    return hits / float(trace.prompt_tokens.sum())


@dataclass(frozen=True, slots=True)
class Bound:
    """``rate``: requests per second; ``limited_by``: what runs out at it. ``rates``: of each."""

    rate: float
    limited_by: Resource
    rates: dict[Resource, float]


def bound_rate(candidate: Candidate, traffic: Traffic, slo: Slo) -> Bound:
    """The least of all capacities of ``candidate``."""
    if candidate.is_colocated:
        rates = _sum_of_rates([_colocated_rates(pool, traffic, slo) for pool in candidate.decode])
    else:
        rates = _split_rates(candidate, traffic, slo)
    limited_by = min(rates, key=rates.__getitem__)
    return Bound(rates[limited_by], limited_by, rates)


def _split_rates(candidate: Candidate, traffic: Traffic, slo: Slo) -> dict[Resource, float]:
    assert candidate.prefill is not None
    prefill, decode = candidate.prefill, candidate.decode[0]
    rates = {
        Resource.PREFILL_COMPUTE: prefill.replicas / _prefill_seconds(prefill, traffic),
        **_decode_rates(decode, traffic, slo),
    }
    seconds = _transfer_seconds(prefill, decode, traffic)
    if seconds:
        # One edge for each pair, but an end of it is shared: at best all of the smaller side's.
        rates[Resource.LINK] = min(prefill.replicas, decode.replicas) / seconds
    return rates


def _colocated_rates(pool: PoolChoice, traffic: Traffic, slo: Slo) -> dict[Resource, float]:
    """A mixed worker computes both phases in the same steps. At best all of these are full, so that
    tokens of answers take no longer than tokens of prompts, beside reading their context."""
    step, chunk = pool.engine.step, pool.limits.max_num_batched_tokens
    tokens = max(0.0, traffic.output_tokens - 1)
    rows = step.rows.at(chunk) / chunk * tokens
    reading = (step.per_sampled + step.per_decode_context * traffic.mean_context) * tokens
    decode_s = (rows + reading) / FEMTOSECONDS / pool.shape.pipeline
    prefill_s = _prefill_seconds(pool, traffic)
    memory = _decode_rates(pool, traffic, slo)[Resource.KV_MEMORY]
    busier = Resource.PREFILL_COMPUTE if prefill_s > decode_s else Resource.DECODE_BANDWIDTH
    keeps_tpot = _largest_batch(pool, traffic, slo) > 0
    together = pool.replicas / (prefill_s + decode_s) if keeps_tpot else 0.0
    return {busier: together, Resource.KV_MEMORY: memory}


def _sum_of_rates(pools: list[dict[Resource, float]]) -> dict[Resource, float]:
    """Several pools side by side: each at its own limit."""
    if len(pools) == 1:
        return pools[0]
    total: dict[Resource, float] = {}
    for rates in pools:
        least = min(rates, key=rates.__getitem__)
        total[least] = total.get(least, 0.0) + rates[least]
    return {max(total, key=total.__getitem__): sum(total.values())}


def _prefill_seconds(pool: PoolChoice, traffic: Traffic) -> float:
    """Engine time of an average prompt in full chunks, on a pipeline that is never empty."""
    chunk = pool.limits.max_num_batched_tokens
    step = pool.engine.step
    new = traffic.prompt_tokens * (1 - traffic.hit_rate)
    per_row = step.rows.at(chunk) / chunk
    pairs = traffic.pairs * (1 - traffic.hit_rate) ** 2
    time = per_row * new + step.per_prefill_pair * pairs + step.per_sampled
    return time / FEMTOSECONDS / pool.shape.pipeline


def _decode_rates(pool: PoolChoice, traffic: Traffic, slo: Slo) -> dict[Resource, float]:
    in_memory = int(pool.engine.kv_tokens // max(1.0, traffic.mean_context))
    by_memory = _answers_per_second(pool, in_memory, traffic)
    batch = min(_largest_batch(pool, traffic, slo), in_memory)
    return {
        Resource.DECODE_BANDWIDTH: _answers_per_second(
            pool, _largest_batch(pool, traffic, slo), traffic
        ),
        Resource.KV_MEMORY: by_memory if batch == in_memory else float("inf"),
    }


def service_seconds(candidate: Candidate, traffic: Traffic, slo: Slo) -> float:
    """About how long a request stays if the SLO is just met: TTFT, and the steps of its answer
    beside as many others as the TPOT and the memory allow."""
    slowest = 0.0
    for pool in candidate.decode:
        in_memory = int(pool.engine.kv_tokens // max(1.0, traffic.mean_context))
        batch = max(1, min(_largest_batch(pool, traffic, slo), in_memory))
        step_s = _step_seconds(pool.engine.step, batch, pool, traffic)
        slowest = max(slowest, min(step_s, slo.tpot_s))
    return slo.ttft_s + traffic.output_tokens * slowest


def _largest_batch(pool: PoolChoice, traffic: Traffic, slo: Slo) -> int:
    """Sequences whose step keeps the TPOT, each stage of a pipeline having its share of them."""
    low, high = 0, pool.limits.max_num_seqs
    while low < high:
        middle = (low + high + 1) // 2
        if _step_seconds(pool.engine.step, middle, pool, traffic) <= slo.tpot_s:
            low = middle
        else:
            high = middle - 1
    return low


def _answers_per_second(pool: PoolChoice, batch: int, traffic: Traffic) -> float:
    if batch == 0:
        return 0.0
    batch = min(batch, pool.limits.max_num_seqs)
    seconds = _step_seconds(pool.engine.step, batch, pool, traffic)
    return pool.replicas * batch / seconds / max(1.0, traffic.output_tokens - 1)


def _step_seconds(step: StepModel, batch: int, pool: PoolChoice, traffic: Traffic) -> float:
    """Time between two tokens of a sequence: with p stages, steps of a p-th of all sequences
    follow each other, and each takes its way through all stages."""
    share = -(-batch // pool.shape.pipeline)
    work = StepWork(share, share, 0, share, round(share * traffic.mean_context))
    return step.time(work) / FEMTOSECONDS


def _transfer_seconds(prefill: PoolChoice, decode: PoolChoice, traffic: Traffic) -> float:
    """Of an average prompt over one edge; 0 if no edge was profiled."""
    times = [
        transfer.model.time(round(traffic.prompt_tokens * (1 - traffic.hit_rate)))
        for transfer in prefill.on.profile.transfers
        if (transfer.source, transfer.target) == (prefill.shape, decode.shape)
    ]
    return min(times, default=0) / FEMTOSECONDS
