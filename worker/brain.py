"""What the shell of a worker asks of the pure object that decides for it."""

from __future__ import annotations

from typing import Protocol, TypeVar

from core.block_pool import BlockPool
from core.event_log import EventLog
from core.outputs import Load, StepCounters
from core.step import StepPlan, StepResult

EventIn = TypeVar("EventIn", contravariant=True)
Command = TypeVar("Command")


class Brain(Protocol[EventIn, Command]):
    """The pure object that decides for a worker."""

    pool: BlockPool
    events: EventLog

    def handle(self, event: EventIn, now: float) -> list[Command]: ...
    def plan_step(self, now: float) -> StepPlan | None: ...
    def complete_step(self, plan: StepPlan, result: StepResult, now: float) -> list[Command]: ...
    def validate(self) -> None: ...

    @property
    def load(self) -> Load: ...
    @property
    def counters(self) -> StepCounters: ...
    @property
    def num_leases(self) -> int: ...
    @property
    def num_orphans(self) -> int: ...
    @property
    def idle(self) -> bool: ...
