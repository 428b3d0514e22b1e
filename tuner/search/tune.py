"""The whole search: bounds, halving, limits, verdict, sensitivity.

Two questions: the highest rate that a budget can serve (``tune_goodput``), and the fewest or
cheapest accelerators for a given rate (``tune_cost``). Does not cover: reading and printing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from core.config import ClusterSpec
from core.errors import InvalidField
from tuner.search.bounds import SLACK, Bound, Traffic, bound_rate
from tuner.search.evaluate import Goal
from tuner.search.halving import RUNGS, Job, Rung, Scored, halve
from tuner.search.laboratory import Laboratory, Traced
from tuner.search.sensitivity import Shift, changes, shift
from tuner.search.space import Budget, Candidate, Limits, all_candidates
from tuner.search.verdict import REPLICATES, Verdict, judge, nearest_of
from tuner.simulate.requests import RequestTrace

Progress = Callable[[str], None]

# The number of clusters grows with the square of it.
_MOST_FOR_A_RATE = 64

# So many clusters are looked at before it is asked whether dearer ones are needed.
_STEP = 6
# How closely alternatives to the winner are looked at.
_FINAL = RUNGS[-1]


@dataclass(frozen=True, slots=True)
class Question:
    """``rate``: requests per second that have to be served; None: as many as possible.
    ``prefill_limits``: of prefill workers to begin with; None: ``limits``, as for the others."""

    trace: RequestTrace
    base: ClusterSpec
    budget: Budget
    goal: Goal
    limits: Limits
    rate: float | None = None
    seed: int = 0
    replicates: int = REPLICATES
    prefill_limits: Limits | None = None


@dataclass(frozen=True, slots=True)
class TuneResult:
    """``scored``: all candidates, the best first."""

    question: Question
    traffic: Traffic
    scored: tuple[Scored, ...]
    verdict: Verdict
    shifts: tuple[Shift, ...]


def bounded_candidates(question: Question) -> list[tuple[Candidate, Bound]]:
    """Every candidate with what it can serve at most. Raises ``InvalidField`` if there is none."""
    trace = question.trace
    longest = int((trace.prompt_tokens + trace.output_tokens).max())
    _check_length(question, longest)
    spend_all = question.rate is None
    candidates = all_candidates(
        question.budget,
        longest,
        question.limits,
        spend_all=spend_all,
        prefill_limits=question.prefill_limits,
        kv=question.base.kv,
        threads=question.base.engine.threads,
    )
    if not candidates:
        fix = "they make no cluster of the profiled shapes: give more, or profile smaller shapes"
        raise InvalidField("gpus", question.budget.total, fix)
    traffic = Traffic.of(trace, question.goal.share)
    return [(c, bound_rate(c, traffic, question.goal.slo)) for c in candidates]


def _check_length(question: Question, longest: int) -> None:
    budget, wanted = question.budget, question.base.max_model_len
    limits = [kind.profile.max_positions for kind in budget.kinds]
    most = min([*limits, *([wanted] if wanted is not None else [])])
    if longest > most:
        fix = (
            f"this model serves at most {most} tokens, prompt and answer together; --limit or edit"
        )
        raise InvalidField("trace", longest, fix)
    if question.rate is not None and budget.total > _MOST_FOR_A_RATE:
        fix = f"at most {_MOST_FOR_A_RATE} for --rate, which looks at every smaller cluster too"
        raise InvalidField("gpus", budget.total, fix)


def tune(
    question: Question,
    bounded: Sequence[tuple[Candidate, Bound]],
    progress: Progress = lambda text: None,
    processes: int | None = None,
) -> TuneResult:
    """``bounded``: of ``bounded_candidates``. Results do not depend on ``processes``."""
    given = Traced(question.trace, question.base, question.goal, question.seed)
    with Laboratory(given, processes) as laboratory:
        if question.rate is None:
            scored = halve(bounded, laboratory.measure, progress=progress)
            progress("scheduler limits of the best")
            scored = _with_other_limits(question, scored, laboratory)
            progress("how sure that is")
            verdict = judge(scored, laboratory.replicate, question.replicates)
        else:
            scored = _cheapest(question.rate, bounded, laboratory, progress)
            verdict = _verdict_on_cost(question.rate, scored)
    shifts = _shifts(question, verdict, [c for c, _ in bounded], progress, processes)
    return TuneResult(question, Traffic.of(question.trace), tuple(scored), verdict, shifts)


def _with_other_limits(
    question: Question, scored: list[Scored], laboratory: Laboratory
) -> list[Scored]:
    """The winner with other limits takes its place if they serve it better."""
    best = scored[0]
    if not best.rate:
        return scored
    traffic, slo = Traffic.of(question.trace, question.goal.share), question.goal.slo
    variants = _limit_variants(best.candidate)
    bounds = [bound_rate(variant, traffic, slo) for variant in variants]
    jobs = [
        Job(
            variant,
            _FINAL,
            best.rate,
            SLACK * bound.rate,
            certainty=1.1,
            floor=best.rate * (1 + _FINAL.precision),
        )
        for variant, bound in zip(variants, bounds, strict=True)
    ]
    tried = [
        Scored(job.candidate, bound, reached, best.rungs)
        for job, bound, reached in zip(jobs, bounds, laboratory.measure(jobs), strict=True)
    ]
    better = max(tried, key=lambda one: one.rate)
    if better.rate <= best.rate * (1 + _FINAL.precision):
        return scored
    return [better, *scored[1:]]


def _limit_variants(candidate: Candidate) -> list[Candidate]:
    """Half and twice the tokens of a step where prompts are computed, twice the sequences."""
    prefilling = candidate.pools[0].limits
    decoding = candidate.decode[0].limits
    variants = []
    for factor in (0.5, 2):
        tokens = max(int(prefilling.max_num_batched_tokens * factor), prefilling.max_num_seqs)
        changed = replace(prefilling, max_num_batched_tokens=tokens)
        if candidate.is_colocated:
            variants.append(candidate.with_limits(None, changed))
        else:
            variants.append(candidate.with_limits(changed, decoding))
    seqs = 2 * decoding.max_num_seqs
    wider = Limits(seqs, max(decoding.max_num_batched_tokens, seqs))
    variants.append(candidate.with_limits(None, wider))
    return variants


def _cheapest(
    rate: float,
    bounded: Sequence[tuple[Candidate, Bound]],
    laboratory: Laboratory,
    progress: Progress,
) -> list[Scored]:
    """By price, then by number: the first few that serve ``rate`` and what could cost as little."""
    possible = [(c, bound) for c, bound in bounded if SLACK * bound.rate >= rate]
    possible.sort(key=lambda pair: (*_cost(pair[0]), -pair[1].rate))
    if not possible:
        # For the nearest: those that could come closest.
        possible = sorted(bounded, key=lambda pair: -pair[1].rate)[:_STEP]
    quick, final = RUNGS[0], replace(_FINAL, precision=0.05)
    found: list[Scored] = []
    failed: list[Scored] = []
    for first in range(0, len(possible), _STEP):
        group = possible[first : first + _STEP]
        if found and _cost(group[0][0]) > _cost(found[0].candidate):
            break
        progress(f"{first} of {len(possible)} clusters looked at, the cheaper ones first")
        seen = _at(rate, group, quick, laboratory)
        promising = [scored for scored in seen if scored.rate >= 0.9 * rate]
        failed += [scored for scored in seen if scored.rate < 0.9 * rate]
        looked = _at(rate, [(s.candidate, s.bound) for s in promising], final, laboratory)
        found += [scored for scored in looked if scored.rate >= rate]
        failed += [scored for scored in looked if scored.rate < rate]
        found.sort(key=lambda scored: (*_cost(scored.candidate), -scored.rate))
    simulated = {scored.candidate for scored in (*found, *failed)}
    rest = [Scored(c, bound) for c, bound in bounded if c not in simulated]
    return [*found, *failed, *rest]


def _at(
    rate: float,
    group: Sequence[tuple[Candidate, Bound]],
    rung: Rung,
    laboratory: Laboratory,
) -> list[Scored]:
    """What each reaches up to half above ``rate``: nobody asks for more."""
    jobs = [
        Job(c, rung, min(rate, SLACK * bound.rate), min(1.5 * rate, SLACK * bound.rate))
        for c, bound in group
    ]
    return [
        Scored(candidate, bound, reached, 1)
        for (candidate, bound), reached in zip(group, laboratory.measure(jobs), strict=True)
    ]


def _verdict_on_cost(rate: float, scored: Sequence[Scored]) -> Verdict:
    """Rivals of the same cost, colocated ones among them, were looked at before dearer ones."""
    if scored[0].rate < rate:
        return Verdict(None, nearest_of(scored), None, None)
    return Verdict(scored[0], scored[0], None, None)


def _cost(candidate: Candidate) -> tuple[float, int]:
    return candidate.hour_price, candidate.accelerators


def _shifts(
    question: Question,
    verdict: Verdict,
    everyone: Sequence[Candidate],
    progress: Progress,
    processes: int | None,
) -> tuple[Shift, ...]:
    if verdict.winner is None:
        return ()
    shifts = []
    for change, trace in changes(question.trace).items():
        progress(f"what if {change}")
        given = Traced(trace, question.base, question.goal, question.seed)
        with Laboratory(given, processes) as laboratory:
            shifts.append(
                shift(
                    change,
                    trace,
                    verdict.winner,
                    everyone,
                    question.goal.slo,
                    laboratory.measure,
                )
            )
    return tuple(shifts)
