"""The leading rank's hold on the other ranks of its replica.

Covers: waiting until all have joined and are ready, their rendezvous, pings, sending to them, and
the end: a rank whose connection ends, that is silent for 10 s (60 s while it loads) or that says it
crashed is lost, and with it the replica, once; all connections end in the same moment, so the other
ranks end too.
Does not cover: steps (``worker.ranks.executor``), blocks (``worker.ranks.remote_sender`` and
``remote_receiver``).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError

from core.errors import Incompatible, Unavailable
from core.worker_settings import LeaderAddress, WorkerSettings
from crossdock.v1 import rank_pb2 as pb
from worker.ranks.connection import Answer, RankConnection, pack_message
from worker.ranks.handshake import TOKEN_BYTES
from worker.ranks.key_values import LeaderKeyValues
from worker.ranks.listener import RankListener
from worker.ranks.membership import Membership
from worker.ranks.tls_connection import RankSocket

_log = logging.getLogger(__name__)
PING_S = 2.0
_SILENCE_S = 10.0
# While a rank loads: many processes that import torch on few cores starve each other.
_LOADING_SILENCE_S = 60.0
_RENDEZVOUS_S = 120.0


class RankGroup:
    """Made before anything else of the leading rank: the others are told its ``address``.

    ``completed_steps``: how many steps have their result; written by the executor.
    ``joined`` and ``ready``: all other ranks have connected, have loaded their part of the model.
    ``lost`` gets an exception, at most once: the replica can't go on. All three are set on threads
    of their own.
    """

    def __init__(self, settings: WorkerSettings, silence_s: float = _SILENCE_S) -> None:
        self.joined: Future[None] = Future()
        self.ready: Future[None] = Future()
        self.lost: Future[None] = Future()
        self.completed_steps = 0
        self.key_values = LeaderKeyValues(_RENDEZVOUS_S)
        self._silence_s = silence_s
        self._on_result: Callable[[pb.RankStepResult], None] | None = None
        self._check: Callable[[float], None] | None = None
        self._lock = threading.Lock()
        self._members = Membership(settings)
        self._ranks: dict[int, RankConnection] = {}
        # Also those of which nobody knows yet which rank they are.
        self._connections: set[RankConnection] = set()
        self._ended = threading.Event()
        token = secrets.token_bytes(TOKEN_BYTES)
        self._listener = RankListener(settings.host, token, self._admitted, settings.tls)
        self.address = LeaderAddress(settings.host, self._listener.port, token)
        self._pinger = threading.Thread(target=self._ping, name="rank-ping", daemon=True)
        self._pinger.start()

    @property
    def ranks(self) -> list[int]:
        """Those that have joined."""
        with self._lock:
            return sorted(self._ranks)

    def wait(self, stage: Future[None], limit_s: float) -> None:
        """Waits for `joined` or `ready`. Raises ``Unavailable``, naming who is missing, or what
        the replica was lost by."""
        try:
            stage.result(limit_s)
        except TimeoutError:
            with self._lock:
                missing = self._members.missing
            late = f"ranks {missing} did not join" if missing else "not all ranks got ready"
            raise Unavailable(f"{late} within {limit_s:g} s", reason="RANKS_MISSING") from None

    def check_models(self, model_hash: int) -> None:
        """Raises ``Incompatible`` if a rank has loaded another model than the leader."""
        with self._lock:
            self._members.check_models(model_hash)

    def deliver_results(self, on_result: Callable[[pb.RankStepResult], None]) -> None:
        """``on_result`` gets what ranks drew, on the thread that reads from them."""
        self._on_result = on_result

    def check_often(self, check: Callable[[float], None]) -> None:
        """``check`` gets the monotonic time in seconds with each round of pings, on a thread of
        the group. It must not block."""
        self._check = check

    def send(self, rank: int, message: pb.RankMessage) -> None:
        """Raises ``ConnectionError`` if the rank is lost."""
        self._ranks[rank].send(message)

    def send_to(self, ranks: Iterable[int], message: pb.RankMessage) -> None:
        """The same to several; raises as `send`."""
        frame = pack_message(message)
        for rank in ranks:
            self._ranks[rank].send_packed(frame)

    def ask(self, rank: int, message: pb.RankMessage) -> Answer:
        return self._ranks[rank].ask(message)

    def lose(self, rank: int, why: str) -> None:
        """The replica can't go on, by the fault of ``rank``. Without effect after its end."""
        self.fail(_lost(rank, why))

    def fail(self, error: BaseException) -> None:
        """The replica can't go on, for this reason. Without effect after its end."""
        if not self._begin_end():
            return
        _log.error("the replica is lost: %s", error)
        # The reason first: what fails because of it should find it.
        for stage in (self.lost, self.joined, self.ready):
            with contextlib.suppress(InvalidStateError):  # Reached before.
                stage.set_exception(error)
        self.key_values.close(error)
        self._disconnect()

    def close(self) -> None:
        """Ends in order: the other ranks are told that nobody failed."""
        if not self._begin_end():
            return
        for rank in self.ranks:
            # One that is gone keeps nobody else from hearing it.
            with contextlib.suppress(OSError):
                self.send(rank, pb.RankMessage(stop=pb.StopRank()))
        self._disconnect()

    def _begin_end(self) -> bool:
        """Whether this is the first end, and the one that counts."""
        with self._lock:
            first = not self._ended.is_set()
            self._ended.set()
        return first

    def _disconnect(self) -> None:
        self._listener.close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.close()

    def _ping(self) -> None:
        while not self._ended.wait(PING_S):
            for connection in [self._ranks[rank] for rank in self.ranks]:
                connection.ping()
            if self._check is not None:
                self._check(time.monotonic())

    # On the threads that read

    def _admitted(self, connection: RankSocket) -> None:
        """A connection of somebody who knows the token; its first message says which rank it is."""
        peer = _Peer(RankConnection(connection, "a new rank", _LOADING_SILENCE_S))
        with self._lock:
            self._connections.add(peer.connection)
            late = self._ended.is_set()
        peer.connection.start(
            functools.partial(self._on_message, peer), functools.partial(self._on_end, peer)
        )
        if late:
            peer.connection.close()

    def _on_message(self, sender: _Peer, message: pb.RankMessage) -> None:
        kind = message.WhichOneof("message")
        if (kind == "join") != (sender.rank is None):
            raise ConnectionError(f"{sender.connection.name} sent {kind} out of turn")
        match kind:
            case "step_result" if self._on_result is not None:
                self._on_result(message.step_result)
            case "pong":
                pass
            case "set_value":
                self.key_values.set(message.set_value.key, message.set_value.value)
            case "get_value":
                self._get_value(sender.connection, message)
            case "join":
                self._join(sender, message)
            case "ready":
                self._note_ready(sender, message.ready)
            case "crashed":
                raise ConnectionError(f"it crashed: {message.crashed.detail}")
            case _:
                raise ConnectionError(f"{sender.connection.name} sent {kind}, which no rank sends")

    def _on_end(self, sender: _Peer, error: BaseException) -> None:
        with self._lock:
            self._connections.discard(sender.connection)
        if sender.rank is not None:
            self.lose(sender.rank, str(error))

    def _join(self, sender: _Peer, message: pb.RankMessage) -> None:
        rank = message.join.rank
        try:
            with self._lock:
                if self._ended.is_set():
                    raise ConnectionError("the replica has ended")
                self._members.join(message.join)
                self._ranks[rank] = sender.connection
                complete = self._members.all_joined
        except Incompatible as error:
            sender.connection.refuse(message, error)
            raise
        sender.rank = rank
        sender.connection.name = f"rank {rank}"
        sender.connection.answer(message, pb.RankMessage(done=pb.RankDone()))
        if complete:
            self._listener.close()
            _reach(self.joined)

    def _note_ready(self, sender: _Peer, message: pb.RankReady) -> None:
        assert sender.rank is not None
        sender.connection.limit_silence(self._silence_s)
        with self._lock:
            self._members.ready(sender.rank, message.model_hash)
            complete = self._members.all_ready
        if complete:
            _reach(self.ready)

    def _get_value(self, connection: RankConnection, message: pb.RankMessage) -> None:
        def answer(found: Future[bytes]) -> None:
            error = found.exception()
            if error is not None:
                connection.refuse(message, error)
                return
            value = pb.FoundValue(value=found.result())
            connection.answer(message, pb.RankMessage(found_value=value))

        found = self.key_values.when_set(message.get_value.key)
        if message.get_value.now and not found.done():
            missing = pb.FoundValue(missing=True)
            connection.answer(message, pb.RankMessage(found_value=missing))
            return
        found.add_done_callback(answer)


class _Peer:
    """A connection, and the rank that it turned out to be."""

    def __init__(self, connection: RankConnection) -> None:
        self.connection = connection
        self.rank: int | None = None


def _reach(stage: Future[None]) -> None:
    with contextlib.suppress(InvalidStateError):  # Lost in between.
        stage.set_result(None)


def _lost(rank: int, why: str) -> Unavailable:
    return Unavailable(
        f"rank {rank} is lost: {why}", reason="RANK_LOST", metadata={"rank": str(rank)}
    )
