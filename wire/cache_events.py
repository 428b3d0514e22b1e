"""Changes of a prefix cache, to and from the wire."""

from __future__ import annotations

from collections.abc import Sequence

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
    parts = [_chains(part) for part in events.stored if part.medium == pb.DEVICE]
    if not parts:
        return NOTHING_STORED
    return parts[0] if len(parts) == 1 else _joined(parts)


def _chains(part: pb.BlocksStored) -> StoredBlocks:
    starts = np.frombuffer(part.starts, dtype=_STARTS_WIRE)
    return StoredBlocks(hashes_from_wire(part.hashes), starts, hashes_from_wire(part.parents))


def _joined(parts: Sequence[StoredBlocks]) -> StoredBlocks:
    before = np.cumsum([0, *(len(part) for part in parts[:-1])], dtype=np.uint32)
    starts = [part.starts + offset for part, offset in zip(parts, before, strict=True)]
    return StoredBlocks(
        np.concatenate([part.hashes for part in parts]),
        np.concatenate(starts),
        np.concatenate([part.parents for part in parts]),
    )


def _removed(events: pb.CacheEvents) -> HashArray:
    if not events.removed:
        return NO_HASHES
    parts = [hashes_from_wire(p.hashes) for p in events.removed if p.medium == pb.DEVICE]
    return np.concatenate([NO_HASHES, *parts])
