"""Where events and engine steps meet the pure object of a worker, and how its decisions leave.

Covers: the lock under which both meet it, events on the event loop and steps on the engine's
thread; what was decided on either, carried out on the event loop in the order of the decisions;
what ends a worker: its brain or its engine fails, a rank is lost, a step hangs.
Does not cover: what is decided (``worker.brain``), what commands do (``worker.service``), the
engine's thread itself (``engine.loop``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from core.errors import InternalError
from core.step import StepPlan, StepResult
from engine.loop import EngineLoop
from worker.brain import Brain
from worker.daemon_call import call_in_daemon
from worker.ranks.replica import Replica
from worker.step_meter import StepMeter

_log = logging.getLogger(__name__)
# A single step that takes longer than this is stuck.
_STEP_LIMIT_S = 60.0

Event = TypeVar("Event")
Command = TypeVar("Command")


class Decisions(Generic[Event, Command]):
    """Those of the worker ``name``. Made on the event loop, and called there unless said otherwise.

    ``carry_out`` gets the commands of one decision; ``after_step`` is called when those of a step
    are carried out. ``closed`` gets an exception when nothing more can be decided: what the engine
    works on must not be given up then, the process has to end.
    """

    def __init__(
        self,
        name: str,
        brain: Brain[Event, Command],
        replica: Replica,
        meter: StepMeter,
        closed: asyncio.Future[None],
        carry_out: Callable[[list[Command]], None],
        after_step: Callable[[], None],
    ) -> None:
        self._name = name
        self._brain = brain
        self._replica = replica
        self._meter = meter
        self._closed = closed
        self._carry_out = carry_out
        self._after_step = after_step
        self._loop = asyncio.get_running_loop()
        # Appended to under the lock.
        self._decided: deque[list[Command]] = deque()
        self._engine: EngineLoop[None] = EngineLoop(
            replica.executor,
            self,
            deliver=self._deliver,
            crashed=self._crashed,
            clock=time.monotonic,
        )

    @property
    def lock(self) -> threading.Condition:
        """Guards the brain; to be held for microseconds."""
        return self._engine.lock

    def start(self) -> None:
        self._engine.start()
        self._replica.on_lost(self._crashed)

    async def stop(self) -> None:
        """Ends the engine's thread, if it has started."""
        stopping = call_in_daemon(lambda: self._engine.stop(_STEP_LIMIT_S), "engine-stop")
        # A lost replica's engine may wait for a rank that hangs: it is not waited for.
        await asyncio.wait((stopping, self._closed), return_when=asyncio.FIRST_COMPLETED)
        if stopping.done() and not stopping.result():
            late = f"the step under way did not end within {_STEP_LIMIT_S:g} s"
            self._report_crash(InternalError(late, reason="ENGINE_HANGS"))

    @property
    def idle(self) -> bool:
        """The brain has nothing left to do, and all that it decided is carried out."""
        with self.lock:
            return self._brain.idle and not self._decided

    # On the event loop

    def submit(self, event: Event) -> None:
        """Lets the brain decide about an event and carries the decision out."""
        try:
            with self.lock:
                self._decided.append(self._brain.handle(event, time.monotonic()))
        except Exception as error:
            # The brain's state can't be trusted any more: this worker has to be replaced.
            self._report_crash(error)
            return
        self._engine.wake()
        self._carry_out_decided()

    def _step_delivered(self) -> None:
        # The next step is under way, if there is one.
        self._carry_out_decided()
        self._meter.count()
        self._after_step()

    def _carry_out_decided(self) -> None:
        while self._decided:
            self._carry_out(self._decided.popleft())

    def _report_crash(self, error: BaseException) -> None:
        if not self._closed.done():
            self._closed.set_exception(error)

    # On the engine's thread, which holds the lock

    def plan_step(self, now: float) -> StepPlan | None:
        plan = self._brain.plan_step(now)
        if plan is not None:
            self._meter.planned(now)
        return plan

    def complete_step(self, plan: StepPlan, result: StepResult, now: float) -> None:
        self._decided.append(self._brain.complete_step(plan, result, now))
        self._meter.completed(plan, now)

    # On any thread. The event loop may be closed already when the worker stops.

    def _deliver(self, _: None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._step_delivered)

    def _crashed(self, error: BaseException) -> None:
        _log.critical("%s crashed", self._name, exc_info=error)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._report_crash, error)
