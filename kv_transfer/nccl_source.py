"""D's side of KV blocks over NCCL: receives batches into staging and unpacks them into its pool.

One thread owns the edge; `copy` hands it a job and waits. Writing into the pool and fencing the
edge exclude each other, so a caller whose copy has ended, however it did, finds no late write.
Does not cover: the order of messages (``kv_transfer.nccl_receiver_rules``), P's side
(``kv_transfer.nccl_server``).
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from core.errors import Incompatible
from core.lease_events import PieceCopy
from kernels.checksum_blocks import checksum_blocks
from kernels.pack_blocks import unpack_blocks
from kv_transfer import nccl_events as ev
from kv_transfer.communicator_room import CommunicatorRoom
from kv_transfer.device import DeviceTarget, block_region, unsigned
from kv_transfer.nccl_communicator import DECODE_RANK, Nccl
from kv_transfer.nccl_edge import NcclEdge, drive
from kv_transfer.nccl_receiver_rules import Limits, Phase, ReceiverRules
from kv_transfer.staging import FAILURES, Staging
from kv_transfer.token_listener import TokenAddress, connect_with_token
from kv_transfer.transport import NCCL, CopyResult
from kv_transfer.watchdog import Watchdog

_log = logging.getLogger(__name__)
# For the threads to end; one that is stuck in a library is left behind.
_CLOSE_LIMIT_S = 3.0


class _Job:
    """One copy. ``good``: prompt block indices that landed and were verified."""

    def __init__(self, copies: Sequence[PieceCopy], rows: int) -> None:
        self.pending = deque(copies[i : i + rows] for i in range(0, len(copies), rows))
        self.good: list[int] = []
        self.over = threading.Event()

    def batches(self) -> tuple[ev.Batch, ...]:
        return tuple(
            tuple((item.piece.block_id, item.piece.generation) for item in copies)
            for copies in self.pending
        )


class NcclSource:
    """The pool of one rank of P behind a communicator of two, opened on demand."""

    transport = NCCL

    def __init__(
        self,
        address: TokenAddress,
        target: DeviceTarget,
        nccl: Nccl,
        room: CommunicatorRoom,
        limits: Limits | None = None,
    ) -> None:
        """Connects, opens and tests the way. Raises `Incompatible` if it does not work."""
        self._target = target
        self._room = room
        self._rows = Staging.rows_for(target.tensor, target.region)
        self._rules = ReceiverRules(limits)
        self._storing = threading.Lock()
        self._poking = threading.Lock()
        self._posted: deque[_Job | None] = deque()
        self._job: _Job | None = None
        self._room_wanted = False
        admitted = connect_with_token(address)
        self._connection = admitted.connection
        self._known = admitted.known_bytes(target.plan.block_bytes)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._edge = NcclEdge(self._connection, target.device, nccl, DECODE_RANK, self._end_job)
        self._watchdog = Watchdog(self._on_late)
        self._thread = threading.Thread(target=self._serve, name="nccl-edge", daemon=True)
        self._thread.start()
        self._open()

    @property
    def is_idle(self) -> bool:
        return self._rules.is_idle

    def ask_to_close(self) -> None:
        self._room_wanted = True
        self._poke()

    def copy(self, copies: Sequence[PieceCopy]) -> CopyResult:
        """As in `PieceSource`. An edge that is fenced meanwhile costs what had not landed."""
        if self._edge.fenced is not None:
            raise Incompatible(
                f"the NCCL edge is fenced: {self._edge.fenced}", reason="NCCL_FENCED"
            )
        good = self._run(_Job(copies, self._rows))
        bad = tuple(item.index for item in copies if item.index not in good)
        return CopyResult(tuple(good), bad)

    def abort(self) -> None:
        self._edge.fence("given up")

    def close(self) -> None:
        self._edge.fence("closed")
        self._run(None)
        self._watchdog.close()
        self._watchdog.join()
        self._thread.join(_CLOSE_LIMIT_S)
        if self._thread.is_alive():
            _log.warning("an NCCL edge leaves a thread behind, stuck in a library")
            return
        with self._poking:
            if self._wake >= 0:
                os.close(self._wake)
            self._wake = -1
        self._connection.close()

    def _open(self) -> None:
        """The self-test. Closes and raises `Incompatible` if it does not end well."""
        self._run(_Job((), 1))
        if self._rules.phase in (Phase.IDLE, Phase.CLOSING) and self._edge.fenced is None:
            return
        why = self._edge.fenced or "no room for another communicator"
        self.close()
        raise Incompatible(f"no NCCL edge: {why}", reason="NCCL_SELF_TEST_FAILED")

    def _run(self, job: _Job | None) -> list[int]:
        """Waits until the job is over, and nothing of it can be written any more."""
        self._posted.append(job)
        self._poke()
        if job is None:
            return []
        if self._edge.fenced is not None:
            job.over.set()
        job.over.wait()
        with self._storing:
            return list(job.good)

    def _poke(self) -> None:
        """Wakes the edge's thread if it has nothing to do."""
        with self._poking:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def _end_job(self) -> None:
        """Finished, or fenced: by any thread."""
        job = self._job
        if job is not None:
            job.over.set()

    def _on_late(self) -> None:
        self._edge.fence(f"not over in time: {self._rules.phase.value}")

    def _serve(self) -> None:
        self._edge.device.use()
        while (event := self._next_event()) is not None:
            drive(self._rules, event, self._carry_out, self._watchdog)
        self._edge.await_abort()
        self._room.leave(self)

    def _next_event(self) -> ev.Event | None:
        """None once closed."""
        try:
            if self._rules.is_idle or self._rules.phase is Phase.FENCED:
                return self._await_work()
            return ev.Heard(self._edge.hear())
        except FAILURES as error:
            return ev.Failed(self._edge.fenced or str(error))

    def _await_work(self) -> ev.Event | None:
        waiting = select.poll()
        waiting.register(self._wake, select.POLLIN)
        if self._rules.phase is not Phase.FENCED:
            waiting.register(self._connection, select.POLLIN)
        while True:
            ready = [fd for fd, _ in waiting.poll()]
            if self._wake not in ready:
                return ev.Heard(self._edge.hear())
            os.eventfd_read(self._wake)
            if self._posted:
                self._job = self._posted.popleft()
                return self._started()
            if self._room_wanted:
                self._room_wanted = False
                return ev.RoomWanted()

    def _started(self) -> ev.Event | None:
        if self._job is None:
            return None
        if self._edge.fenced is not None:
            self._end_job()
            return ev.Failed(self._edge.fenced)
        return ev.CopyWanted(self._job.batches())

    def _carry_out(self, command: ev.Command) -> ev.Event | None:
        match command:
            case ev.Say(message):
                self._edge.say(message)
            case ev.Finish():
                self._end_job()
            case ev.Fence(reason):
                self._edge.fence(reason)
            case ev.MakeRoom() | ev.Invite() | ev.Join() | ev.Destroy():
                return self._open_or_close(command)
            case _:
                return self._move(command)
        return None

    def _open_or_close(self, command: ev.Command) -> ev.Event | None:
        match command:
            case ev.MakeRoom():
                has_room = self._room.enter(self, self._rules.limits.room)
                return ev.RoomMade() if has_room else ev.NoRoom()
            case ev.Invite(opening):
                self._invite(opening)
            case ev.Join():
                self._edge.join(self._unique_id)
                return ev.Joined()
            case ev.Destroy():
                self._edge.destroy()
                self._room.leave(self)
                return ev.Destroyed()
        return None

    def _move(self, command: ev.Command) -> ev.Event | None:
        match command:
            case ev.Receive(_, rows):
                self._received = self._edge.receive(rows)
            case ev.AwaitReceive(number):
                self._edge.wait(self._received)
                return ev.Landed(number)
            case ev.CheckProbe():
                return ev.ProbeSeen(self._has_known_bytes())
            case ev.Store(number, present):
                self._store(present)
                return ev.Stored(number)
        return None

    def _invite(self, opening: int) -> None:
        plan = self._target.plan
        self._edge.prepare(self._target.tensor, self._target.region)
        self._unique_id = self._edge.new_unique_id()
        asked = ev.Open(
            opening, self._unique_id, block_region(plan.source_region), plan.block_bytes
        )
        self._edge.say(asked)

    def _has_known_bytes(self) -> bool:
        staging = self._edge.live_staging()
        with self._edge.device.on(self._edge.stream):
            return bytes(staging.rows[0].cpu().numpy()) == self._known

    def _store(self, present: tuple[bool, ...]) -> None:
        """Unpacks the rows that are present; good are those whose checksum in the pool is right."""
        job = self._job
        if job is None:
            return
        copies = job.pending.popleft()
        with self._storing:
            sums = self._unpack(copies, np.flatnonzero(present))
            for item, is_present, checksum in zip(copies, present, sums, strict=True):
                if is_present and self._target.matches(item.piece, checksum):
                    job.good.append(item.index)
        self._room.touch(self)

    def _unpack(self, copies: Sequence[PieceCopy], rows: npt.NDArray[np.intp]) -> list[int]:
        """Returns when the pool has been written; the checksums of all destinations."""
        device, stream = self._edge.device, self._edge.stream
        pool, region = self._target.tensor, self._target.region
        staging = self._edge.live_staging()
        # Steps that are under way may still read what these blocks held before.
        device.wait(stream, device.record_compute())
        with device.on(stream):
            ids = staging.take_ids([item.destination for item in copies])
            for part in _stretches(rows):
                unpack_blocks(staging.rows[part], pool, ids[part], region)
            sums = checksum_blocks(pool, ids, region)
            device.compute_waits(device.record(stream))
            return unsigned(sums)


def _stretches(rows: npt.NDArray[np.intp]) -> list[slice]:
    """Ascending rows as slices of neighbours: no copy, so no allocation on the GPU."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    return [slice(int(part[0]), int(part[-1]) + 1) for part in np.split(rows, breaks) if len(part)]
