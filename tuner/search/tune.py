"""The whole search: bounds, simulations, verdict, sensitivity.

Two questions: the highest rate that a budget can serve (``goodput``), and the fewest or cheapest
accelerators for a given rate (``cheapest``). Does not cover: reading and printing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.config import ClusterSpec
from core.errors import InvalidField
from tuner.search.bench import Traced
from tuner.search.bounds import Bound, Traffic, bound_rate
from tuner.search.cheapest import cheapest, verdict_on_cost
from tuner.search.estimate import Estimates
from tuner.search.evaluate import Goal
from tuner.search.goodput import (
    EstimatedRates,
    SimulatedRates,
    by_halving,
    by_replicas,
    error_of_estimates,
)
from tuner.search.halving import Scored
from tuner.search.hopeless import nearest_miss, nobody_meets
from tuner.search.laboratory import Laboratory
from tuner.search.sensitivity import Shift, neighbours, shifts_of
from tuner.search.space import Budget, Candidate, Limits, all_candidates
from tuner.search.verdict import REPLICATES, Verdict, judge
from tuner.simulate.requests import RequestTrace

Progress = Callable[[str], None]

# The number of clusters grows with the square of it.
_MOST_FOR_A_RATE = 64


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
    _check_rate(trace)
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
        threads = question.base.engine.threads
        so_many = "" if threads is None else f" with engine.threads = {threads}"
        fix = f"they make no cluster of the profiled shapes{so_many}: give more, or profile others"
        raise InvalidField("gpus", question.budget.total, fix)
    traffic = Traffic.of(trace, question.goal.share)
    return [(c, bound_rate(c, traffic, question.goal.slo)) for c in candidates]


def _check_length(question: Question, longest: int) -> None:
    budget, wanted = question.budget, question.base.max_model_len
    shortest = min((kind.profile for kind in budget.kinds), key=lambda on: on.max_positions)
    if longest > shortest.max_positions:
        most = f"{shortest.model} serves at most {shortest.max_positions} tokens"
        fix = f"{most}, prompt and answer together: leave longer requests out"
        raise InvalidField("TRACE", longest, fix)
    if wanted is not None and longest > wanted:
        fix = f"the trace has a request of {longest} tokens: leave it out, or serve longer ones"
        raise InvalidField("max_model_len", wanted, fix)
    if question.rate is not None and budget.total > _MOST_FOR_A_RATE:
        fix = f"at most {_MOST_FOR_A_RATE} for --rate, which looks at every smaller cluster too"
        raise InvalidField("gpus", budget.total, fix)


def _check_rate(trace: RequestTrace) -> None:
    """Its rate is what trials raise and lower."""
    if not trace.rate:
        so_many = (
            f"all {len(trace)} of its requests come" if len(trace) > 1 else "its request comes"
        )
        fix = f"{so_many} at one moment, so it has no rate: give one that lasts some seconds"
        raise InvalidField("TRACE", trace.name, fix)


def tune(
    question: Question,
    bounded: Sequence[tuple[Candidate, Bound]],
    progress: Progress = lambda text: None,
    processes: int | None = None,
) -> TuneResult:
    """``bounded``: of ``bounded_candidates``. Results do not depend on ``processes``."""
    given = Traced(question.trace, question.base, question.goal, question.seed)
    traffic = Traffic.of(question.trace, question.goal.share)
    with Laboratory(given, processes) as laboratory:
        search = _Search(question, traffic, laboratory, progress)
        scored, verdict = search.answer(bounded)
        shifts = search.shifts(scored, verdict)
    return TuneResult(question, traffic, tuple(scored), verdict, shifts)


class _Search:
    """One question, with what answers it. Workers on CPUs share their host, so no replica of them
    is looked at alone."""

    def __init__(
        self, question: Question, traffic: Traffic, laboratory: Laboratory, progress: Progress
    ) -> None:
        self._question = question
        self._traffic = traffic
        self._laboratory = laboratory
        self._progress = progress
        goal = question.goal
        share_host = any(kind.profile.device == "cpu" for kind in question.budget.kinds)
        self._estimates = (
            None
            if share_host
            else Estimates(
                laboratory.replicas,
                Traffic.of_all(question.trace, goal.share),
                traffic,
                goal.slo,
            )
        )
        self._rates_under = (
            SimulatedRates(laboratory)
            if self._estimates is None
            else EstimatedRates(self._estimates, laboratory)
        )

    def answer(self, bounded: Sequence[tuple[Candidate, Bound]]) -> tuple[list[Scored], Verdict]:
        """All candidates, the best first, and what follows from them."""
        question, measure = self._question, self._laboratory.measure
        if nobody_meets(bounded):
            return nearest_miss(bounded, self._traffic, question.goal.slo, measure)
        if question.rate is not None:
            scored = cheapest(question.rate, bounded, measure, self._estimated, self._progress)
            return scored, verdict_on_cost(question.rate, scored)
        slo = question.goal.slo
        if self._estimates is None:
            scored = by_halving(bounded, self._laboratory, self._traffic, slo, self._progress)
        else:
            scored = by_replicas(
                bounded, self._laboratory, self._estimates, self._traffic, slo, self._progress
            )
        self._progress("how sure that is")
        error = error_of_estimates(scored)
        rates_under, replicates = self._rates_under, question.replicates
        return scored, judge(scored, rates_under, replicates, error, question.seed)

    def shifts(self, scored: Sequence[Scored], verdict: Verdict) -> tuple[Shift, ...]:
        if verdict.winner is None:
            return ()
        self._progress("what if the traffic changes")
        return shifts_of(neighbours(verdict.winner, scored), self._rates_under)

    def _estimated(self, group: Sequence[Scored]) -> Sequence[Scored]:
        return group if self._estimates is None else self._estimates.of(group)
