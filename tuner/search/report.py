"""A search in words and rows. Pure.

Does not cover: JSON (``report_json``), pictures (``charts``), printing.
"""

from __future__ import annotations

from tuner.load.metrics import Spread
from tuner.search.evaluate import KEEPS_UP, Trial
from tuner.search.halving import Scored
from tuner.search.limiting import busy_words, limited_by
from tuner.search.sensitivity import Shift
from tuner.search.space import Candidate, Limits
from tuner.search.tune import TuneResult
from tuner.search.uncertainty import MOST_TOLD, Interval
from tuner.search.verdict import TIE, Comparison
from tuner.simulate.requests import RequestTrace

Row = tuple[str, ...]
# Below it hundredths of a second say too little.
_SHORT_S = 0.05
COLUMNS = (
    "cluster",
    "GPUs",
    "requests/s",
    "per GPU",
    "tokens/s/GPU",
    "tokens/s/user",
    "TTFT p50 p90 s",
    "TPOT p50 p90 ms",
    "sequences, tokens of a step",
    "busy",
    "limited by",
)


def verdict_lines(result: TuneResult) -> list[str]:
    """The answer, most important first."""
    verdict = result.verdict
    if verdict.winner is None:
        return _nobody(result)
    winner = verdict.winner
    lines = [_headline(result)]
    lines += [
        _against(name, comparison)
        for name, comparison in (
            ("colocated", verdict.colocated),
            ("1:1", verdict.one_to_one),
        )
        if comparison is not None
    ]
    lines += _in_the_long_run(result, winner) or _advice(result, winner)
    lines.append(f"scheduler limits: {_limits(winner.candidate)}")
    trial = winner.reached.trial if winner.reached is not None else None
    if trial is not None:
        lines.append(
            f"limited by {limited_by(trial, winner.bound).value} "
            f"({busy_words(trial.summary.pools)} busy)"
        )
        lines.append(_simulated(trial, result.question.trace))
    return lines + [_shift(shift, winner) for shift in result.shifts]


def _headline(result: TuneResult) -> str:
    winner = result.verdict.winner
    assert winner is not None
    goal, candidate = result.question.goal, winner.candidate
    limits = f"TTFT {goal.slo.ttft_s:g} s and TPOT {goal.slo.tpot_s * 1000:g} ms"
    within = f"{goal.percentile:g} % within {limits}"
    if result.question.rate is not None:
        price = f", {candidate.hour_price:.2f}/h" if candidate.hour_price else ""
        return (
            f"{candidate}: {candidate.accelerators} GPUs{price} serve "
            f"{result.question.rate:g} requests/s, {within}"
        )
    trial = winner.reached.trial if winner.reached is not None else None
    assert trial is not None
    rate = trial.lasting_rate
    told = f"{rate:.2f} requests/s, {rate / candidate.accelerators:.3f} per GPU"
    if trial.falls_behind:
        told += f" (for {trial.counted_s:.3g} s at a time up to {trial.rate:.2f})"
    return f"{candidate}: {told}, {within}"


def _in_the_long_run(result: TuneResult, winner: Scored) -> list[str]:
    """A cluster that passes at a lower rate than the winner, but lasts at a higher one."""
    if result.question.rate is not None:
        return []
    best = max(result.scored, key=lambda one: one.lasting_rate_per_accelerator)
    rate = best.lasting_rate_per_accelerator
    if rate <= (1 + TIE) * winner.lasting_rate_per_accelerator:
        return []
    total = rate * best.candidate.accelerators
    return [f"in the long run {best.candidate} serves more: {total:.2f} requests/s that last"]


def _advice(result: TuneResult, winner: Scored) -> list[str]:
    """Whether to disaggregate. For a rate only what costs no more was looked at."""
    has_pairs = any(not one.candidate.is_colocated for one in result.scored)
    if winner.candidate.is_colocated and not has_pairs:
        return ["two pools were no candidate: these GPUs make none that hold the longest request"]
    if result.question.rate is not None:
        if winner.candidate.is_colocated:
            return ["don't disaggregate: no two pools of this cost or less serve more"]
        return ["no cheaper cluster, and no colocated one of this cost that serves more, does"]
    if winner.candidate.is_colocated:
        return ["don't disaggregate: two pools would serve less of this traffic"]
    if not result.verdict.disaggregate:
        return ["two pools gain next to nothing over colocated: it is simpler, prefer it"]
    return []


def _limits(candidate: Candidate) -> str:
    roles = ("decode",) if candidate.is_colocated else ("prefill", "decode")
    each = (
        f"pools.{role} max_num_seqs {pool.limits.max_num_seqs}, "
        f"max_num_batched_tokens {pool.limits.max_num_batched_tokens}"
        for role, pool in zip(roles, candidate.pools, strict=False)
    )
    return "; ".join(each)


def _simulated(trial: Trial, trace: RequestTrace) -> str:
    """Of what its numbers are. Without shared prefixes the order of requests is drawn."""
    requests, order = trial.summary.requests, "its" if len(trace.shared) else "another"
    words = f"simulated with {requests} counted requests of a trace of {len(trace)}"
    words += f", in {order} order"
    if requests > len(trace):
        words += " and repeated"
    if trial.divided_by > 1:
        words += f", on 1/{trial.divided_by} of the cluster and of the rate"
    return words + _overload(trial)


