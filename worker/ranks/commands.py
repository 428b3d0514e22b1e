"""What a rank does for the handoff when its leader asks: offers, checksums, edges and copies.

The other end of ``worker.ranks.remote_sender`` and ``worker.ranks.remote_receiver``. Everything
runs on the rank's event loop and begins in the order in which the leader asked: one turn of the
loop later, as tasks do, also what needs none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import numpy as np

from core.errors import InternalError
from core.shards import ParallelShape
from crossdock.v1 import rank_pb2 as pb
from kv_transfer.rank_ports import RankCopied, RankReceiver, RankSender
from wire.rank_copies import copies_from_wire
from worker.ranks.connection import RankConnection
from worker.ranks.copied_wire import copied_to_wire, edge_to_wire
from worker.ranks.finished_steps import FinishedSteps

_log = logging.getLogger(__name__)
_INT32 = np.dtype("<i4")

Argument = TypeVar("Argument")
_Work = Callable[[Argument], Coroutine[Any, Any, pb.RankMessage]]


class RankCommands:
    """``sender`` exists on ranks of P, ``receiver`` on those of D."""

    def __init__(
        self,
        leader: RankConnection,
        finished: FinishedSteps,
        sender: RankSender | None,
        receiver: RankReceiver | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._leader = leader
        self._finished = finished
        self._sender = sender
        self._receiver = receiver
        # What is under way for each stream into D: opening its edges, and copies.
        self._busy: dict[str, set[asyncio.Task[None]]] = {}
        self._aborted: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._ending = False

    def handle(self, message: pb.RankMessage) -> bool:
        """Does what the leader asks, in the background; false if it is nothing of this.

        Without effect after `abort_all`.
        """
        if self._ending:
            return True
        match message.WhichOneof("message"):
            case "make_offer":
                self._start(message, self._make_offer, message.make_offer.stream)
            case "describe":
                self._start(message, self._describe, message.describe)
            case "withdraw":
                self._loop.call_soon(self._need_sender().withdraw, message.withdraw.stream)
            case "open":
                self._start_for(message.open.stream, message, self._open, message.open)
            case "copy":
                self._start_for(message.copy.stream, message, self._copy, message.copy)
            case "abort":
                self._loop.call_soon(self._abort, message.abort.stream)
            case "close":
                task = self._start(message, self._close, message.close.stream)
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
            case _:
                return False
        return True

    def abort_all(self) -> None:
        """The leader is gone: copies under way end at once, and none begins."""
        self._ending = True
        for stream in self._busy:
            # After what was asked for in the same turn, which would open its edges otherwise.
            self._loop.call_soon(self._abort, stream)

    async def end(self) -> None:
        """Closes every edge and ends all that is under way. Call after `abort_all`."""
        # Who closes edges has to see it through: nobody else knows of them any more.
        for task in self._tasks - self._closing:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for stream in self._busy:
            await self._need_receiver().close(stream)

    def _start_for(
        self, stream: str, request: pb.RankMessage, work: _Work[Argument], argument: Argument
    ) -> None:
        busy = self._busy.setdefault(stream, set())
        task = self._start(request, work, argument)
        busy.add(task)
        task.add_done_callback(busy.discard)

    def _start(
        self, request: pb.RankMessage, work: _Work[Argument], argument: Argument
    ) -> asyncio.Task[None]:
        task = asyncio.create_task(self._answer(request, work, argument))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _answer(
        self, request: pb.RankMessage, work: _Work[Argument], argument: Argument
    ) -> None:
        try:
            answer = await work(argument)
        except Exception as error:
            _log.warning("%s failed", request.WhichOneof("message"), exc_info=True)
            self._leader.refuse(request, error)
        else:
            self._leader.answer(request, answer)

    async def _make_offer(self, stream: str) -> pb.RankMessage:
        return pb.RankMessage(offer=await self._need_sender().offer(stream))

    async def _describe(self, message: pb.DescribeBlocks) -> pb.RankMessage:
        await self._finished.wait_for(message.after_step)
        shape = ParallelShape(message.tensor_parallel_size, message.pipeline_parallel_size)
        block_ids = np.frombuffer(message.block_ids, _INT32).tolist()
        rows = await self._need_sender().describe(message.stream, shape, block_ids)
        checksums = pb.BlockChecksums(
            edges=len(rows[0]) if rows else 0, checksums=[value for row in rows for value in row]
        )
        return pb.RankMessage(checksums=checksums)

    async def _open(self, message: pb.OpenEdges) -> pb.RankMessage:
        chosen = await self._need_receiver().open(message.stream, message.hello)
        return pb.RankMessage(opened=pb.OpenedEdges(edges=[edge_to_wire(edge) for edge in chosen]))

    async def _copy(self, message: pb.CopyBlocks) -> pb.RankMessage:
        copies = copies_from_wire(message)
        await self._finished.wait_for(message.after_step)
        if message.stream in self._aborted:
            copied = RankCopied((), tuple(copy.index for copy in copies))
        else:
            copied = await self._need_receiver().copy(message.stream, copies)
        return pb.RankMessage(copied=copied_to_wire(copied))

    def _abort(self, stream: str) -> None:
        self._aborted.add(stream)
        self._need_receiver().abort(stream)

    async def _close(self, stream: str) -> pb.RankMessage:
        # What still waits for a step must not begin once the stream is forgotten.
        await asyncio.gather(*self._busy.get(stream, ()), return_exceptions=True)
        self._busy.pop(stream, None)
        await self._need_receiver().close(stream)
        self._aborted.discard(stream)
        return pb.RankMessage(done=pb.RankDone())

    def _need_sender(self) -> RankSender:
        if self._sender is None:
            raise InternalError("only ranks of prefill workers offer blocks", reason="WRONG_ROLE")
        return self._sender

    def _need_receiver(self) -> RankReceiver:
        if self._receiver is None:
            raise InternalError("only ranks of decode workers copy blocks", reason="WRONG_ROLE")
        return self._receiver
