"""Changes of a prefix cache arrive as they were sent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.cache_events import CacheChange, StoredBlocks
from crossdock.v1 import worker_pb2 as pb
from wire.cache_events import change_from_wire, change_to_wire

HASHES = st.lists(st.integers(0, 2**64 - 1), max_size=8)


def uint64(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


@given(HASHES, HASHES, st.booleans(), st.integers(1, 2**63))
def test_a_change_there_and_back(
    stored: list[int], removed: list[int], cleared: bool, sequence: int
) -> None:
    parents = uint64([0, *stored][: len(stored)])
    sent = CacheChange(sequence, StoredBlocks.of(uint64(stored), parents), uint64(removed), cleared)
    events = pb.CacheEvents.FromString(change_to_wire(7, sent).SerializeToString())
    got = change_from_wire(events)
    assert events.epoch == 7
    assert (got.sequence, got.cleared) == (sequence, cleared)
    assert [*got.stored.chains()] == [*sent.stored.chains()]
    assert got.removed.tolist() == removed


def test_several_lists_are_one() -> None:
    first, second = (
        change_to_wire(1, CacheChange(1, StoredBlocks.of(uint64(blocks), uint64(parents))))
        for blocks, parents in (([1, 2, 9], [0, 1, 5]), ([3, 4], [2, 3]))
    )
    first.stored.extend(second.stored)
    got = change_from_wire(first)
    assert [*got.stored.chains()] == [(0, [1, 2]), (5, [9]), (2, [3, 4])]


def test_half_a_hash_is_an_error() -> None:
    odd = pb.BlocksRemoved(medium=pb.DEVICE, hashes=b"odd")
    with pytest.raises(ValueError, match="buffer size"):
        change_from_wire(pb.CacheEvents(removed=[odd]))
