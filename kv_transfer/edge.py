"""D's end of one live stream from a prefill worker: its messages, its copies, its counters."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from core.handoff import ToPrefill
from core.lease_events import PieceCopy
from kv_transfer.transport import CopyResult, PieceSource

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class EdgeCounters:
    """What came over one edge (from a prefill worker, all its lives, to this worker).

    ``detail``: why no faster transport was taken.
    """

    peer: str
    transport: str
    detail: str = ""
    bytes: int = 0
    blocks: int = 0
    seconds: float = 0.0
    resent_blocks: int = 0


class Edge:
    """Copies on a thread of its own, so that a peer that stalls holds up nobody else."""

    def __init__(self, source: PieceSource, counters: EdgeCounters, block_bytes: int) -> None:
        # None ends the stream.
        self.outbox: asyncio.Queue[ToPrefill | None] = asyncio.Queue()
        self._source = source
        self.counters = counters
        self._block_bytes = block_bytes
        self._aborted = False
        self._copier = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kv-copy")

    async def copy(self, copies: Sequence[PieceCopy]) -> CopyResult:
        """What landed. If the way is lost, nothing did, and the stream ends as well: the next one
        chooses its transport anew."""
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        try:
            result = await loop.run_in_executor(self._copier, self._source.copy, copies)
        except Exception:
            _log.exception("the KV way from %s is lost", self.counters.peer)
            self.outbox.put_nowait(None)
            return CopyResult((), tuple(item.index for item in copies))
        self._count(result, time.monotonic() - started)
        return result

    def abort(self) -> None:
        """Makes the copy under way end at once; those that wait copy nothing."""
        self._aborted = True
        self._source.abort()

    def close(self) -> None:
        """Returns when nothing can be written any more; blocks. Call after `abort`."""
        # Behind the copies that are queued already: the source must outlive them.
        self._copier.submit(self._source.close)
        self._copier.shutdown(wait=True)

    def _count(self, result: CopyResult, seconds: float) -> None:
        counters = self.counters
        counters.seconds += seconds
        counters.blocks += len(result.good)
        counters.bytes += len(result.good) * self._block_bytes
        if not self._aborted:
            counters.resent_blocks += len(result.bad)
