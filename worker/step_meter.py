"""What the engine's steps take and cost: time, FLOPs, bytes.

Steps are noted on the engine's thread, under its lock, and counted on the event loop, while the
next step is computed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from core.step import StepPlan
from core.step_clock import StepClock
from core.step_cost import CostModel


class StepMeter:
    """Totals since the worker started: ``steps``, ``busy_s``, ``flops``, ``bytes``.

    ``observe`` gets the seconds of each step, without its wait for earlier ones.
    """

    def __init__(self, costs: CostModel, observe: Callable[[float], None]) -> None:
        self.steps = 0
        self.busy_s = 0.0
        self.flops = 0
        self.bytes = 0
        self._costs = costs
        self._observe = observe
        self._clock = StepClock()
        self._completed: deque[tuple[StepPlan, float]] = deque()

    def planned(self, now: float) -> None:
        self._clock.planned(now)

    def completed(self, plan: StepPlan, now: float) -> None:
        self._completed.append((plan, self._clock.completed(now).own))

    def count(self) -> None:
        """Takes in what has been completed since."""
        while self._completed:
            plan, seconds = self._completed.popleft()
            cost = self._costs.of(plan)
            self.steps += 1
            self.busy_s += seconds
            self.flops += cost.flops
            self.bytes += cost.bytes
            self._observe(seconds)
