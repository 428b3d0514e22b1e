"""What a cluster can serve at most, from capacities alone: a bound that simulation can't exceed.

Each pool has to spend so much engine time, KV memory or link time on the requests that are to meet
the goal, in the cheapest way and without ever waiting; the pool that runs out first sets the rate.
Queueing, bursts and bad luck only take away from it, so candidates whose bound is below what
another one reached need no simulation.

Pure. Does not cover: latencies under load (``tuner.simulate``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from math import ceil

from core.latency_profile import FEMTOSECONDS, RowCurve, StepModel, StepWork
from tuner.load.metrics import Slo
from tuner.search.least_work import LeastWork, known_tokens
from tuner.search.space import Candidate, PoolChoice
from tuner.simulate.requests import RequestTrace

# A bound is of a flow without end; what a trial counts begins and ends, and is a sample: so much
# more than its bound a candidate may be asked for.
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
    common to all workers, would hold. ``least``: what has to be done for the requests that are to
    meet the goal."""

    prompt_tokens: float
    output_tokens: float
    hit_rate: float
    least: LeastWork

    @property
    def mean_context(self) -> float:
        """Of a decoding sequence, half-way through its answer."""
        return self.prompt_tokens + self.output_tokens / 2

    @property
    def mean_steps(self) -> float:
        """Of an answer, after its first token."""
        return self.output_tokens - 1

    @classmethod
    def of(cls, trace: RequestTrace, share: float = 1.0) -> Traffic:
        """``share`` of the requests (0 to 1) are to meet the goal."""
        return cls(
            prompt_tokens=float(trace.prompt_tokens.mean()),
            output_tokens=float(trace.output_tokens.mean()),
            hit_rate=float(known_tokens(trace).sum()) / float(trace.prompt_tokens.sum()),
            least=LeastWork.of(trace, share),
        )

    @classmethod
    def of_all(cls, trace: RequestTrace, share: float) -> Traffic:
        """Of what is served: all requests, those that miss the goal, too. ``share`` of them are to
        keep the TPOT."""
        whole, of_share = cls.of(trace), LeastWork.of(trace, share)
        least = replace(whole.least, context_to_meet=of_share.context_to_meet)
        return replace(whole, least=least)


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
        # Every prefill replica has an edge to each decode replica.
        rates[Resource.LINK] = prefill.replicas * decode.replicas / seconds
    return rates


def _colocated_rates(pool: PoolChoice, traffic: Traffic, slo: Slo) -> dict[Resource, float]:
    """A mixed worker computes both phases in the same steps. At best all of these are full, so that
    tokens of answers take no longer than tokens of prompts, beside reading their context; and it
    can't decode faster than a worker that does nothing else."""
    rates = _decode_rates(pool, traffic, slo)
    prefill_s = _prefill_seconds(pool, traffic)
    decode_s = _decode_seconds(pool, traffic, pool.limits.max_num_batched_tokens)
    busier = Resource.PREFILL_COMPUTE if prefill_s > decode_s else Resource.DECODE_BANDWIDTH
    together = pool.replicas / (prefill_s + decode_s)
    rates[busier] = min(together, rates.get(busier, together))
    return rates


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
    """Engine time of an average request in full chunks, on a pipeline that is never empty."""
    step, least = pool.engine.step, traffic.least
    time = (
        _least_of_row(step.rows, pool.limits.max_num_batched_tokens) * least.new_tokens
        + step.per_prefill_pair * least.pairs
        + step.per_sampled * least.requests
    )
    return time / FEMTOSECONDS / pool.shape.pipeline


def _decode_rates(pool: PoolChoice, traffic: Traffic, slo: Slo) -> dict[Resource, float]:
    return {
        Resource.DECODE_BANDWIDTH: _answers_per_second(
            pool, _largest_batch(pool, traffic, slo), traffic
        ),
        Resource.KV_MEMORY: _answers_per_second(pool, _batch_in_memory(pool, traffic), traffic),
    }


