"""How the blocks of a lost lease come back to the pool.

Verified full blocks stay as prefix cache, the rest is free at once, but for blocks that a copy may
still be writing into: these are in quarantine until it has ended.
Does not cover: when a lease is lost (``core.lease``).
"""

from __future__ import annotations

import numpy as np

from core.block_pool import BlockPool
from core.lease_events import Copied
from core.lease_record import Lease


class LeaseReturns:
    """Lost leases whose copies are still under way, by id."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._copying: dict[int, Lease] = {}

    def __len__(self) -> int:
        return len(self._copying)

    def __contains__(self, lease_id: int) -> bool:
        return lease_id in self._copying

    def give_back(self, lease: Lease) -> None:
        """All blocks of a lease that held some and is lost now."""
        self._keep_verified(lease)
        in_copy = np.fromiter(sorted(lease.copying), dtype=np.int32, count=len(lease.copying))
        self._pool.release(np.delete(lease.block_ids, in_copy))
        if lease.copying:
            self._pool.quarantine(lease.block_ids[in_copy])
            self._copying[lease.lease_id] = lease

    def _keep_verified(self, lease: Lease) -> None:
        size, tokens, start = self._pool.block_size, lease.reserve.tokens, lease.held
        end = min(lease.verified_prefix, len(tokens) // size)
        if end > start:
            self._pool.publish(
                lease.block_ids[start:end],
                lease.hashes[start:end],
                tokens[start * size : end * size],
                int(lease.hashes[start - 1]) if start else None,
            )

    def copied(self, event: Copied) -> None:
        """A copy of one of these leases has ended."""
        lease = self._copying[event.lease_id]
        done = sorted(lease.copying & {*event.good, *event.bad})
        lease.copying.difference_update(done)
        self._pool.unquarantine(lease.block_ids[np.array(done, dtype=np.int32)])
        if not lease.copying:
            del self._copying[event.lease_id]
