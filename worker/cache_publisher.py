"""What this worker tells routers of its prefix cache, as numbered messages.

Covers: numbering, what a router gets that is new or missed something. Whoever calls it holds the
engine loop's lock. Does not cover: sending (``worker.router_streams``).
"""

from __future__ import annotations

from core.block_pool import BlockPool
from core.cache_events import NO_HASHES, CacheChange, CacheLog, StoredBlocks
from crossdock.v1 import worker_pb2 as pb
from wire.cache_events import change_to_wire


class CachePublisher:
    """For one life of a worker, ``epoch``. Not ``enabled``: there is never anything to tell."""

    def __init__(self, pool: BlockPool, epoch: int, enabled: bool = True) -> None:
        self._pool = pool
        self._epoch = epoch
        self.enabled = enabled
        self._log = CacheLog()

    @property
    def sequence(self) -> int:
        """The number of the last change."""
        return self._log.sequence

    def drain(self) -> pb.CacheEvents | None:
        """What changed since the last call; None if nothing did."""
        stored, removed = self._pool.drain_events()
        if not self.enabled or not (len(stored) or len(removed)):
            return None
        chains = StoredBlocks.of(stored, self._pool.parents_of(stored))
        return change_to_wire(self._epoch, self._log.add(chains, removed))

    def catch_up(
        self, epoch: int, sequence: int
    ) -> tuple[pb.CacheEvents | None, list[pb.CacheEvents]]:
        """What `drain` gives, for all routers; and all that one of them lacks that has the changes
        of ``epoch`` up to ``sequence``, with that in it.

        Both at once: what came in between would be in a list of everything, and its going before
        the next `drain` would be told to nobody.
        """
        drained = self.drain()
        if not self.enabled:
            return drained, []
        missing = self._log.since(sequence) if epoch == self._epoch or not sequence else None
        changes = [self._snapshot()] if missing is None else missing
        return drained, [change_to_wire(self._epoch, change) for change in changes]

    def _snapshot(self) -> CacheChange:
        hashes = self._pool.snapshot()
        chains = StoredBlocks.of(hashes, self._pool.parents_of(hashes))
        return CacheChange(self._log.sequence, chains, NO_HASHES, cleared=True)
