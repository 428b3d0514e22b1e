"""A rank that is led: joins its replica, computes what the leader sends, serves what it asks.

Covers: the life of a rank from joining to its end, and who handles which message. Its end is told
once: in order if the leader said so, else by the error that ended the connection or the engine.
Does not cover: loading the model and who starts the process (``cluster.rank_host``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from core.block_pool import Generations
from core.errors import Unavailable
from core.step import StepPlan, StepResult
from core.worker_settings import RankSettings
from crossdock.v1 import rank_pb2 as pb
from kv_transfer.rank_ports import RankReceiver, RankSender
from worker.daemon_call import call_in_daemon
from worker.ranks.commands import RankCommands
from worker.ranks.connection import RankConnection
from worker.ranks.engine_thread import EngineThread
from worker.ranks.finished_steps import FinishedSteps
from worker.ranks.intervals import StepIntervals
from worker.ranks.key_values import RemoteKeyValues
from worker.ranks.membership import join_message
from worker.ranks.own_stats import own_stats
from worker.ranks.tls_connection import RankSocket

_log = logging.getLogger(__name__)
# The leader pings every 2 s. It is given longer than it gives us: a leader that hung for a while,
# or starves while it loads, should find its ranks.
_SILENCE_S = 60.0
_RENDEZVOUS_S = 120.0
# How long the engine may take for its last steps, and how long after a failure: it hangs then,
# more often than not.
_STEP_LIMIT_S = 5.0
_FAILED_STEP_LIMIT_S = 0.5
_PONG = pb.RankMessage(pong=pb.RankPong())


class Follower:
    """``ended`` is done when the rank's life is over: by an exception, unless the leader stopped
    the replica in order. ``finished``: the steps that this rank has computed. Made on the event
    loop that its commands run on."""

    def __init__(self, settings: RankSettings, connection: RankSocket) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._leader = RankConnection(connection, "the leading rank", _SILENCE_S)
        self.key_values = RemoteKeyValues(self._leader, _RENDEZVOUS_S)
        self.finished = FinishedSteps()
        self._intervals = StepIntervals()
        self._engine: EngineThread | None = None
        self._commands: RankCommands | None = None

    async def join(self) -> None:
        """Raises ``Incompatible`` if the leader refuses this rank."""
        self._leader.start(self._on_message, self._on_end)
        join = join_message(self._settings.worker, self._settings.rank)
        await asyncio.wrap_future(self._leader.ask(pb.RankMessage(join=join)))

    def serve(
        self,
        execute: Callable[[StepPlan], StepResult | None],
        generations: Generations,
        model_hash: int,
        sender: RankSender | None,
        receiver: RankReceiver | None,
    ) -> None:
        """From now on the leader's steps are computed by ``execute``; the leader is told so."""
        self._commands = RankCommands(self._leader, self.finished, sender, receiver)
        self._engine = EngineThread(
            self._intervals.timed(execute),
            generations,
            send_result=lambda result: self._leader.send(pb.RankMessage(step_result=result)),
            finished=self.finished.note,
            crashed=self._on_crash,
        )
        self._leader.send(pb.RankMessage(ready=pb.RankReady(model_hash=model_hash)))

    def crash(self, error: BaseException) -> None:
        """Tells the leader that this rank can't go on, and ends."""
        with contextlib.suppress(OSError):
            detail = f"{type(error).__name__}: {error}"
            self._leader.send(pb.RankMessage(crashed=pb.RankCrashed(detail=detail)))
        self._end(error)

    async def stop(self) -> bool:
        """Ends everything of this rank. False if its engine hangs: then the process has to end
        before memory that it works on is given up."""
        self._end(None)
        if self._commands is not None:
            await self._commands.end()
        engine = self._engine
        if engine is None:
            return True
        failed = self.ended.exception() is not None
        limit_s = _FAILED_STEP_LIMIT_S if failed else _STEP_LIMIT_S
        return await call_in_daemon(lambda: engine.stop(limit_s), "rank-stop")

    def _end(self, error: BaseException | None) -> None:
        """On the event loop. Only the first end counts."""
        if self.ended.done():
            return
        if self._commands is not None:
            self._commands.abort_all()
        self._leader.close()
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)

    # On other threads

    def _on_message(self, message: pb.RankMessage) -> None:
        match message.WhichOneof("message"):
            case "step" if self._engine is not None:
                self._engine.put(message.step)
            case "ping":
                self._leader.send(_PONG)
            case "ask_stats":
                stats = own_stats(self._settings, self._intervals)
                self._leader.answer(message, pb.RankMessage(stats=stats))
            case "stop":
                self._tell(self._end, None)
            case kind if self._commands is not None:
                self._tell(self._handle, message)
            case kind:
                raise ConnectionError(f"the leading rank sent {kind} before this rank was ready")

    def _handle(self, message: pb.RankMessage) -> None:
        assert self._commands is not None
        if not self._commands.handle(message):
            kind = message.WhichOneof("message")
            self._end(ConnectionError(f"the leading rank sent {kind}, which no leader sends"))

    def _on_end(self, error: BaseException) -> None:
        lost = Unavailable(
            f"rank {self._settings.rank} of {self._settings.worker.worker} lost its leading "
            f"rank: {error}",
            reason="LEADER_LOST",
        )
        self._tell(self._end, lost)

    def _on_crash(self, error: BaseException) -> None:
        _log.critical("rank %d crashed", self._settings.rank, exc_info=error)
        self._tell(self.crash, error)

    def _tell(self, function: Callable[..., None], *arguments: object) -> None:
        # The loop may be closed already when the process ends.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)
