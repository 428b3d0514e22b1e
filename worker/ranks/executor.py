"""Steps on all ranks of a replica: the leading rank sends each one round and computes its part.

Covers: numbering, the generations that go with a step, the result from whichever rank draws.
Does not cover: what the other ranks do with it (``worker.ranks.engine_thread``).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError

import numpy as np

from core.block_pool import BlockIds, Generations
from core.errors import InternalError
from core.shards import ParallelShape
from core.step import StepPlan, StepResult
from crossdock.v1 import rank_pb2 as pb
from wire.rank_steps import plan_to_wire, result_from_wire
from worker.ranks.group import RankGroup
from worker.ranks.step_limit import StepLimit

_INT32 = np.dtype("<i4")
_UINT64 = np.dtype("<u8")
# Between the end of a rank as its process group sees it and as its connection does.
_LOSS_NEWS_S = 1.0
# Ranks wait 60 s for each other's tensors (``engine.process_group``): so long may a step take until
# it is in the last stage, and there it gets as long again.
_STEP_LIMIT_S = 120.0


class RankExecutor:
    """An ``engine.loop.StepExecutor``. As many steps may be under way as there are stages. Where
    another rank draws, it is lost if no result comes for 120 s.

    ``execute`` computes the leading rank's part; ``generations`` (uint64 [num_blocks]) are its
    pool's, ``block_size`` in tokens.
    """

    def __init__(
        self,
        group: RankGroup,
        shape: ParallelShape,
        execute: Callable[[StepPlan, Callable[[], None]], StepResult | None],
        generations: Generations,
        block_size: int,
    ) -> None:
        self._group = group
        self._shape = shape
        self._execute = execute
        self._generations = generations
        self._block_size = block_size
        self._submitted = 0
        self._limit = StepLimit(_STEP_LIMIT_S)
        # Results that another rank owes, by the number of the step.
        self._owed: dict[int, Future[StepResult]] = {}
        self._lock = threading.Lock()
        group.deliver_results(self._on_result)
        group.lost.add_done_callback(self._fail_owed)
        if self._drawing_rank:
            group.check_often(self._check_progress)

    @property
    def depth(self) -> int:
        return self._shape.pipeline

    def submit(self, plan: StepPlan, meanwhile: Callable[[], None]) -> Future[StepResult]:
        """Raises what kept this rank from computing its part, or ``ConnectionError`` if another
        rank is lost."""
        self._submitted += 1
        number = self._submitted
        result: Future[StepResult] = Future()
        if self._drawing_rank:
            with self._lock:
                self._owed[number] = result
        self._send(number, plan)
        own = self._execute_own(plan, meanwhile)
        if own is not None:
            self._group.completed_steps = number
            result.set_result(own)
        return result

    @property
    def _drawing_rank(self) -> int:
        """Tensor rank 0 of the last stage."""
        return (self._shape.pipeline - 1) * self._shape.tensor

    def _send(self, number: int, plan: StepPlan) -> None:
        ranks = self._group.ranks
        if self._drawing_rank and _counts_tokens(plan):
            ranks.remove(self._drawing_rank)
            self._group.send(self._drawing_rank, self._message(number, plan, draws_here=True))
        self._group.send_to(ranks, self._message(number, plan, draws_here=False))

    def _execute_own(self, plan: StepPlan, meanwhile: Callable[[], None]) -> StepResult | None:
        try:
            return self._execute(plan, meanwhile)
        except InternalError as error:
            if error.reason != "PEERS_LOST":
                raise
            # The process group only knows that a peer is gone; the connection tells which, and why.
            with contextlib.suppress(TimeoutError):
                raise self._group.lost.exception(_LOSS_NEWS_S) or error from error
            raise

    def _check_progress(self, now: float) -> None:
        """On the group's thread. A step that has just been submitted may be missed once."""
        completed = self._group.completed_steps
        if self._limit.overdue(self._submitted, completed, now):
            late = f"no result of step {completed + 1} came for {self._limit.limit_s:g} s"
            self._group.lose(self._drawing_rank, late)

    def _message(self, number: int, plan: StepPlan, *, draws_here: bool) -> pb.RankMessage:
        block_ids = written_blocks(plan, self._block_size)
        return pb.RankMessage(
            step=pb.RankStep(
                number=number,
                plan=plan_to_wire(plan, draws_here=draws_here),
                block_ids=block_ids.astype(_INT32, copy=False).tobytes(),
                generations=self._generations[block_ids].astype(_UINT64, copy=False).tobytes(),
            )
        )

    def _on_result(self, message: pb.RankStepResult) -> None:
        with self._lock:
            result = self._owed.pop(message.number, None)
        if result is None:
            raise ConnectionError(f"a result came for step {message.number}, which is not awaited")
        self._group.completed_steps = message.number
        with contextlib.suppress(InvalidStateError):  # Lost in between.
            result.set_result(result_from_wire(message))

    def _fail_owed(self, lost: Future[None]) -> None:
        with self._lock:
            owed, self._owed = self._owed, {}
        for result in owed.values():
            with contextlib.suppress(InvalidStateError):
                result.set_exception(lost.exception())


def written_blocks(plan: StepPlan, block_size: int) -> BlockIds:
    """Ids of the blocks that a step writes to (int32 [n]).

    Only these may have been given to somebody else since a rank last heard of them in a way that
    matters: until it writes, what it holds there is still what the old generation says.
    """
    written = [
        part.block_table[part.start // block_size : -(-part.end // block_size)]
        for part in plan.slices
    ]
    copied = np.array([copy.destination for copy in plan.copies], np.int32)
    return np.concatenate([*written, copied])


def _counts_tokens(plan: StepPlan) -> bool:
    """Whether drawing from some slice depends on the tokens before."""
    return any(part.samples and part.samples[0].params.penalized for part in plan.slices)
