"""The thread that takes step after step: plan, execute, complete, deliver.

The scheduler is guarded by ``lock``, which is held for microseconds and never while a step
executes. With nothing to do the thread sleeps until ``wake``; it never polls.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from core.step import StepPlan, StepResult

Outputs = TypeVar("Outputs")
OutputsCo = TypeVar("OutputsCo", covariant=True)


class StepScheduler(Protocol[OutputsCo]):
    """What the loop asks of a scheduler. ``now`` is in seconds on the loop's clock."""

    def plan_step(self, now: float) -> StepPlan | None:
        """The next step, or None when there is nothing to do until something happens."""

    def complete_step(self, plan: StepPlan, result: StepResult, now: float) -> OutputsCo:
        """Takes in what the step computed and says what is to be delivered."""


class EngineLoop(Generic[Outputs]):
    """Runs ``execute`` in a thread of its own for as long as ``scheduler`` has plans.

    ``deliver`` gets each step's outputs on that thread, outside the lock. An exception of any of
    the three ends the thread after one call of ``crashed``; the other steps are lost with it.
    """

    def __init__(
        self,
        execute: Callable[[StepPlan], StepResult],
        scheduler: StepScheduler[Outputs],
        deliver: Callable[[Outputs], None],
        crashed: Callable[[BaseException], None],
        clock: Callable[[], float],
    ) -> None:
        self.lock = threading.Condition()
        self._execute = execute
        self._scheduler = scheduler
        self._deliver = deliver
        self._crashed = crashed
        self._clock = clock
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine-loop", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Call after the scheduler got something to do; also allowed while holding ``lock``."""
        with self.lock:
            self.lock.notify()

    def stop(self, timeout: float) -> bool:
        """Ends the thread after the step under way; false if that took over ``timeout`` seconds.

        May be called before ``start``, twice, or by ``deliver`` and ``crashed`` themselves.
        """
        with self.lock:
            self._stopping = True
            self.lock.notify()
        if self._thread.ident is None or self._thread is threading.current_thread():
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while (plan := self._next_plan()) is not None:
                result = self._execute(plan)
                with self.lock:
                    outputs = self._scheduler.complete_step(plan, result, self._clock())
                self._deliver(outputs)
        except BaseException as error:
            self._crashed(error)

    def _next_plan(self) -> StepPlan | None:
        with self.lock:
            while not self._stopping:
                plan = self._scheduler.plan_step(self._clock())
                if plan is not None:
                    return plan
                self.lock.wait()
        return None
