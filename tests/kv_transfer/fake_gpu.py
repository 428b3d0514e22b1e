"""A GPU and NCCL that are not there: streams are queues in this process, NCCL copies between them.

What matters of the real ones is kept: work on a stream is over in its order; sends and receives
match by order; two ranks connect at their first send and receive, each blocked in the call until
the other is in its own; an abort ends what is pending. Kernels run at once, on the CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from kv_transfer.nccl_communicator import UINT8, WORLD

_PATIENCE_S = 20.0


class FakeStream:
    """``work``: functions that say whether they are over, oldest first."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.work: list[Callable[[], bool]] = []
        self.over = 0
        self._lock = threading.Lock()

    def advance(self, until: int) -> bool:
        """Runs what can run of so much work; whether all of that is over."""
        with self._lock:
            while self.over < until and self.work[self.over]():
                self.over += 1
            return self.over >= until


@dataclass(frozen=True)
class FakeEvent:
    stream: FakeStream
    after: int


class FakeDevice:
    """``log``: what was called, in order. ``compute``: the stream on which the engine computes."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.streams: dict[int, FakeStream] = {}
        self._handles = itertools.count(1)
        self.compute = self.new_stream()

    def use(self) -> None:
        pass

    def new_stream(self) -> FakeStream:
        stream = FakeStream(next(self._handles))
        self.streams[stream.handle] = stream
        return stream

    def handle(self, stream: FakeStream) -> int:
        return stream.handle

    def on(self, stream: FakeStream) -> AbstractContextManager[object]:
        return contextlib.nullcontext()

    def record(self, stream: FakeStream) -> FakeEvent:
        return FakeEvent(stream, len(stream.work))

    def record_compute(self) -> FakeEvent:
        return self.record(self.compute)

    def wait(self, stream: FakeStream, event: FakeEvent) -> None:
        self.log.append("transfer waits for compute" if event.stream is self.compute else "wait")
        stream.work.append(lambda: self.is_over(event))

    def compute_waits(self, event: FakeEvent) -> None:
        self.log.append("compute waits for transfer")
        self.compute.work.append(lambda: self.is_over(event))

    def is_over(self, event: FakeEvent) -> bool:
        return event.stream.over >= event.after or event.stream.advance(event.after)

    def synchronize(self, stream: FakeStream) -> None:
        while not stream.advance(len(stream.work)):
            pass

    def empty(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        self.log.append("allocate")
        return torch.empty(*shape, dtype=dtype)


@dataclass
class Wire:
    """What two ranks share. ``stuck``: sends and receives never meet."""

    joined: int = 0
    stuck: bool = False
    aborted: bool = False
    first_calls: int = 0
    sends: list[Transfer] = field(default_factory=list)
    receives: list[Transfer] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def match(self) -> None:
        """Copies what both sides have enqueued, in the order in which they did."""
        pairs = zip(self.sends, self.receives, strict=False)
        for send, receive in pairs:
            if send.is_ready and receive.is_ready and not (send.is_over or self.stuck):
                assert send.count == receive.count, "NCCL would hang or write past the end"
                ctypes.memmove(receive.address, send.address, send.count)
                send.is_over = receive.is_over = True


@dataclass
class Transfer:
    address: int
    count: int
    is_ready: bool = False
    is_over: bool = False


class FakeNccl:
    """The library in one process, or in two that meet in ``wires``."""

    def __init__(self, device: FakeDevice, wires: dict[bytes, Wire]) -> None:
        self.device = device
        self.wires = wires
        self.communicators: list[StubCommunicator] = []
        self.refuse_to_join = False
        self.stuck = False

    def new_unique_id(self) -> bytes:
        unique_id = os.urandom(128)
        self.wires[unique_id] = Wire(stuck=self.stuck)
        return unique_id

    def join(self, unique_id: bytes, rank: int) -> StubCommunicator:
        wire = self.wires[unique_id]
        with wire.changed:
            wire.joined += 1
            wire.changed.notify_all()
            wire.changed.wait_for(lambda: wire.joined == WORLD, _PATIENCE_S)
        communicator = StubCommunicator(wire, rank, self.device)
        self.communicators.append(communicator)
        return communicator


class StubCommunicator:
    """In the place of `cupy.cuda.nccl.NcclCommunicator`, with its parameters."""

    def __init__(self, wire: Wire, rank: int, device: FakeDevice) -> None:
        self._wire = wire
        self._rank = rank
        self._device = device
        self._has_called = False
        self.aborted_by: str | None = None
        self.is_destroyed = False

    def send(self, sendbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        self._device.log.append("send")
        self._enqueue(self._wire.sends, Transfer(sendbuf, count), datatype, peer, stream)

    def recv(self, recvbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        self._device.log.append("receive")
        self._enqueue(self._wire.receives, Transfer(recvbuf, count), datatype, peer, stream)

    def check_async_error(self) -> None:
        if self._wire.aborted:
            raise RuntimeError("NCCL_ERROR_REMOTE_ERROR: the other rank is gone")

    def abort(self) -> None:
        assert self.aborted_by is None, "aborted twice"
        assert not self.is_destroyed
        self.aborted_by = threading.current_thread().name
        with self._wire.changed:
            self._wire.aborted = True
            self._wire.changed.notify_all()

    def destroy(self) -> None:
        assert self.aborted_by is None
        unmatched = [t for t in self._wire.sends + self._wire.receives if not t.is_over]
        assert not unmatched, "destroyed with something under way"
        self.is_destroyed = True

    def _enqueue(
        self, queue: list[Transfer], transfer: Transfer, datatype: int, peer: int, stream: int
    ) -> None:
        assert datatype == UINT8
        assert peer == 1 - self._rank
        assert self.aborted_by is None
        assert not self.is_destroyed
        self._connect()
        with self._wire.changed:
            queue.append(transfer)
            self._wire.changed.notify_all()
        queued = self._device.streams[stream]
        queued.work.append(lambda: self._advance(transfer))
        # A GPU begins by itself.
        queued.advance(len(queued.work))

    def _connect(self) -> None:
        """As NCCL does at the first call of each rank: both wait for each other on the host."""
        if self._has_called:
            return
        self._has_called = True
        with self._wire.changed:
            self._wire.first_calls += 1
            self._wire.changed.notify_all()
            both = self._wire.changed.wait_for(
                lambda: self._wire.first_calls == WORLD or self._wire.aborted, _PATIENCE_S
            )
        if not both or self._wire.aborted:
            raise RuntimeError("NCCL_ERROR_INTERNAL_ERROR: aborted")

    def _advance(self, transfer: Transfer) -> bool:
        transfer.is_ready = True
        with self._wire.changed:
            self._wire.match()
            return transfer.is_over or self._wire.aborted
