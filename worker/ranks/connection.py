"""One connection between two ranks: messages both ways, questions with answers, and its end.

Plain blocking sockets, because every step of the engine passes here: whoever sends does it on its
own thread, and one thread reads. The end comes once, with a reason: the peer closed, said nothing
for too long, or sent what makes no sense.
Does not cover: who the peer is (``worker.ranks.handshake``), what messages mean.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future

from google.protobuf.message import DecodeError

from core.errors import CrossdockError, Incompatible, InternalError
from crossdock.v1 import rank_pb2 as pb
from worker.ranks.framing import FrameBuffer, pack_frame
from worker.ranks.tls_connection import RankSocket

Answer = Future[pb.RankMessage]

_RECEIVE_BYTES = 256 << 10


def pack_message(message: pb.RankMessage) -> bytes:
    """As it travels."""
    return pack_frame(message.SerializeToString())


_PING = pack_message(pb.RankMessage(ping=pb.RankPing()))


class RankConnection:
    """``silence_s``: the peer is given up when it has said nothing for so long.

    ``name``: of the peer, for errors and threads.
    """

    def __init__(self, connection: RankSocket, name: str, silence_s: float) -> None:
        self.name = name
        self._socket = connection
        self._silence_s = silence_s
        self._sending = threading.Lock()
        self._ended: BaseException | None = None
        self._numbers = itertools.count(1)
        # Guards the end and the answers that are awaited.
        self._lock = threading.Lock()
        self._awaited: dict[int, Answer] = {}
        connection.setblocking(True)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.limit_silence(silence_s)

    def limit_silence(self, silence_s: float) -> None:
        """Another limit. On the reading thread: it holds for what is read next."""
        self._silence_s = silence_s
        # The kernel's own timeout: Python's would make every call two.
        limit = struct.pack("@ll", *divmod(round(silence_s * 1e6), 1_000_000))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)

    def start(
        self,
        on_message: Callable[[pb.RankMessage], None],
        on_end: Callable[[BaseException], None],
    ) -> None:
        """Starts reading. Both are called on the reading thread: they must not block.

        ``on_message`` gets what is not an answer; an exception of it ends the connection.
        """
        threading.Thread(
            target=self._read, args=(on_message, on_end), name=f"rank-read-{self.name}", daemon=True
        ).start()

    def send(self, message: pb.RankMessage) -> None:
        """Blocks while the peer takes nothing, until it is given up; then ``ConnectionError``."""
        self.send_packed(pack_message(message))

    def send_packed(self, frame: bytes) -> None:
        """The same, for a message that several peers get."""
        with self._sending:
            if self._ended is not None:
                raise ConnectionError(str(self._ended))
            self._socket.sendall(frame)

    def ask(self, message: pb.RankMessage) -> Answer:
        """Sends it under a number of its own. The future gets the answer, or why there is none:
        ``Incompatible`` or ``InternalError`` if the peer refused, else ``ConnectionError``.

        Raises ``InternalError`` if the message is too large.
        """
        message.request = next(self._numbers)
        frame = pack_message(message)
        answer = Answer()
        # Whoever waits may give up; the answer still comes.
        answer.set_running_or_notify_cancel()
        with self._lock:
            if self._ended is not None:
                answer.set_exception(ConnectionError(str(self._ended)))
                return answer
            self._awaited[message.request] = answer
        # If it fails, the connection ends, and with it all that was asked.
        with contextlib.suppress(OSError):
            self.send_packed(frame)
        return answer

    def answer(self, request: pb.RankMessage, message: pb.RankMessage) -> None:
        """Without effect once the connection has ended. One that is too large is a refusal."""
        message.answer = request.request
        try:
            frame = pack_message(message)
        except InternalError as error:
            self.refuse(request, error)
            return
        with contextlib.suppress(OSError):
            self.send_packed(frame)

    def refuse(self, request: pb.RankMessage, error: BaseException) -> None:
        """Answers with what kept us from it."""
        known = error if isinstance(error, CrossdockError) else None
        refusal = pb.RankRefusal(
            incompatible=isinstance(error, Incompatible),
            reason=known.reason if known else "RANK_FAILED",
            detail=known.message if known else f"{type(error).__name__}: {error}",
        )
        self.answer(request, pb.RankMessage(refusal=refusal))

    def ping(self) -> None:
        """Asks for a sign of life; never blocks. Left out while something else is being sent or
        the peer takes nothing: then it is its silence that counts."""
        if not self._sending.acquire(blocking=False):
            return
        try:
            if self._ended is None and self._takes_more():
                self._socket.sendall(_PING)
        except OSError:
            self.close()
        finally:
            self._sending.release()

    def close(self) -> None:
        """Ends the connection, also under those who send; ``on_end`` follows."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _takes_more(self) -> bool:
        waiting = select.poll()
        waiting.register(self._socket, select.POLLOUT)
        return bool(waiting.poll(0))

    def _read(
        self,
        on_message: Callable[[pb.RankMessage], None],
        on_end: Callable[[BaseException], None],
    ) -> None:
        try:
            self._read_until_end(on_message)
        except BaseException as error:
            self._end(error)
            on_end(error)

    def _read_until_end(self, on_message: Callable[[pb.RankMessage], None]) -> None:
        frames = FrameBuffer()
        while True:
            for frame in frames.feed(self._receive()):
                message = self._parse(frame)
                if message.answer:
                    self._resolve(message)
                else:
                    on_message(message)

    def _receive(self) -> bytes:
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            raise TimeoutError(f"{self.name} said nothing for {self._silence_s:g} s") from None
        except OSError as error:
            raise ConnectionError(f"the connection to {self.name} broke: {error}") from error
        if not data:
            raise ConnectionError(f"the connection to {self.name} ended")
        return data

    def _parse(self, frame: bytes) -> pb.RankMessage:
        try:
            return pb.RankMessage.FromString(frame)
        except DecodeError:
            raise ConnectionError(f"{self.name} sent what is no message") from None

    def _resolve(self, message: pb.RankMessage) -> None:
        with self._lock:
            answer = self._awaited.pop(message.answer, None)
        if answer is None:
            raise ConnectionError(f"{self.name} answered what was not asked")
        if message.WhichOneof("message") == "refusal":
            answer.set_exception(_refused(message.refusal))
        else:
            answer.set_result(message)

    def _end(self, error: BaseException) -> None:
        self.close()
        # Behind whoever is still sending, so that the descriptor is not closed under it.
        with self._sending, self._lock:
            self._ended = error
            awaited, self._awaited = self._awaited, {}
            self._socket.close()
        for answer in awaited.values():
            answer.set_exception(ConnectionError(str(error)))


def _refused(refusal: pb.RankRefusal) -> CrossdockError:
    kind = Incompatible if refusal.incompatible else InternalError
    return kind(refusal.detail, reason=refusal.reason)
