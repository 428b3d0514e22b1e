"""Steps of a replica that is one process: each is computed before the next one is planned.

Does not cover: replicas of several ranks (``worker.ranks``).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from core.step import StepPlan, StepResult


class LocalExecutor:
    """A `StepExecutor` that computes on the thread that submits, one step at a time.

    ``execute`` is `ModelRunner.execute` of the only rank, which draws all tokens: its result is
    never None.
    """

    def __init__(
        self, execute: Callable[[StepPlan, Callable[[], None]], StepResult | None]
    ) -> None:
        self._execute = execute

    @property
    def depth(self) -> int:
        return 1

    def submit(self, plan: StepPlan, meanwhile: Callable[[], None]) -> Future[StepResult]:
        """Returns when the step is computed. Raises what ``execute`` raises."""
        future: Future[StepResult] = Future()
        result = self._execute(plan, meanwhile)
        assert result is not None
        future.set_result(result)
        return future
