"""What serving adds to a step that was measured on the engine alone. Pure.

A step of the simulator lasts from the start of one step to that of the next. So what a worker does
between two steps on the engine's thread is added to each measured step, and so is the CPU that its
other threads (gRPC) take meanwhile, where they have no core of their own. For engines that were
also measured while they served, what is added is how much longer their steps were there, or
shorter: it is another process, with its memory elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from cluster.profiling.tasks import Found
from core.latency_profile import StepWork
from core.shards import ONE_RANK
from tuner.profile.fit import fit_line
from tuner.profile.points import EngineSetting, StepPoint

Findings = Mapping[str, Found]

AROUND = "around a step of "
BESIDE = "beside a step of "
SERVED_STEP = "a served step of "
# Of decode steps that are compared with served ones, whose answers are short.
_SHORT_CONTEXT = 128
# Of the shortest step: what a worker may be faster than the engine alone was.
_MOST_FASTER = 0.2


@dataclass(frozen=True, slots=True)
class Overhead:
    """Seconds of each step, and for each drawn token."""

    fixed: float = 0.0
    per_sampled: float = 0.0

    def of(self, work: StepWork) -> float:
        return self.fixed + self.per_sampled * work.sampled


def overheads(
    engines: Mapping[EngineSetting, Findings], serving: Findings, device: str
) -> dict[EngineSetting, Overhead]:
    """Around and beside steps. A replica of several ranks has the scheduler of one with one rank; a
    GPU needs no core, so that what is beside it costs it nothing."""
    beside = _line(serving, BESIDE) if device == "cpu" else Overhead()
    around = {setting: _line(findings, AROUND) for setting, findings in engines.items()}
    first = next((one for s, one in around.items() if s.shape == ONE_RANK), Overhead())
    return {
        setting: _sum(
            own if setting.shape == ONE_RANK else first, _scaled(beside, 1 / setting.core_share)
        )
        for setting, own in around.items()
    }


def as_served(
    known: Overhead, points: Sequence[StepPoint], findings: Findings, serving: Findings
) -> Overhead:
    """With the fixed part by which decode steps of a worker that served differ from those of the
    engine alone; ``known`` if no batch was measured both ways. The median: one slow run of either
    says little."""
    added = []
    for point in points:
        served = serving.get(f"{SERVED_STEP}{point.decodes}")
        if point.chunks or point.context > _SHORT_CONTEXT or served is None or not served.seconds:
            continue
        if (alone := findings.get(point.name)) is not None:
            added.append(served.seconds - alone.seconds - known.of(point.work) + known.fixed)
    if not added:
        return known
    shortest = min(findings[point.name].seconds for point in points if point.name in findings)
    return replace(known, fixed=max(-_MOST_FASTER * shortest, median(added)))


def _sum(one: Overhead, other: Overhead) -> Overhead:
    return Overhead(one.fixed + other.fixed, one.per_sampled + other.per_sampled)


def _scaled(one: Overhead, factor: float) -> Overhead:
    return Overhead(one.fixed * factor, one.per_sampled * factor)


def _line(findings: Findings, prefix: str) -> Overhead:
    found = {
        int(name.removeprefix(prefix)): one.seconds
        for name, one in findings.items()
        if name.startswith(prefix)
    }
    if not found:
        return Overhead()
    # A step without any overhead has none to fit: the smallest there is stands for it.
    seconds = [max(value, 1e-9) for value in found.values()]
    if len(found) == 1:
        return Overhead(fixed=seconds[0])
    return Overhead(*fit_line(list(found), seconds))
