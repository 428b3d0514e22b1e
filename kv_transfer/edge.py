"""One way from a rank of P to a rank of D, for one stream: opened, copied over and closed by one
thread of its own, so that a peer that stalls holds up nobody else."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from core.lease_events import PieceCopy
from core.tcp_options import PLAIN_TCP, TcpOptions
from crossdock.v1 import handoff_pb2 as pb
from kv_transfer.device import DeviceTarget
from kv_transfer.rank_ports import EdgeChoice, EdgeTraffic
from kv_transfer.selection import open_source
from kv_transfer.transport import CopyResult, EdgeTarget, PieceSource

_log = logging.getLogger(__name__)
# What one edge has in flight at most: bounds staging, and the time until an abort takes effect.
MAX_IN_FLIGHT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class EdgeCopied:
    """What one copy brought over one edge. ``lost`` as in `RankCopied`."""

    good: tuple[int, ...]
    bad: tuple[int, ...]
    traffic: EdgeTraffic
    lost: str = ""


class Edge:
    """From one rank of ``peer`` (for people to read). All but `abort` from the event loop."""

    def __init__(
        self, target: EdgeTarget | DeviceTarget, peer: str, tcp: TcpOptions = PLAIN_TCP
    ) -> None:
        """``tcp``: how TCP is taken."""
        self._target = target
        self._peer = peer
        self._tcp = tcp
        self._source: PieceSource | None = None
        self._aborted = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kv-copy")
        self._pieces_in_flight = max(1, MAX_IN_FLIGHT_BYTES // target.plan.block_bytes)

    async def open(self, offer: pb.RankOffer, allowed: Sequence[str]) -> EdgeChoice:
        """Raises `Incompatible` if no transport works."""
        loop = asyncio.get_running_loop()
        chosen = await loop.run_in_executor(
            self._thread, open_source, offer, allowed, self._target, self._peer, self._tcp
        )
        self._source = chosen.source
        plan = self._target.plan
        return EdgeChoice(plan.source, plan.destination, chosen.source.transport, chosen.detail)

    async def copy(self, copies: Sequence[PieceCopy]) -> EdgeCopied:
        """Never raises. Copies of one edge follow one another."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._copy, copies)

    def abort(self) -> None:
        """Makes the copy under way end at once; those that wait copy nothing."""
        self._aborted = True
        if self._source is not None:
            self._source.abort()

    async def close(self) -> None:
        """Returns when nothing can be written any more. Call after `abort`."""
        loop = asyncio.get_running_loop()
        try:
            # Behind the copies that are queued already: the source must outlive them.
            await loop.run_in_executor(self._thread, self._close)
        finally:
            self._thread.shutdown(wait=False)

    def _close(self) -> None:
        if self._source is not None:
            self._source.close()

    def _copy(self, copies: Sequence[PieceCopy]) -> EdgeCopied:
        started = time.monotonic()
        good: list[int] = []
        bad: list[int] = []
        lost = ""
        for first in range(0, len(copies), self._pieces_in_flight):
            part = copies[first : first + self._pieces_in_flight]
            result, lost = self._copy_part(part, lost)
            good += result.good
            bad += result.bad
        plan = self._target.plan
        traffic = EdgeTraffic(
            plan.source,
            plan.destination,
            blocks=len(good),
            # What an end of the stream leaves behind was not damaged on its way.
            damaged=0 if self._aborted or lost else len(bad),
            bytes=len(good) * plan.block_bytes,
            seconds=time.monotonic() - started,
        )
        return EdgeCopied(tuple(good), tuple(bad), traffic, lost)

    def _copy_part(self, copies: Sequence[PieceCopy], lost: str) -> tuple[CopyResult, str]:
        nothing = CopyResult((), tuple(item.index for item in copies))
        if lost or self._aborted or self._source is None:
            return nothing, lost
        try:
            return self._source.copy(copies), ""
        except Exception as error:
            _log.exception("the KV way from %s is lost", self._peer)
            return nothing, str(error) or repr(error)
