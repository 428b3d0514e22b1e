"""The requests of a simulation as a load that can be sent. Pure."""

from __future__ import annotations

from tuner.load.plan import Plan, PlannedRequest
from tuner.simulate.requests import RequestTrace


def plan_requests(trace: RequestTrace) -> Plan:
    """Arrivals, lengths and shared parts of ``trace``."""
    requests = tuple(
        PlannedRequest(
            0,
            index,
            float(trace.arrivals_s[index]),
            int(trace.prompt_tokens[index]),
            int(trace.output_tokens[index]),
            tuple(map(int, trace.shared[index])) if len(trace.shared) else (),
            trace.part_tokens,
        )
        for index in range(len(trace))
    )
    return Plan(0, trace.duration_s, requests)


def first_seconds(trace: RequestTrace, seconds: float) -> RequestTrace:
    """Those that arrive within ``seconds``, one at least."""
    return trace.first(max(1, int((trace.arrivals_s <= seconds).sum())))
