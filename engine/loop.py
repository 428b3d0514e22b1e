"""The thread that takes step after step: plan, submit, deliver what the last ones gave, complete.

Covers: several steps under way at once (as many as the replica has pipeline stages), completed in
the order of their plans; what a step gave is delivered when the next one is under way, so that
whoever receives it works beside the engine and not before it. The scheduler is guarded by ``lock``,
which is held for microseconds and never while a step executes. With nothing to do the thread
sleeps until there is new work or a result; it never polls.
Does not cover: how a step is computed (`StepExecutor`), what it holds (`StepScheduler`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from core.step import StepPlan, StepResult

Outputs = TypeVar("Outputs")
OutputsCo = TypeVar("OutputsCo", covariant=True)


class StepExecutor(Protocol):
    """What the loop asks of an engine."""

    @property
    def depth(self) -> int:
        """How many steps may be under way at once: the stages of the pipeline."""

    def submit(self, plan: StepPlan, meanwhile: Callable[[], None]) -> Future[StepResult]:
        """Computes this process's part; results come in the order of the plans.

        Calls ``meanwhile`` once: when the device has all it needs to compute the step by itself, or
        before computing on this very thread. What it raises passes through.

        Called by one thread. The future may get its result, or the exception that ends the
        replica, on any thread.
        """


class StepScheduler(Protocol[OutputsCo]):
    """What the loop asks of a scheduler. ``now`` is in seconds on the loop's clock."""

    def plan_step(self, now: float) -> StepPlan | None:
        """The next step, or None when there is nothing to do until something happens."""

    def complete_step(self, plan: StepPlan, result: StepResult, now: float) -> OutputsCo:
        """Takes in what the oldest step under way computed; says what is to be delivered."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A step under way."""

    plan: StepPlan
    future: Future[StepResult]


class EngineLoop(Generic[Outputs]):
    """Keeps ``executor`` busy in a thread of its own for as long as ``scheduler`` has plans.

    ``deliver`` gets each step's outputs on that thread, outside the lock. An exception of any of
    the three, or of a step's future, ends the thread after one call of ``crashed``; the other
    steps are lost with it.
    """

    def __init__(
        self,
        executor: StepExecutor,
        scheduler: StepScheduler[Outputs],
        deliver: Callable[[Outputs], None],
        crashed: Callable[[BaseException], None],
        clock: Callable[[], float],
    ) -> None:
        self.lock = threading.Condition()
        self._executor = executor
        self._scheduler = scheduler
        self._deliver = deliver
        self._crashed = crashed
        self._clock = clock
        self._stopping = False
        # Oldest first. Only the loop's thread touches them.
        self._under_way: deque[_Step] = deque()
        self._undelivered: deque[Outputs] = deque()
        self._thread = threading.Thread(target=self._run, name="engine-loop", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Call after the scheduler got something to do; also allowed while holding ``lock``."""
        with self.lock:
            self.lock.notify()

    def stop(self, timeout: float) -> bool:
        """Ends the thread after the steps under way; false if that took over ``timeout`` seconds.

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
            while (move := self._next_move()) is not None:
                if isinstance(move, StepPlan):
                    self._submit(move)
                elif isinstance(move, _Step):
                    self._complete(move)
                else:
                    self._deliver_all()
        except BaseException as error:
            self._crashed(error)

    def _next_move(self) -> StepPlan | _Step | deque[Outputs] | None:
        """Waits for a finished step, which goes first, or a plan; None when all is over.

        Outputs that no step is submitted after are delivered by themselves.
        """
        with self.lock:
            while True:
                if self._under_way and self._under_way[0].future.done():
                    return self._under_way.popleft()
                plan = self._plan()
                if plan is not None:
                    return plan
                if self._undelivered:
                    return self._undelivered
                if self._stopping and not self._under_way:
                    return None
                self.lock.wait()

    def _plan(self) -> StepPlan | None:
        if self._stopping or len(self._under_way) >= self._executor.depth:
            return None
        return self._scheduler.plan_step(self._clock())

    def _submit(self, plan: StepPlan) -> None:
        future = self._executor.submit(plan, self._deliver_all)
        self._under_way.append(_Step(plan, future))
        # Not under the lock: the callback may run right here, or on a thread with locks of its own.
        future.add_done_callback(lambda _: self.wake())

    def _complete(self, step: _Step) -> None:
        result = step.future.result()
        with self.lock:
            outputs = self._scheduler.complete_step(step.plan, result, self._clock())
        self._undelivered.append(outputs)

    def _deliver_all(self) -> None:
        while self._undelivered:
            self._deliver(self._undelivered.popleft())
