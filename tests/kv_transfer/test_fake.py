"""The transport that fails on purpose: what it does to pieces, and that no damage is taken."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
from equal_edge import announced, whole_target
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Incompatible
from core.handoff import Piece
from core.lease_events import PieceCopy
from kv_transfer.fake import FakePool, FakeSource, Faults
from kv_transfer.transport import CopyResult

BLOCK_BYTES = 800


class Pair:
    """Both ends of an edge of six blocks."""

    def __init__(self, faults: Faults, seed: int = 0) -> None:
        generator = np.random.default_rng(7)
        self.blocks = generator.integers(0, 256, (6, BLOCK_BYTES), dtype=np.uint8)
        self.generations = np.zeros(6, np.uint64)
        self.pool = FakePool("P0", self.blocks, self.generations)
        self.landed = np.zeros((6, BLOCK_BYTES), np.uint8)
        self.source = FakeSource("P0", whole_target(self.landed), faults, seed)

    def copies(self) -> list[PieceCopy]:
        pieces = announced(self.blocks, range(6), [0] * 6)
        return [PieceCopy(10 + i, piece, 5 - i) for i, piece in enumerate(pieces)]

    def copy(self) -> CopyResult:
        return self.source.copy(self.copies())


ALL_INDICES = tuple(range(10, 16))


def test_without_faults_everything_lands() -> None:
    pair = Pair(Faults())
    assert pair.copy() == CopyResult(ALL_INDICES, ())
    assert (pair.landed == pair.blocks[::-1]).all()


def test_a_lost_piece_is_bad_and_nothing_is_written() -> None:
    pair = Pair(Faults(loss=1))
    assert pair.copy() == CopyResult((), ALL_INDICES)
    assert not pair.landed.any()


def test_order_and_repetition_change_nothing() -> None:
    pair = Pair(Faults(reordering=1, duplication=1))
    assert pair.copy() == CopyResult(ALL_INDICES, ())
    assert (pair.landed == pair.blocks[::-1]).all()


@pytest.mark.parametrize("faults", [Faults(corruption=1), Faults(truncation=1)])
def test_damage_is_found(faults: Faults) -> None:
    pair = Pair(faults)
    assert pair.copy() == CopyResult((), ALL_INDICES)
    assert pair.landed.any()


LIKELIHOOD = st.floats(0, 1)


@given(
    st.builds(Faults, *[LIKELIHOOD] * 5),
    st.integers(0, 2**32),
    st.lists(st.integers(0, 5), unique=True),
)
def test_what_is_good_is_right_whatever_happens(
    faults: Faults, seed: int, moved_on: list[int]
) -> None:
    pair = Pair(faults, seed)
    copies = pair.copies()
    pair.generations[moved_on] += 1
    result = pair.source.copy(copies)
    assert sorted(result.good + result.bad) == list(ALL_INDICES)
    for index in result.good:
        assert index - 10 not in moved_on
        assert (pair.landed[15 - index] == pair.blocks[index - 10]).all()


@given(st.integers(0, 2**32))
def test_the_same_seed_brings_the_same_faults(seed: int) -> None:
    faults = Faults(0.3, 0.3, 0.5, 0.3, 0.3)
    one, two = Pair(faults, seed), Pair(faults, seed)
    for _ in range(3):
        assert one.copy() == two.copy()
        assert (one.landed == two.landed).all()


def test_a_block_id_outside_the_pool_is_bad() -> None:
    pair = Pair(Faults())
    stray = [PieceCopy(0, Piece(block, 0, (0,)), 0) for block in (6, -1)]
    assert pair.source.copy(stray[:1]).bad == (0,)
    assert pair.source.copy(stray[1:]).bad == (0,)


def test_a_late_piece_does_not_hold_up_the_end() -> None:
    pair = Pair(Faults(delay_s=3600))
    results: list[CopyResult] = []
    copier = threading.Thread(target=lambda: results.append(pair.copy()))
    copier.start()
    pair.source.abort()
    copier.join()
    assert results == [CopyResult((), ALL_INDICES)]
    assert not pair.landed.any()


def test_a_pool_that_is_gone_is_named() -> None:
    pair = Pair(Faults())
    pair.pool.close()
    with pytest.raises(Incompatible, match="nobody offers P0"):
        pair.copy()


def test_an_offer_ends_with_its_owner() -> None:
    pair = Pair(Faults())
    del pair.pool
    gc.collect()
    with pytest.raises(Incompatible, match="nobody offers P0"):
        pair.copy()


def test_blocks_of_another_size_are_refused() -> None:
    pool = FakePool("P1", np.zeros((2, 400), np.uint8), np.zeros(2, np.uint64))
    with pytest.raises(Incompatible, match="800 bytes of the plan"):
        FakeSource(pool.name, whole_target(np.zeros((2, BLOCK_BYTES), np.uint8)))
