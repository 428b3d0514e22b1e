"""The thread of a rank that computes steps in the order in which its leader sends them."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

import numpy as np

from core.block_pool import Generations
from core.step import StepPlan, StepResult
from crossdock.v1 import rank_pb2 as pb
from wire.rank_steps import plan_from_wire, result_to_wire

_log = logging.getLogger(__name__)
_INT32 = np.dtype("<i4")
_UINT64 = np.dtype("<u8")


class EngineThread:
    """``execute`` computes this rank's part and returns a result if this rank draws; ``finished``
    is told how many steps are done. An exception ends the thread after one call of ``crashed``.

    A daemon thread: one that hangs in a collective does not keep its process alive.
    """

    def __init__(
        self,
        execute: Callable[[StepPlan], StepResult | None],
        generations: Generations,
        *,
        send_result: Callable[[pb.RankStepResult], None],
        finished: Callable[[int], None],
        crashed: Callable[[BaseException], None],
    ) -> None:
        self._execute = execute
        self._generations = generations
        self._send_result = send_result
        self._finished = finished
        self._crashed = crashed
        self._steps: queue.SimpleQueue[pb.RankStep | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="rank-engine", daemon=True)
        self._thread.start()

    def put(self, step: pb.RankStep) -> None:
        self._steps.put(step)

    def stop(self, limit_s: float) -> bool:
        """Ends the thread after the steps that are there; false if it takes longer."""
        self._steps.put(None)
        self._thread.join(limit_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while (step := self._steps.get()) is not None:
                self._compute(step)
        except BaseException as error:
            _log.debug("a step failed", exc_info=True)
            self._crashed(error)

    def _compute(self, step: pb.RankStep) -> None:
        block_ids = np.frombuffer(step.block_ids, _INT32)
        self._generations[block_ids] = np.frombuffer(step.generations, _UINT64)
        result = self._execute(plan_from_wire(step.plan))
        # First: what the leader asks for once it has the result need not wait.
        self._finished(step.number)
        if result is not None:
            self._send_result(result_to_wire(step.number, result))
