"""The block pool: direct tests of each rule, and a comparison with a plain model of dicts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from amounts import examples
from core.block_hash import block_hashes
from core.block_pool import BlockPool
from core.errors import InternalError, InvalidField

BLOCK_SIZE = 4


def ids(*block_ids: int) -> np.ndarray:
    return np.array(block_ids, dtype=np.int32)


def prompt(*words: int) -> np.ndarray:
    """A prompt of one block per word."""
    return np.repeat(np.array(words, dtype=np.int32), BLOCK_SIZE)


def hashes_of(tokens: np.ndarray) -> np.ndarray:
    return block_hashes(tokens, BLOCK_SIZE, salt=7)


def compute(pool: BlockPool, *words: int) -> np.ndarray:
    """Allocate and publish a prompt; the caller holds its blocks."""
    tokens = prompt(*words)
    blocks = pool.allocate(len(words))
    assert blocks is not None
    pool.publish(blocks, hashes_of(tokens), tokens, parent=None)
    return blocks


def cache(pool: BlockPool, *words: int) -> np.ndarray:
    blocks = compute(pool, *words)
    pool.release(blocks)
    return blocks


def match(pool: BlockPool, *words: int) -> list[int]:
    tokens = prompt(*words)
    return pool.match_prefix(hashes_of(tokens), tokens).tolist()


def counts(pool: BlockPool) -> tuple[int, int, int, int]:
    pool.validate()
    return pool.num_free, pool.num_cached, pool.num_leased, pool.num_quarantined


def test_a_new_pool_is_all_free() -> None:
    assert counts(BlockPool(8, BLOCK_SIZE)) == (8, 0, 0, 0)


def test_fresh_blocks_come_in_order_and_are_leased() -> None:
    pool = BlockPool(8, BLOCK_SIZE)
    assert pool.allocate(3).tolist() == [0, 1, 2]
    assert counts(pool) == (5, 0, 3, 0)


def test_allocation_is_all_or_nothing() -> None:
    pool = BlockPool(4, BLOCK_SIZE)
    pool.allocate(2)
    assert pool.allocate(3) is None
    assert counts(pool) == (2, 0, 2, 0)


def test_allocating_nothing_gives_an_empty_array() -> None:
    assert BlockPool(4, BLOCK_SIZE).allocate(0).tolist() == []


def test_each_allocation_is_a_new_generation_in_the_callers_memory() -> None:
    shared = np.zeros(2, dtype=np.uint64)
    pool = BlockPool(2, BLOCK_SIZE, generations=shared)
    for _ in range(3):
        pool.release(pool.allocate(1))
    assert shared.tolist() == [3, 0]
    assert pool.generation(ids(0)).tolist() == [3]


def test_uncached_blocks_become_free_when_released() -> None:
    pool = BlockPool(4, BLOCK_SIZE)
    pool.release(pool.allocate(3))
    assert counts(pool) == (4, 0, 0, 0)


def test_published_blocks_stay_as_cache_when_released() -> None:
    pool = BlockPool(4, BLOCK_SIZE)
    blocks = cache(pool, 1, 2)
    assert counts(pool) == (2, 2, 0, 0)
    assert match(pool, 1, 2, 3) == blocks.tolist()
    assert pool.num_available == 4


def test_a_match_ends_where_the_prompts_part() -> None:
    pool = BlockPool(4, BLOCK_SIZE)
    blocks = cache(pool, 1, 2, 3)
    assert match(pool, 1, 2, 9) == blocks[:2].tolist()
    assert match(pool, 9, 2, 3) == []


def test_equal_hashes_of_different_tokens_do_not_match() -> None:
    pool = BlockPool(4, BLOCK_SIZE)
    blocks = cache(pool, 1, 2)
    stolen = hashes_of(prompt(1, 2))
    assert pool.match_prefix(stolen, prompt(1, 9)).tolist() == blocks[:1].tolist()


def test_nothing_is_hung_under_a_block_whose_hash_collides() -> None:
    pool = BlockPool(8, BLOCK_SIZE)
    cache(pool, 1, 2)
    blocks = pool.allocate(3)
    stolen = np.append(hashes_of(prompt(1, 2)), np.uint64(99))
    pool.publish(blocks, stolen, prompt(1, 8, 9), parent=None)
    assert 99 not in pool.snapshot().tolist()
    assert counts(pool) == (3, 2, 3, 0)


def test_an_acquired_block_is_not_evicted() -> None:
    pool = BlockPool(2, BLOCK_SIZE)
    blocks = cache(pool, 1, 2)
    pool.acquire(blocks[:1])
    assert pool.allocate(2) is None
    assert pool.allocate(1).tolist() == blocks[1:].tolist()
    assert match(pool, 1, 2) == blocks[:1].tolist()


def test_a_shared_block_is_cache_again_after_its_last_holder() -> None:
    pool = BlockPool(2, BLOCK_SIZE)
    blocks = cache(pool, 1)
    pool.acquire(blocks)
    pool.acquire(blocks)
    pool.release(blocks)
    assert counts(pool) == (1, 0, 1, 0)
    pool.release(blocks)
    assert counts(pool) == (1, 1, 0, 0)


def test_eviction_takes_the_end_of_a_prompt_before_its_beginning() -> None:
    pool = BlockPool(3, BLOCK_SIZE)
    cache(pool, 1, 2, 3)
    pool.allocate(1)
    assert len(match(pool, 1, 2, 3)) == 2
    pool.allocate(1)
    assert len(match(pool, 1, 2, 3)) == 1


def test_eviction_takes_the_least_recently_used_prompt_first() -> None:
    pool = BlockPool(4, BLOCK_SIZE)
    old, new = cache(pool, 1, 2), cache(pool, 3, 4)
    pool.acquire(old)
    pool.release(old)
    assert sorted(pool.allocate(2).tolist()) == new.tolist()
    assert match(pool, 1, 2) == old.tolist()
    pool.validate()


def test_a_shared_beginning_outlives_all_its_continuations() -> None:
    pool = BlockPool(4, BLOCK_SIZE)
    first = cache(pool, 1, 2)
    tokens = prompt(1, 3)
    own = pool.allocate(1)
    pool.acquire(first[:1])
    pool.publish(own, hashes_of(tokens)[1:], tokens[BLOCK_SIZE:], int(hashes_of(tokens)[0]))
    pool.release(np.concatenate([first[:1], own]))
    pool.allocate(2)
    assert match(pool, 1, 2) == first[:1].tolist()
    assert match(pool, 1, 3) == [first[0], own[0]]
    pool.allocate(1)
    assert match(pool, 1, 3) == first[:1].tolist()
    pool.allocate(1)
    assert match(pool, 1) == []


def test_a_second_copy_of_a_cached_block_stays_private() -> None:
    pool = BlockPool(4, BLOCK_SIZE)
    first, second = compute(pool, 1), compute(pool, 1)
    assert match(pool, 1) == first.tolist()
    pool.release(second)
    assert counts(pool) == (3, 0, 1, 0)


def test_a_block_whose_parent_is_not_cached_stays_private() -> None:
    pool = BlockPool(4, BLOCK_SIZE)
    blocks = pool.allocate(1)
    pool.publish(blocks, hashes_of(prompt(5)), prompt(5), parent=12345)
    assert pool.snapshot().tolist() == []


def test_publishing_twice_changes_nothing() -> None:
    pool = BlockPool(4, BLOCK_SIZE)
    blocks = compute(pool, 1, 2)
    pool.publish(blocks, hashes_of(prompt(1, 2)), prompt(1, 2), parent=None)
    assert counts(pool) == (2, 0, 2, 0)
    assert pool.drain_events()[0].tolist() == hashes_of(prompt(1, 2)).tolist()


def test_a_block_whose_hash_another_prompt_has_later_on_stays_private() -> None:
    # Only two texts with one hash come to that.
    pool = BlockPool(8, BLOCK_SIZE)
    known = compute(pool, 1, 2)
    hashes = hashes_of(prompt(1, 2))
    blocks, other = pool.allocate(3), hashes_of(prompt(9, 9, 9))
    pool.publish(blocks, np.array([other[0], hashes[1], other[2]]), prompt(9, 8, 7), parent=None)
    pool.validate()
    assert pool.drain_events()[0].tolist() == [*hashes.tolist(), int(other[0])]
    pool.release(known)
    assert counts(pool) == (3, 2, 3, 0)
    assert match(pool, 1, 2) == known.tolist()


def test_a_chain_that_has_one_hash_twice_ends_before_the_second() -> None:
    pool = BlockPool(4, BLOCK_SIZE)
    first, second = hashes_of(prompt(1, 2)).tolist()
    blocks = pool.allocate(3)
    hashes = np.array([first, second, second], dtype=np.uint64)
    pool.publish(blocks, hashes, prompt(1, 2, 3), parent=None)
    pool.validate()
    assert pool.snapshot().tolist() == [first, second]


def test_what_is_available_can_be_allocated_even_under_held_descendants() -> None:
    # Two prompts compute the same first block at once; the loser of that race continues under
    # the winner's block and outlives it.
    pool = BlockPool(4, BLOCK_SIZE)
    winner, loser = compute(pool, 1), compute(pool, 1, 2)
    pool.release(winner)
    assert pool.num_available == 2
    assert pool.allocate(2) is not None
    assert pool.snapshot().tolist() == []
    pool.release(loser)
    assert counts(pool) == (2, 0, 2, 0)


def full_of_cache() -> BlockPool:
    """Two free blocks, and three prompts in the cache, two of which begin alike."""
    pool = BlockPool(12, BLOCK_SIZE)
    cache(pool, 1, 2, 3, 4)
    cache(pool, 5, 6, 7)
    held = pool.match_prefix(hashes_of(prompt(1, 2)), prompt(1, 2))
    pool.acquire(held)
    longer, fresh = prompt(1, 2, 8, 9, 10), pool.allocate(3)
    pool.publish(fresh, hashes_of(longer)[2:], longer[2 * BLOCK_SIZE :], int(hashes_of(longer)[1]))
    pool.release(np.concatenate([held, fresh]))
    return pool


@pytest.mark.parametrize("first", range(13))
def test_two_allocations_give_what_one_for_both_gives(first: int) -> None:
    once, twice = full_of_cache(), full_of_cache()
    blocks = [*twice.allocate(first), *twice.allocate(12 - first)]
    assert blocks == once.allocate(12).tolist()
    assert counts(once) == counts(twice) == (0, 0, 12, 0)


@pytest.mark.parametrize("most", [1, 2, 5, 12, 20])
def test_allocating_easily_is_allocating_one_by_one(most: int) -> None:
    together, single = full_of_cache(), full_of_cache()
    wanted = [int(single.allocate(1)[0]) for _ in range(min(most, 12))]
    assert together.allocate_easily(most).tolist() == wanted
    assert counts(together) == counts(single)


def test_allocating_easily_takes_nothing_out_of_the_cache_that_somebody_holds() -> None:
    pool = BlockPool(4, BLOCK_SIZE)
    first, again = compute(pool, 1), pool.allocate(2)
    # Somebody else computed the same beginning: its block stays private, what follows hangs under
    # the first one's.
    tokens = prompt(1, 2)
    pool.publish(again, hashes_of(tokens), tokens, parent=None)
    pool.release(first)
    assert len(pool.allocate_easily(2)) == 1
    assert counts(pool) == (0, 1, 3, 0)
    assert len(pool.allocate(1)) == 1


def test_a_chain_is_extended_only_by_blocks_that_are_new() -> None:
    pool = BlockPool(4, BLOCK_SIZE)
    block = int(compute(pool, 1)[0])
    fresh, tokens = int(pool.allocate(1)[0]), prompt(1, 2)
    before, value = hashes_of(tokens).tolist()
    assert pool.can_extend([value], [(before, block)])
    assert not pool.can_extend([value], [(before, fresh)])
    pool.extend(fresh, value, tokens[BLOCK_SIZE:], block)
    assert match(pool, 1, 2) == [block, fresh]
    assert not pool.can_extend([value], [(before, block)])
    with pytest.raises(InternalError, match="it is not new"):
        pool.extend(fresh, value, tokens[BLOCK_SIZE:], block)
    pool.validate()


def test_quarantined_blocks_are_neither_free_nor_reusable_until_they_are_let_go() -> None:
    pool = BlockPool(2, BLOCK_SIZE)
    blocks = pool.allocate(2)
    pool.quarantine(blocks)
    assert counts(pool) == (0, 0, 0, 2)
    assert pool.allocate(1) is None
    pool.unquarantine(blocks)
    assert counts(pool) == (2, 0, 0, 0)


def test_events_tell_what_was_stored_and_removed() -> None:
    pool = BlockPool(2, BLOCK_SIZE)
    cache(pool, 1, 2)
    stored, removed = pool.drain_events()
    assert (stored.tolist(), removed.tolist()) == (hashes_of(prompt(1, 2)).tolist(), [])
    pool.allocate(1)
    stored, removed = pool.drain_events()
    assert (stored.tolist(), removed.tolist()) == ([], hashes_of(prompt(1, 2))[1:].tolist())


def test_a_hash_stored_and_removed_between_two_drains_leaves_no_event() -> None:
    pool = BlockPool(1, BLOCK_SIZE)
    cache(pool, 1)
    pool.allocate(1)
    stored, removed = pool.drain_events()
    assert len(stored) == len(removed) == 0


def test_a_hash_removed_and_stored_again_between_two_drains_leaves_no_event() -> None:
    pool = BlockPool(1, BLOCK_SIZE)
    cache(pool, 1)
    pool.drain_events()
    pool.release(pool.allocate(1))
    cache(pool, 1)
    stored, removed = pool.drain_events()
    assert len(stored) == len(removed) == 0


def test_a_hot_block_does_not_grow_the_eviction_queue() -> None:
    pool = BlockPool(4, BLOCK_SIZE)
    blocks = cache(pool, 1)
    for _ in range(1_000):
        pool.acquire(blocks)
        pool.release(blocks)
    assert len(pool._cache._leaves) < 50


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda pool, held, kept: pool.release(ids(5)), "release of block 5 (free"),
        (lambda pool, held, kept: pool.release(kept), "nobody holds it"),
        (lambda pool, held, kept: pool.release(ids(0, 0)), "twice in one call"),
        (lambda pool, held, kept: pool.release(ids(8)), "ids go from 0 to 7"),
        (lambda pool, held, kept: pool.release(ids(-1)), "ids go from 0 to 7"),
        (lambda pool, held, kept: pool.release(np.append(held, 5)), "release of block 5"),
        (lambda pool, held, kept: pool.acquire(ids(5)), "only cached or held"),
        (lambda pool, held, kept: pool.quarantine(kept), "must be uncached"),
        (lambda pool, held, kept: pool.quarantine(ids(5)), "must be uncached"),
        (lambda pool, held, kept: pool.unquarantine(held), "not in quarantine"),
        (lambda pool, held, kept: pool.publish(ids(5), hashes_of(prompt(1)), prompt(1), None),
         "only its holder may"),
        (lambda pool, held, kept: pool.publish(held, hashes_of(prompt(1)), prompt(1), None),
         "1 hashes and 4 tokens"),
    ],
)  # fmt: skip
def test_misuse_is_refused_with_the_story_and_changes_nothing(misuse, message: str) -> None:
    pool = BlockPool(8, BLOCK_SIZE)
    held, kept = pool.allocate(2), cache(pool, 3)
    before = counts(pool)
    with pytest.raises(InternalError) as caught:
        misuse(pool, held, kept)
    assert message in caught.value.message
    assert caught.value.reason == "BLOCK_MISUSE"
    assert counts(pool) == before


def test_a_shared_block_can_not_be_quarantined() -> None:
    pool = BlockPool(2, BLOCK_SIZE)
    blocks = pool.allocate(1)
    pool.acquire(blocks)
    with pytest.raises(InternalError, match="refs 2"):
        pool.quarantine(blocks)


def test_a_cached_block_can_not_be_published_under_another_hash() -> None:
    pool = BlockPool(2, BLOCK_SIZE)
    blocks = compute(pool, 1)
    with pytest.raises(InternalError, match="cached under another hash"):
        pool.publish(blocks, hashes_of(prompt(2)), prompt(2), parent=None)


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 4), (4, 0)])
def test_a_pool_without_blocks_or_tokens_is_refused(num_blocks: int, block_size: int) -> None:
    with pytest.raises(InvalidField):
        BlockPool(num_blocks, block_size)


def test_generations_of_the_wrong_size_are_refused() -> None:
    with pytest.raises(InvalidField, match="generations"):
        BlockPool(4, 4, generations=np.zeros(3, dtype=np.uint64))


@pytest.mark.parametrize(
    ("damage", "invariant_name"),
    [
        (lambda pool: pool._refs.__setitem__(7, 1), "num_leased"),
        (lambda pool: pool._free.__setitem__(0, pool._free[1]), "free list is unique"),
        (lambda pool: pool._cache._block_of.popitem(), "hash map and arrays agree"),
        (lambda pool: pool._cache._children.__setitem__(7, 1), "children counts"),
        (lambda pool: pool._in_quarantine.__setitem__(7, True), "num_quarantined"),
        (lambda pool: pool._cache._leaves._heap.clear(), "every evictable leaf"),
    ],
)
def test_validate_names_the_broken_invariant(damage, invariant_name: str) -> None:
    pool = BlockPool(8, BLOCK_SIZE)
    cache(pool, 1, 2)
    damage(pool)
    with pytest.raises(InternalError, match=invariant_name):
        pool.validate()


class PoolModel(RuleBasedStateMachine):
    """Sequences come and go; a router replays events; a plain model says what must be there.

    The model: ``held`` lists each sequence's blocks, ``entries`` maps a cached hash to
    [block, parent hash, last use], ``isolated`` is quarantine. Refs and states follow from them.
    """

    SIZE = 12

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(self.SIZE, BLOCK_SIZE)
        self.held: list[list[int]] = []
        self.isolated: list[int] = []
        self.entries: dict[int, list] = {}
        self.router: set[int] = set()
        self.used = 0

    def refs(self, block: int) -> int:
        return sum(blocks.count(block) for blocks in self.held)

    def cached_hash(self, block: int) -> int | None:
        return next((h for h, entry in self.entries.items() if entry[0] == block), None)

    def unheld(self) -> list[int]:
        return [h for h, entry in self.entries.items() if self.refs(entry[0]) == 0]

    def has_children(self, value: int) -> bool:
        return any(entry[1] == value for entry in self.entries.values())

    def num_free(self) -> int:
        busy = {b for blocks in self.held for b in blocks} | set(self.isolated)
        return self.SIZE - len(busy | {entry[0] for entry in self.entries.values()})

    def evict(self) -> bool:
        """Evict as the rules say; False if only blocks under held ones are left (order open)."""
        leaves = [h for h in self.unheld() if not self.has_children(h)]
        if not leaves:
            return False
        del self.entries[min(leaves, key=lambda h: (self.entries[h][2], self.entries[h][0]))]
        return True

    def adopt_evictions(self) -> None:
        """Only which held leaf goes private first is left open: follow the pool there."""
        kept = set(self.pool.snapshot().tolist())
        self.entries = {h: entry for h, entry in self.entries.items() if h in kept}

    def allocate(self, count: int) -> list[int] | None:
        possible = count <= self.num_free() + len(self.unheld())
        evictions = max(0, count - self.num_free())
        blocks = self.pool.allocate(count)
        assert (blocks is not None) == possible
        if blocks is None:
            return None
        if not all(self.evict() for _ in range(evictions)):
            self.adopt_evictions()
        return blocks.tolist()

    @rule(words=st.lists(st.integers(0, 2), min_size=1, max_size=6), published=st.booleans())
    def start_sequence(self, words: list[int], published: bool) -> None:
        tokens = prompt(*words)
        hashes = hashes_of(tokens)
        hit = self.pool.match_prefix(hashes, tokens)
        expected = []
        for value in hashes.tolist():
            if value not in self.entries:
                break
            expected.append(self.entries[value][0])
        assert hit.tolist() == expected
        self.pool.acquire(hit)
        self.held.append(hit.tolist())
        own = self.allocate(len(words) - len(hit))
        if own is None:
            self.drop(len(self.held) - 1)
            return
        self.held[-1] += own
        if published:
            self.publish(own, hashes, tokens, len(hit))

    @rule(words=st.lists(st.integers(0, 2), min_size=1, max_size=4))
    def start_without_looking(self, words: list[int]) -> None:
        """As when two prompts are computed at the same time."""
        own = self.allocate(len(words))
        if own is not None:
            self.held.append(own)
            self.publish(own, hashes_of(prompt(*words)), prompt(*words), 0)

    def publish(self, own: list[int], hashes: np.ndarray, tokens: np.ndarray, start: int) -> None:
        parent = int(hashes[start - 1]) if start else None
        self.pool.publish(ids(*own), hashes[start:], tokens[start * BLOCK_SIZE :], parent)
        for block, value in zip(own, hashes[start:].tolist(), strict=True):
            if value not in self.entries and (parent is None or parent in self.entries):
                self.entries[value] = [block, parent, 0]
            parent = value

    def drop(self, index: int) -> None:
        blocks = self.held.pop(index)
        self.pool.release(ids(*blocks))
        self.used += 1
        for block in blocks:
            value = self.cached_hash(block)
            if value is not None and self.refs(block) == 0:
                self.entries[value][2] = self.used

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def end_sequence(self, data: st.DataObject) -> None:
        self.drop(data.draw(st.integers(0, len(self.held) - 1)))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def lose_sequence(self, data: st.DataObject) -> None:
        blocks = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        private = [b for b in blocks if self.cached_hash(b) is None]
        self.pool.quarantine(ids(*private))
        self.isolated += private
        self.held.append([b for b in blocks if b not in private])
        self.drop(len(self.held) - 1)

    @rule()
    def end_quarantine(self) -> None:
        self.pool.unquarantine(ids(*self.isolated))
        self.isolated = []

    @rule()
    def tell_router(self) -> None:
        stored, removed = (set(part.tolist()) for part in self.pool.drain_events())
        assert not stored & self.router
        assert removed <= self.router
        self.router = (self.router | stored) - removed
        assert self.router == set(self.entries)

    @invariant()
    def pool_and_model_agree(self) -> None:
        self.pool.validate()
        assert set(self.pool.snapshot().tolist()) == set(self.entries)
        assert self.pool.num_free == self.num_free()
        assert self.pool.num_cached == len(self.unheld())
        assert self.pool.num_quarantined == len(self.isolated)
        for block in range(self.SIZE):
            assert self.pool._refs[block] == self.refs(block)


TestPoolModel = PoolModel.TestCase
TestPoolModel.settings = settings(max_examples=examples(150), stateful_step_count=40, deadline=None)
