"""What both ends of an NCCL edge have: the communicator, its stream, the connection, the fence.

One thread owns an edge and makes all of its NCCL calls. Any other may fence it: from then on no
message is sent or heard and nothing is launched, the communicator is aborted by a thread of its own
(an abort can hang), and staging is kept until the abort has ended and the stream is empty.
A communicator that is still being made can't be aborted: cupy makes them blocking, and NCCL's abort
would free what the blocked call still uses. It is aborted as soon as that call returns, by the
thread that is in it; nobody waits for that thread.
Does not cover: the order of things (``nccl_receiver_rules``, ``nccl_sender_rules``).
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch

from kernels.block_region import BlockRegion
from kv_transfer import nccl_events as ev
from kv_transfer import nccl_wire as wire
from kv_transfer.device import Device, Event
from kv_transfer.iovecs import over
from kv_transfer.nccl_communicator import UINT8, Communicator, Nccl
from kv_transfer.socket_io import receive, send, wait_readable, wake
from kv_transfer.staging import FAILURES, Staging
from kv_transfer.watchdog import Watchdog

_log = logging.getLogger(__name__)
# The rest of a message that has begun to arrive, or to be sent.
_MESSAGE_LIMIT_S = 5.0
_POLL_S = 20e-6
_POLLS_PER_CHECK = 64


class Rules(Protocol):
    """Of one side."""

    @property
    def deadline(self) -> float | None: ...

    def handle(self, event: ev.Event, now: float) -> list[ev.Command]: ...


def drive(
    rules: Rules,
    event: ev.Event,
    carry_out: Callable[[ev.Command], ev.Event | None],
    watchdog: Watchdog,
) -> None:
    """Gives an event to the rules, carries out what they say, and so on with what comes of it."""
    events = deque([event])
    while events:
        commands = rules.handle(events.popleft(), time.monotonic())
        watchdog.set(rules.deadline)
        try:
            events.extend(event for event in map(carry_out, commands) if event is not None)
        except FAILURES as error:
            events.append(ev.Failed(str(error)))


class Fenced(ConnectionError):
    """The edge was fenced: by a deadline, an error, or because its owner gave it up."""


class NcclEdge:
    """One end. ``on_fence`` is called once, from the thread that fences."""

    def __init__(
        self,
        connection: socket.socket,
        device: Device,
        nccl: Nccl,
        rank: int,
        on_fence: Callable[[], None],
    ) -> None:
        self._connection = connection
        self.device = device
        self._nccl = nccl
        self._rank = rank
        self._on_fence = on_fence
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._communicator: Communicator | None = None
        self._aborting: threading.Thread | None = None
        self.fenced: str | None = None
        self.staging: Staging | None = None
        device.use()
        self.stream = device.new_stream()

    def new_unique_id(self) -> bytes:
        return self._nccl.new_unique_id()

    def prepare(self, pool: torch.Tensor, region: BlockRegion) -> None:
        self.staging = Staging(self.device, self.stream, pool, region)

    def join(self, unique_id: bytes) -> None:
        """Blocks until the other side joins. Raises `Fenced` if the edge was fenced meanwhile."""
        communicator = self._nccl.join(unique_id, self._rank)
        with self._lock:
            if self.fenced is None:
                self._communicator = communicator
                return
        communicator.abort()
        raise self._error()

    def live_staging(self) -> Staging:
        staging = self.staging
        if staging is None or self.fenced is not None:
            raise self._error()
        return staging

    def send(self, rows: int) -> Event:
        """Enqueues so many rows of staging; over when they have left."""
        address, count = self._rows(rows)
        to, stream = 1 - self._rank, self.device.handle(self.stream)
        self._live().send(address, count, UINT8, to, stream)
        return self.device.record(self.stream)

    def receive(self, rows: int) -> Event:
        """Enqueues the receive of so many rows into staging."""
        address, count = self._rows(rows)
        source, stream = 1 - self._rank, self.device.handle(self.stream)
        self._live().recv(address, count, UINT8, source, stream)
        return self.device.record(self.stream)

    def wait(self, event: Event) -> None:
        """Raises `Fenced` once the edge is fenced, or what NCCL or the GPU reports."""
        polls = 0
        while not self.device.is_over(event):
            if self.fenced is not None:
                raise self._error()
            polls += 1
            if polls % _POLLS_PER_CHECK == 0:
                self._check()
            time.sleep(_POLL_S)

    def say(self, message: ev.FromDecode | ev.FromPrefill) -> None:
        with self._send_lock:
            deadline = time.monotonic() + _MESSAGE_LIMIT_S
            send(self._connection, over(wire.pack(message)), deadline)

    def hear(self) -> ev.FromDecode | ev.FromPrefill:
        """The next message; waits without limit. Raises ``OSError`` when the edge is fenced."""
        wait_readable(self._connection)
        deadline = time.monotonic() + _MESSAGE_LIMIT_S
        header = receive(self._connection, wire.HEADER_BYTES, deadline)
        return wire.unpack(header, receive(self._connection, wire.body_bytes(header), deadline))

    def destroy(self) -> None:
        """Gives up the communicator, of which nothing is under way, and staging."""
        with self._lock:
            communicator, self._communicator = self._communicator, None
        if communicator is not None:
            communicator.destroy()
        self.staging = None

    def fence(self, reason: str) -> None:
        """From any thread; the first reason stays."""
        with self._lock:
            if self.fenced is not None:
                return
            self.fenced = reason
            communicator, self._communicator = self._communicator, None
            if communicator is not None:
                self._aborting = threading.Thread(
                    target=self._abort, args=(communicator,), name="nccl-abort", daemon=True
                )
                self._aborting.start()
        wake(self._connection)
        self._on_fence()

    def await_abort(self) -> None:
        """Returns when nothing of a fenced edge runs any more."""
        if self._aborting is not None:
            self._aborting.join()

    def _abort(self, communicator: Communicator) -> None:
        try:
            self.device.use()
            communicator.abort()
            self.device.synchronize(self.stream)
        except Exception as error:
            # NCCL and CUDA have errors of many kinds; the edge is given up whatever it was.
            _log.warning("aborting a communicator failed: %s", error)
        self.staging = None

    def _check(self) -> None:
        with self._lock:
            if self._communicator is not None:
                self._communicator.check_async_error()

    def _live(self) -> Communicator:
        with self._lock:
            if self._communicator is None:
                raise self._error()
            return self._communicator

    def _rows(self, rows: int) -> tuple[int, int]:
        """Address and bytes of the first rows of staging."""
        part = self.live_staging().rows[:rows]
        return part.data_ptr(), part.numel()

    def _error(self) -> Fenced:
        return Fenced(self.fenced or "the communicator is closed")
