"""D's FIFO: a refused head is tried again as soon as it can help."""

from __future__ import annotations

import numpy as np

from core.block_hash import block_hashes
from core.block_pool import BlockPool
from core.lease_events import Granted
from core.outputs import StepCounters
from core.request import AttemptKey, RequestKey
from decode_worker.admission import AdmissionQueue, WaitingReserve

SIZE = 4


def key(name: str) -> AttemptKey:
    return AttemptKey(RequestKey("default", name), 1)


class Desk:
    def __init__(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks, SIZE)
        self.queue = AdmissionQueue(self.pool, StepCounters())

    def wait(self, name: str, length: int) -> None:
        tokens = np.arange(length, dtype=np.int32)
        self.queue.add(WaitingReserve(key(name), tokens, 0, 1, block_hashes(tokens, SIZE, 0)))

    def admitted(self, num_running: int = 0) -> str | None:
        granted = self.queue.admit_next(num_running)
        if granted is None:
            assert self.queue.admits_nobody(num_running)
            return None
        assert isinstance(granted, Granted)
        return granted.key.request.request_id


def test_who_stands_behind_a_refused_head_comes_when_that_leaves() -> None:
    desk = Desk(num_blocks=4)
    desk.wait("large", 40)
    desk.wait("small", 5)
    assert desk.admitted() is None
    desk.queue.remove_reserve(key("large"))
    assert desk.admitted() == "small"


def test_a_refused_head_comes_when_fewer_keep_room_to_grow() -> None:
    desk = Desk(num_blocks=12)
    desk.pool.allocate(4)
    desk.wait("a", 20)
    assert desk.admitted(num_running=4) is None
    assert desk.admitted(num_running=3) is None
    assert desk.admitted(num_running=2) == "a"


def test_a_refused_head_comes_when_blocks_come_back() -> None:
    desk = Desk(num_blocks=8)
    held, in_copy = desk.pool.allocate(3), desk.pool.allocate(3)
    assert held is not None
    assert in_copy is not None
    desk.pool.quarantine(in_copy)
    desk.wait("a", 13)
    desk.wait("b", 13)
    assert desk.admitted() is None
    desk.pool.unquarantine(in_copy)
    assert desk.admitted() == "a"
    assert desk.admitted() is None
    desk.pool.release(held)
    assert desk.admitted() == "b"


def test_a_refused_head_comes_when_others_computed_its_prefix() -> None:
    desk = Desk(num_blocks=6)
    held = desk.pool.allocate(3)
    assert held is not None
    desk.wait("a", 13)
    assert desk.admitted() is None
    tokens = np.arange(8, dtype=np.int32)
    desk.pool.publish(held[:2], block_hashes(tokens, SIZE, 0), tokens, None)
    assert desk.admitted() == "a"