def _answers_per_second(pool: PoolChoice, batch: int, traffic: Traffic) -> float:
    """Of batches of at most ``batch``. Endless for answers of one token: prefill draws it."""
    if batch == 0:
        return 0.0
    seconds = _decode_seconds(pool, traffic, ceil(batch / pool.shape.pipeline))
    return pool.replicas / seconds if seconds else float("inf")


def _decode_seconds(pool: PoolChoice, traffic: Traffic, rows: int) -> float:
    """Engine time of an average answer after its first token, in steps of at most ``rows``."""
    step, least = pool.engine.step, traffic.least
    of_token = _least_of_row(step.rows, rows) + step.per_sampled
    time = of_token * least.steps + step.per_decode_context * least.context
    return time / FEMTOSECONDS / pool.shape.pipeline


def _least_of_row(curve: RowCurve, most: int) -> float:
    """Femtoseconds of a row in the step of at most ``most`` rows where it takes the least: at an
    end of a straight piece."""
    counts = {most, *(rows for rows, _ in curve.points if 1 <= rows < most)}
    return min(curve.at(rows) / rows for rows in counts)


def _batch_in_memory(pool: PoolChoice, traffic: Traffic) -> int:
    """Sequences that have room if they share with each other all that they could."""
    least = traffic.least
    room = pool.limits.max_num_seqs
    if least.kept:
        room = min(room, ceil(pool.engine.kv_tokens * least.steps / least.kept))
    return max(1, room)


def _largest_batch(pool: PoolChoice, traffic: Traffic, slo: Slo) -> int:
    """Sequences whose step keeps the TPOT, each stage of a pipeline having its share of them. 0 if
    too many requests miss it even alone."""
    least, step = traffic.least, pool.engine.step
    if least.steps == 0:
        return pool.limits.max_num_seqs
    if least.context_to_meet and _step_seconds(step, 1, pool, least.context_to_meet) > slo.tpot_s:
        return 0
    context = least.context / traffic.mean_steps
    low, high = 1, pool.limits.max_num_seqs
    while low < high:
        middle = (low + high + 1) // 2
        if _step_seconds(step, middle, pool, context) <= slo.tpot_s:
            low = middle
        else:
            high = middle - 1
    return low


def _step_seconds(step: StepModel, batch: int, pool: PoolChoice, context: float) -> float:
    """Time between two tokens of a sequence: with p stages, steps of a p-th of all sequences
    follow each other, and each takes its way through all stages."""
    share = -(-batch // pool.shape.pipeline)
    work = StepWork(share, share, 0, share, round(share * context))
    return step.time(work) / FEMTOSECONDS


def _transfer_seconds(prefill: PoolChoice, decode: PoolChoice, traffic: Traffic) -> float:
    """Of an average request over one edge; 0 if nothing has to be sent."""
    least = traffic.least
    times = [
        transfer.model.per_batch * least.transfers + transfer.model.per_token * least.sent
        for transfer in prefill.on.profile.transfers
        if (transfer.source, transfer.target) == (prefill.shape, decode.shape)
    ]
    return min(times, default=0) / FEMTOSECONDS


def service_seconds(candidate: Candidate, traffic: Traffic, slo: Slo) -> float:
    """About how long a request stays if the SLO is just met: TTFT, and the steps of its answer
    beside as many others as the TPOT and the memory allow."""
    slowest = 0.0
    for pool in candidate.decode:
        in_memory = int(pool.engine.kv_tokens // max(1.0, traffic.mean_context))
        batch = max(1, min(_largest_batch(pool, traffic, slo), in_memory))
        step_s = _step_seconds(pool.engine.step, batch, pool, traffic.mean_context)
        slowest = max(slowest, min(step_s, slo.tpot_s))
    return slo.ttft_s + traffic.output_tokens * slowest
