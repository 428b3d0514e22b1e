"""What a run sends and when, decided in full before it starts.

Pure. A plan depends on its seed alone: the same seed gives the same arrivals and lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.errors import InvalidField
from tuner.load.arrivals import ArrivalKind, draw_arrivals, replay_arrivals
from tuner.load.traces import TRACE_BLOCK_TOKENS, TraceEntry
from tuner.load.workload import Workload


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """``at_s``: seconds after the start of its run. ``block_ids``: see ``traces``, but each stands
    for ``block_tokens``."""

    seed: int
    index: int
    at_s: float
    prompt_tokens: int
    output_tokens: int
    block_ids: tuple[int, ...] = ()
    block_tokens: int = TRACE_BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. ``window_s``: for how long requests arrive; ``requests`` by arrival."""

    seed: int
    window_s: float
    requests: tuple[PlannedRequest, ...]


def plan_rate(
    kind: ArrivalKind, rate: float, duration_s: float, workload: Workload, seed: int
) -> Plan:
    """Requests at ``rate`` per second. Raises ``InvalidField`` if none arrives in time."""
    # Two generators, so that a request has the same length at any rate.
    arrivals = draw_arrivals(kind, rate, duration_s, np.random.default_rng([seed, 0]))
    prompts, outputs = workload.draw(len(arrivals), np.random.default_rng([seed, 1]))
    if not len(arrivals):
        fix = f"with seed {seed} no request arrives in {duration_s:g} s; raise --duration or --rate"
        raise InvalidField("--rate", rate, fix)
    rows = zip(arrivals.tolist(), prompts.tolist(), outputs.tolist(), strict=True)
    requests = tuple(PlannedRequest(seed, i, *row) for i, row in enumerate(rows))
    return Plan(seed, duration_s, requests)


def plan_trace(entries: Sequence[TraceEntry], speed: float, seed: int) -> Plan:
    """The requests of a trace, ``speed`` times as fast. ``entries``: at least one, by time."""
    stamps = np.array([entry.stamp_s for entry in entries])
    times = replay_arrivals(stamps, speed).tolist()
    requests = tuple(
        PlannedRequest(seed, i, at, entry.prompt_tokens, entry.output_tokens, entry.block_ids)
        for i, (at, entry) in enumerate(zip(times, entries, strict=True))
    )
    return Plan(seed, times[-1], requests)
