"""The prefix index against the simplest model of it: a set of hashes per worker."""

from collections.abc import Iterable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from amounts import examples
from router.placement import WorkerId
from router.prefix_index import PrefixIndex

A, B, C = (WorkerId(name, 1) for name in "abc")
WORKERS = [A, B, C]


def hashes(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def overlaps(
    index: PrefixIndex, chain: list[int], asked: Iterable[WorkerId]
) -> dict[WorkerId, int]:
    """What `overlap` says of each, and `overlaps` of all; workers with nothing are left out."""
    each = {worker: index.overlap(hashes(chain), worker) for worker in asked}
    numbers = {worker: index.number(worker) for worker in asked}
    together = index.overlaps(hashes(chain), max(numbers.values(), default=-1) + 1)
    assert {worker: together.of(number) for worker, number in numbers.items()} == each
    return {worker: count for worker, count in each.items() if count}


def leading(chain: list[int], held: set[int]) -> int:
    count = 0
    for block in chain:
        if block not in held:
            break
        count += 1
    return count


@given(
    length=st.integers(0, 70),
    held=st.tuples(*[st.integers(0, 70)] * 3),
    asked=st.sets(st.sampled_from(WORKERS)),
)
def test_overlap_is_the_number_of_leading_blocks(
    length: int, held: tuple[int, int, int], asked: set[WorkerId]
) -> None:
    chain = list(range(100, 100 + length))
    index = PrefixIndex()
    for worker, count in zip(WORKERS, held, strict=True):
        index.stored(worker, hashes(chain[:count]))
    found = overlaps(index, chain, asked)
    expected = {w: min(n, length) for w, n in zip(WORKERS, held, strict=True) if w in asked}
    assert {w: n for w, n in expected.items() if n} == found


def test_the_last_bit_of_a_removed_worker_goes_to_the_next_one() -> None:
    index = PrefixIndex()
    index.stored(A, hashes([1, 2, 3]))
    index.stored(B, hashes([1]))
    index.remove_worker(A)
    assert len(index) == 1
    assert overlaps(index, [1, 2, 3], WORKERS) == {B: 1}
    index.stored(C, hashes([1, 2]))
    assert overlaps(index, [1, 2, 3], WORKERS) == {B: 1, C: 2}


def test_two_lives_of_a_worker_are_two_workers() -> None:
    index = PrefixIndex()
    index.stored(A, hashes([1]))
    assert overlaps(index, [1], [WorkerId("a", 2)]) == {}


def test_hashes_of_the_full_64_bits() -> None:
    index = PrefixIndex()
    index.stored(A, hashes([2**64 - 1]))
    assert overlaps(index, [2**64 - 1], [A]) == {A: 1}


# Blocks form a tree (parent i // 2); a worker stores below what it has and evicts leaves only.
BLOCKS = st.integers(1, 60)


class IndexAgainstSets(RuleBasedStateMachine):
    @initialize(slice_blocks=st.sampled_from([2, 1000]))
    def start(self, slice_blocks: int) -> None:
        self.index = PrefixIndex(slice_blocks)
        self.held: dict[WorkerId, set[int]] = {worker: set() for worker in WORKERS}

    @rule(worker=st.sampled_from(WORKERS), block=BLOCKS)
    def store_a_chain(self, worker: WorkerId, block: int) -> None:
        chain = chain_to(block)
        self.held[worker].update(chain)
        self.index.stored(worker, hashes(chain))

    @rule(worker=st.sampled_from(WORKERS), data=st.data())
    def evict_a_leaf(self, worker: WorkerId, data: st.DataObject) -> None:
        held = self.held[worker]
        leaves = sorted(b for b in held if not {2 * b, 2 * b + 1} & held)
        if leaves:
            leaf = data.draw(st.sampled_from(leaves))
            held.remove(leaf)
            self.index.removed(worker, hashes([leaf]))

    @rule(worker=st.sampled_from(WORKERS), block=BLOCKS)
    def expect_a_chain_for_a_moment(self, worker: WorkerId, block: int) -> None:
        chain = chain_to(block)
        held = leading(chain, self.held[worker])
        self.index.expect(worker, chain[held:])
        assert self.index.overlap(hashes(chain), worker) == len(chain)
        self.index.unexpect(worker, chain[held:])
        assert self.index.overlap(hashes(chain), worker) == held

    @rule(worker=st.sampled_from(WORKERS), gone=st.booleans())
    def forget(self, worker: WorkerId, gone: bool) -> None:
        self.held[worker].clear()
        (self.index.remove_worker if gone else self.index.reset)(worker)

    @rule(block=BLOCKS)
    def ask(self, block: int) -> None:
        chain = chain_to(block)
        found = overlaps(self.index, chain, WORKERS)
        counts = {worker: leading(chain, held) for worker, held in self.held.items()}
        assert found == {worker: count for worker, count in counts.items() if count}

    @invariant()
    def knows_what_is_held(self) -> None:
        held = set().union(*self.held.values())
        assert len(self.index) >= len(held)
        assert all(self.index.is_known(block) for block in held)

    def teardown(self) -> None:
        """In the end it holds hardly more: changes go on until all is cleared."""
        for _ in range(200):
            self.index.removed(A, hashes([]))
        assert len(self.index) * 15 / 16 <= len(set().union(*self.held.values()))


def chain_to(block: int) -> list[int]:
    chain = []
    while block:
        chain.append(block)
        block //= 2
    return chain[::-1]


TestIndexAgainstSets = IndexAgainstSets.TestCase
TestIndexAgainstSets.settings = settings(
    max_examples=examples(60), stateful_step_count=30, deadline=None
)
