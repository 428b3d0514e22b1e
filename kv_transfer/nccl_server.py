"""P's side of KV blocks over NCCL: packs blocks of its pool and sends them when D says so.

P writes nothing but its own staging, and holds nothing for a D that is gone: the end of D's
connection fences the edge. Does not cover: the order of messages
(``kv_transfer.nccl_sender_rules``), D's side (``kv_transfer.nccl_source``).
"""

from __future__ import annotations

import contextlib

import numpy as np

from kernels.block_region import BlockRegion, check_region
from kernels.pack_blocks import pack_blocks
from kv_transfer import nccl_events as ev
from kv_transfer.communicator_room import CommunicatorRoom
from kv_transfer.device import DevicePool
from kv_transfer.nccl_communicator import PREFILL_RANK, Nccl
from kv_transfer.nccl_edge import NcclEdge, drive
from kv_transfer.nccl_receiver_rules import Limits
from kv_transfer.nccl_sender_rules import Phase, SenderRules
from kv_transfer.nccl_wire import PIECE
from kv_transfer.staging import FAILURES
from kv_transfer.tcp_wire import Flags, Pieces, find_present
from kv_transfer.token_listener import Admitted, TokenListener
from kv_transfer.watchdog import Watchdog

# For the threads to end; one that is stuck in a library is left behind.
_CLOSE_LIMIT_S = 5.0


class NcclServer:
    """Listens on ``host``, any free port, for the control connections of its edges."""

    def __init__(
        self,
        host: str,
        pool: DevicePool,
        nccl: Nccl,
        room: CommunicatorRoom,
        limits: Limits | None = None,
    ) -> None:
        self._pool = pool
        self._nccl = nccl
        self._room = room
        self._limits = limits
        self._listener = TokenListener(host, "nccl", self._serve)
        self.port = self._listener.port

    def invite(self) -> bytes:
        """A new token, good for one decode worker until it is revoked."""
        return self._listener.invite()

    def revoke(self, token: bytes) -> None:
        """Fences the edges of those who came with ``token``."""
        self._listener.revoke(token)

    def close(self) -> None:
        """Fences all edges; returns when they have ended, or are stuck in a library."""
        self._listener.close(_CLOSE_LIMIT_S)

    def _serve(self, admitted: Admitted) -> None:
        admitted.show_token()
        _SendingEdge(admitted, self._pool, self._nccl, self._room, self._limits).serve()


class _SendingEdge:
    """P's end of one edge; all in the thread of its connection."""

    def __init__(
        self,
        admitted: Admitted,
        pool: DevicePool,
        nccl: Nccl,
        room: CommunicatorRoom,
        limits: Limits | None,
    ) -> None:
        self._admitted = admitted
        self._pool = pool
        self._room = room
        self._rules = SenderRules(limits)
        self._edge = NcclEdge(admitted.connection, pool.device, nccl, PREFILL_RANK, lambda: None)
        self._watchdog = Watchdog(self._on_late)

    @property
    def is_idle(self) -> bool:
        return self._rules.is_idle

    def ask_to_close(self) -> None:
        with contextlib.suppress(OSError):
            self._edge.say(ev.CloseWanted(self._rules.opening))

    def serve(self) -> None:
        """Returns when the edge is fenced and nothing of it runs any more."""
        while self._rules.phase is not Phase.FENCED:
            drive(self._rules, self._next_event(), self._carry_out, self._watchdog)
        self._watchdog.close()
        self._watchdog.join()
        self._edge.await_abort()
        self._room.leave(self)

    def _on_late(self) -> None:
        self._edge.fence(f"not over in time: {self._rules.phase.value}")

    def _next_event(self) -> ev.Event:
        try:
            return ev.Heard(self._edge.hear())
        except FAILURES as error:
            return ev.Failed(self._edge.fenced or str(error))

    def _carry_out(self, command: ev.Command) -> ev.Event | None:
        match command:
            case ev.MakeRoom(asked) if asked is not None:
                return self._make_room(asked)
            case ev.Say(message):
                self._edge.say(message)
            case ev.Join(unique_id) if unique_id is not None:
                self._edge.join(unique_id)
                return ev.Joined()
            case ev.SendProbe():
                self._send_probe()
                return ev.SendOver(ev.PROBE, ())
            case ev.Send(number, pieces):
                return ev.SendOver(number, self._send(pieces))
            case ev.Destroy():
                self._edge.destroy()
                self._room.leave(self)
                return ev.Destroyed()
            case ev.Fence(reason):
                self._edge.fence(reason)
        return None

    def _make_room(self, asked: ev.Open) -> ev.Event:
        self._region = asked.region
        self._check(asked.region, asked.row_bytes)
        if not self._room.enter(self, self._rules.limits.room):
            return ev.NoRoom()
        self._edge.prepare(self._pool.tensor, asked.region)
        return ev.RoomMade()

    def _check(self, region: BlockRegion, row_bytes: int) -> None:
        """Raises ``ValueError`` if D wants what this pool does not have."""
        check_region(self._pool.tensor, region)
        held = region.row_bytes(self._pool.tensor)
        if held != row_bytes:
            raise ValueError(f"D expects {row_bytes} bytes of each block, here they are {held}")

    def _send_probe(self) -> None:
        staging, device = self._edge.live_staging(), self._edge.device
        known = np.frombuffer(self._admitted.known_bytes(staging.rows.shape[1]), np.uint8)
        with device.on(self._edge.stream):
            staging.fill_first(known)
        self._edge.wait(self._edge.send(1))

    def _send(self, pieces: ev.Batch) -> tuple[bool, ...]:
        """Which rows hold the blocks that were asked for, from before packing until after it."""
        staging, device, stream = self._edge.live_staging(), self._edge.device, self._edge.stream
        if len(pieces) > len(staging.rows):
            raise ValueError(f"a batch of {len(pieces)} rows, staging has {len(staging.rows)}")
        wanted = np.array(list(pieces), PIECE)
        before = self._present(wanted)
        if self._pool.described is not None:
            device.wait(stream, self._pool.described)
        with device.on(stream):
            ids = staging.take_ids(np.where(before, wanted["block_id"], 0).tolist())
            pack_blocks(self._pool.tensor, ids, self._region, staging.rows[: len(pieces)])
        self._edge.wait(self._edge.send(len(pieces)))
        self._room.touch(self)
        return tuple((before & self._present(wanted)).tolist())

    def _present(self, wanted: Pieces) -> Flags:
        return find_present(wanted, self._pool.generations)
