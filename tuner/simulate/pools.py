"""What the workers of each role did: over a period in a few numbers, and moment by moment. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.request import Role
from tuner.load.metrics import rate
from tuner.simulate.period import Period
from tuner.simulate.result import Seconds, SimulationResult, WorkerTrack


@dataclass(frozen=True, slots=True)
class PoolSummary:
    """All workers of one role. ``busy``: share (0 to 1) of the period in which their engines
    computed; ``waiting_mean``, ``waiting_max``: requests that wait at one worker;
    ``used_blocks_max``: largest share of a worker's KV pool that was in use. Tokens and preemptions
    are those of the whole simulation."""

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


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """Some number of each worker over time: mean over the workers, the least and the most, [t]."""

    mean: Seconds
    least: Seconds
    most: Seconds


@dataclass(frozen=True, slots=True, eq=False)
class PoolCourse:
    """All workers of one role at the moments ``at_s`` [t]: share of the time since the moment
    before in which an engine computed, requests that wait and that run at a worker, share of its KV
    pool that is in use."""

    role: Role
    at_s: Seconds
    busy: Course
    waiting: Course
    running: Course
    used_blocks: Course


def summarize_pools(result: SimulationResult, period: Period) -> tuple[PoolSummary, ...]:
    """One for each role that there is."""
    return tuple(
        _summary(role, workers, period, result.ended_s)
        for role, workers in _by_role(result.workers).items()
    )


def pool_courses(result: SimulationResult) -> tuple[PoolCourse, ...]:
    """One for each role that there is."""
    return tuple(_course_of(role, workers) for role, workers in _by_role(result.workers).items())


def _by_role(workers: Sequence[WorkerTrack]) -> dict[Role, list[WorkerTrack]]:
    found = {role: [worker for worker in workers if worker.role is role] for role in Role}
    return {role: of_role for role, of_role in found.items() if of_role}


def _summary(role: Role, workers: list[WorkerTrack], period: Period, ended_s: float) -> PoolSummary:
    inside = [period.holds(worker.at_s) for worker in workers]
    waiting = np.concatenate([w.waiting[known] for w, known in zip(workers, inside, strict=True)])
    used = [
        float(w.used_blocks[known].max(initial=0)) / w.num_blocks
        for w, known in zip(workers, inside, strict=True)
    ]
    busy_s = sum(_busy_seconds(worker, period, ended_s) for worker in workers)
    return PoolSummary(
        role=role,
        workers=len(workers),
        busy=rate(busy_s, period.seconds * len(workers)),
        waiting_mean=float(waiting.mean()) if len(waiting) else 0.0,
        waiting_max=int(waiting.max(initial=0)),
        used_blocks_max=max(used),
        prefill_tokens=sum(worker.prefill_tokens for worker in workers),
        recomputed_tokens=sum(worker.recomputed_tokens for worker in workers),
        decode_tokens=sum(worker.decode_tokens for worker in workers),
        preemptions=sum(worker.preemptions for worker in workers),
    )


def _busy_seconds(worker: WorkerTrack, period: Period, ended_s: float) -> float:
    """Within ``period``; even between two samples. ``ended_s``: when all of it was over."""
    until = np.cumsum(worker.busy * np.diff(worker.at_s, prepend=0.0))
    before = worker.at_s < ended_s
    times = np.concatenate([[0.0], worker.at_s[before], [ended_s]])
    until = np.concatenate([[0.0], until[before], [worker.busy_s]])
    start, end = np.interp([period.start_s, period.end_s], times, until).tolist()
    return float(end - start)


def _course_of(role: Role, workers: list[WorkerTrack]) -> PoolCourse:
    return PoolCourse(
        role=role,
        at_s=workers[0].at_s,
        busy=_course([worker.busy for worker in workers]),
        waiting=_course([worker.waiting.astype(np.float64) for worker in workers]),
        running=_course([worker.running.astype(np.float64) for worker in workers]),
        used_blocks=_course([worker.used_blocks / worker.num_blocks for worker in workers]),
    )


def _course(of_workers: list[Seconds]) -> Course:
    values = np.array(of_workers)
    return Course(values.mean(axis=0), values.min(axis=0), values.max(axis=0))
