"""Changes of a prefix cache, to and from the wire."""

from __future__ import annotations

import numpy as np

from core.block_hash import HashArray
from core.cache_events import NO_HASHES, NOTHING_STORED, CacheChange, StoredBlocks
from crossdock.v1 import worker_pb2 as pb
from wire.attempts import hashes_from_wire, hashes_to_wire

_STARTS_WIRE = np.dtype("<u4")


def change_to_wire(epoch: int, change: CacheChange) -> pb.CacheEvents:
    """``epoch``: of the worker's life."""
    events = pb.CacheEvents(epoch=epoch, sequence=change.sequence, cleared=change.cleared)
    if len(change.stored):
        stored = events.stored.add(medium=pb.DEVICE)
        stored.hashes = hashes_to_wire(change.stored.hashes)
        stored.starts = change.stored.starts.astype(_STARTS_WIRE, copy=False).tobytes()
        stored.parents = hashes_to_wire(change.stored.parents)
    if len(change.removed):
        events.removed.add(medium=pb.DEVICE, hashes=hashes_to_wire(change.removed))
    return events


def change_from_wire(events: pb.CacheEvents) -> CacheChange:
    """Blocks on other media than the device's are left out: they are not ready to be used.
    Raises ``ValueError`` for what is no list of hashes."""
    return CacheChange(events.sequence, _stored(events), _removed(events), events.cleared)


def _stored(events: pb.CacheEvents) -> StoredBlocks:
    parts = [part for part in events.stored if part.medium == pb.DEVICE]
    if not parts:
        return NOTHING_STORED
    hashes = [hashes_from_wire(part.hashes) for part in parts]
    starts = [np.frombuffer(part.starts, dtype=_STARTS_WIRE) for part in parts]
    parents = [hashes_from_wire(part.parents) for part in parts]
    if len(parts) == 1:
        return StoredBlocks(hashes[0], starts[0], parents[0])
    before = np.cumsum([0, *map(len, hashes[:-1])])
    moved = [start + np.uint32(offset) for start, offset in zip(starts, before, strict=True)]
    return StoredBlocks(np.concatenate(hashes), np.concatenate(moved), np.concatenate(parents))


def _removed(events: pb.CacheEvents) -> HashArray:
    parts = [hashes_from_wire(p.hashes) for p in events.removed if p.medium == pb.DEVICE]
    return np.concatenate(parts) if parts else NO_HASHES