def _overload(trial: Trial) -> str:
    """Where latencies grew all the time, though not yet beyond the limits."""
    words = ""
    if trial.further_s:
        words = f"; of {trial.further_s:.1f} s after them latencies were continued as they changed"
    if trial.falls_behind:
        words += (
            f"; at {trial.rate:.2f} requests/s, as the ratios compare them, it falls behind by "
            f"{trial.growth:.0%}, so {trial.lasting_rate:.2f} last"
        )
    return words


def _against(name: str, comparison: Comparison) -> str:
    likely = _likely(comparison.likely)
    more = "at least " if comparison.ratio >= MOST_TOLD else ""
    words = f"{more}{comparison.ratio:.2f} × {name} ({comparison.rival.candidate}){likely}"
    if abs(comparison.lasting / comparison.ratio - 1) < KEEPS_UP:
        return words
    return f"{words}; {comparison.lasting:.2f} × by the rates that last"


def _likely(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"; likely {interval.low:.2f} to {interval.high:.2f}"


def _nobody(result: TuneResult) -> list[str]:
    goal, nearest = result.question.goal, result.verdict.nearest
    words = [
        f"no cluster of these GPUs meets TTFT {goal.slo.ttft_s:g} s and TPOT "
        f"{goal.slo.tpot_s * 1000:g} ms for {goal.percentile:g} % of the requests"
        + (f" at {result.question.rate:g} requests/s" if result.question.rate is not None else "")
    ]
    trial = nearest.reached.nearest if nearest.reached is not None else None
    if trial is not None:
        ttft, tpot = trial.summary.ttft_s, trial.summary.tpot_s
        words.append(
            f"nearest: {nearest.candidate} with {trial.share:.0%} at {trial.rate:.3g} requests/s "
            f"(TTFT p90 {_seconds(ttft)} s, TPOT p90 {_milliseconds(tpot)} ms)"
            + (f"; it falls behind, {trial.lasting_rate:.3g} last" if trial.falls_behind else "")
        )
    return words


def _shift(shift: Shift, winner: Scored) -> str:
    """In rates that last, as the headline has them."""
    trial = winner.reached.trial if winner.reached is not None else None
    lasting = trial.lasting_rate / trial.rate if trial is not None else 1.0
    change = f"{shift.change}: {lasting * shift.stays_at:.2f} requests/s"
    if shift.best == winner.candidate or shift.rate <= shift.stays_at:
        return f"{change}, and it stays the best of its neighbours"
    return f"{change}; move to {shift.best} for {lasting * shift.rate:.2f}"


def table(result: TuneResult, top: int) -> tuple[Row, list[Row]]:
    """The best ``top`` that were simulated, and the rivals."""
    simulated = [one for one in result.scored if one.reached is not None and one.reached.told]
    chosen = simulated[:top]
    for comparison in (result.verdict.colocated, result.verdict.one_to_one):
        if comparison is not None and comparison.rival not in chosen:
            chosen.append(comparison.rival)
    rows = [_row(scored) for scored in chosen]
    prices = [scored.candidate.hour_price for scored in chosen]
    if not any(prices):
        return COLUMNS, rows
    priced = [(*row[:2], f"{price:.2f}", *row[2:]) for row, price in zip(rows, prices, strict=True)]
    return (*COLUMNS[:2], "price/h", *COLUMNS[2:]), priced


def _row(scored: Scored) -> Row:
    candidate, reached = scored.candidate, scored.reached
    assert reached is not None
    trial = reached.told
    assert trial is not None
    ttft, tpot = trial.summary.ttft_s, trial.summary.tpot_s
    lasting = f" ({trial.lasting_rate:.2f} last)" if trial.falls_behind else ""
    met = lasting if reached.trial is not None else " (missed)"
    return (
        str(candidate),
        str(candidate.accelerators),
        f"{trial.rate:.2f}{met}",
        "–" if reached.trial is None else f"{scored.rate_per_accelerator:.3f}",
        f"{tokens_per_accelerator(scored, trial):.0f}",
        f"{tokens_per_user(trial):.0f}",
        f"{_seconds(ttft, 'p50')} {_seconds(ttft)}",
        f"{_milliseconds(tpot, 'p50')} {_milliseconds(tpot)}",
        " / ".join(_short_limits(pool.limits) for pool in candidate.pools),
        busy_words(trial.summary.pools),
        limited_by(trial, scored.bound).value,
    )


def _short_limits(limits: Limits) -> str:
    return f"{limits.max_num_seqs}, {limits.max_num_batched_tokens}"


def tokens_per_accelerator(scored: Scored, trial: Trial) -> float:
    """Output tokens per second of one accelerator."""
    simulated = scored.candidate.accelerators / trial.divided_by
    return trial.summary.output_tokens_per_s / simulated


def tokens_per_user(trial: Trial) -> float:
    """Tokens per second that half of the answers reach or exceed."""
    tpot = trial.summary.tpot_s
    return 1 / tpot.p50 if tpot is not None and tpot.p50 > 0 else 0.0


def _seconds(spread: Spread | None, part: str = "p90") -> str:
    if spread is None:
        return "–"
    seconds = getattr(spread, part)
    return f"{seconds:.2f}" if seconds >= _SHORT_S else f"{seconds:.4f}"


def _milliseconds(spread: Spread | None, part: str = "p90") -> str:
    return "–" if spread is None else f"{getattr(spread, part) * 1000:.1f}"
