"""From the records of requests to the numbers of the report.

Pure. docs/BENCH.md says what each number means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tuner.load.records import INTERRUPTED, RequestRecord


@dataclass(frozen=True, slots=True)
class Slo:
    """What a request must meet to count as good; seconds."""

    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run as it went. ``window_s``: for how long requests arrived; ``elapsed_s``: until the
    last answer had ended; ``interrupted``: it was stopped before that."""

    seed: int
    records: tuple[RequestRecord, ...]
    window_s: float
    elapsed_s: float
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, percentiles (linear between neighbours) and largest of some values."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]]) -> Spread:
        """``values``: at least one."""
        array = np.asarray(values, dtype=np.float64)
        p50, p90, p99 = np.percentile(array, [50, 90, 99]).tolist()
        return cls(float(array.mean()), p50, p90, p99, float(array.max()))


@dataclass(frozen=True, slots=True)
class ErrorCount:
    """``example``: the words of the first failure of this kind."""

    count: int
    example: str


@dataclass(frozen=True, slots=True)
class Goodput:
    """Requests that met both limits: per second of the window, and their share of all that ended.

    ``share_ttft``, ``share_tpot``: those that met this one limit. A failed request meets none.
    """

    requests_per_s: float
    share: float
    share_ttft: float
    share_tpot: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The report's numbers. Latencies in seconds, None without a single value."""

    planned: int
    sent: int
    completed: int
    failed: int
    interrupted: int
    errors: dict[str, ErrorCount]
    window_s: float
    elapsed_s: float
    planned_requests_per_s: float
    completed_requests_per_s: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    input_tokens_per_s: float
    output_tokens_per_s: float
    ttft_s: Spread | None
    tpot_s: Spread | None
    itl_s: Spread | None
    e2e_s: Spread | None
    lag_s: Spread | None
    goodput: Goodput


def summarize(runs: Sequence[RunResult], slo: Slo) -> Summary:
    """One or more runs, their requests taken together and their durations added."""
    records = [record for run in runs for record in run.records]
    done = [record for record in records if record.is_complete]
    errors = Counter(record.error for record in records if record.error)
    interrupted = errors.pop(INTERRUPTED, 0)
    window_s, elapsed_s = sum(run.window_s for run in runs), sum(run.elapsed_s for run in runs)
    usages = [record.usage for record in done if record.usage]
    tokens_in = sum(usage.prompt_tokens for usage in usages)
    tokens_out = sum(record.output_tokens for record in done)
    return Summary(
        planned=len(records),
        sent=sum(record.sent_s is not None for record in records),
        completed=len(done),
        failed=errors.total(),
        interrupted=interrupted,
        errors=_with_examples(errors, records),
        window_s=window_s,
        elapsed_s=elapsed_s,
        planned_requests_per_s=rate(len(records), window_s),
        completed_requests_per_s=rate(len(done), elapsed_s),
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        cached_tokens=sum(usage.cached_tokens for usage in usages),
        input_tokens_per_s=rate(tokens_in, elapsed_s),
        output_tokens_per_s=rate(tokens_out, elapsed_s),
        ttft_s=_spread(record.ttft_s for record in done),
        tpot_s=_spread(record.tpot_s for record in done),
        itl_s=_spread_of_gaps(done),
        e2e_s=_spread(record.e2e_s for record in done),
        lag_s=_spread(record.lag_s for record in records),
        goodput=_goodput(done, len(done) + errors.total(), window_s, slo),
    )


def _goodput(done: list[RequestRecord], ended: int, window_s: float, slo: Slo) -> Goodput:
    in_ttft = [r.ttft_s is not None and r.ttft_s <= slo.ttft_s for r in done]
    # An answer of one token has no time per further token that could be too long.
    in_tpot = [r.tpot_s is None or r.tpot_s <= slo.tpot_s for r in done]
    both = sum(a and b for a, b in zip(in_ttft, in_tpot, strict=True))
    return Goodput(
        requests_per_s=rate(both, window_s),
        share=rate(both, ended),
        share_ttft=rate(sum(in_ttft), ended),
        share_tpot=rate(sum(in_tpot), ended),
    )


def _with_examples(errors: Counter[str], records: list[RequestRecord]) -> dict[str, ErrorCount]:
    examples = {record.error: record.detail for record in reversed(records)}
    return {kind: ErrorCount(count, examples[kind]) for kind, count in errors.most_common()}


def _spread(values: Iterable[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return Spread.of(known) if known else None


def _spread_of_gaps(done: list[RequestRecord]) -> Spread | None:
    gaps = [record.itls_s for record in done if len(record.itls_s)]
    return Spread.of(np.concatenate(gaps)) if gaps else None


def rate(count: float, per: float) -> float:
    """0 where there is nothing to divide by."""
    return count / per if per > 0 else 0.0
