"""Both prefix indexes against the simplest model, a set of hashes per worker, and each other."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from amounts import examples
from native import library
from router.placement import WorkerId
from router.prefix_index.compiled_index import CompiledIndex
from router.prefix_index.prefix_index import PrefixIndex, new_index
from router.prefix_index.python_index import PythonIndex

A, B, C = (WorkerId(name, 1) for name in "abc")
WORKERS = [A, B, C]


def compiled() -> CompiledIndex:
    brief = library.choice().brief
    if brief is None:
        pytest.skip(library.choice().reason)
    return CompiledIndex(brief)


both_indexes = pytest.mark.parametrize("make", [PythonIndex, compiled])


def hashes(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def overlaps(
    index: PrefixIndex, chain: list[int], asked: Iterable[WorkerId]
) -> dict[WorkerId, int]:
    """Workers with nothing are left out."""
    numbers = {worker: index.number(worker) for worker in asked}
    found = index.overlaps(hashes(chain), max(numbers.values(), default=-1) + 1)
    each = {worker: found.of(number) for worker, number in numbers.items()}
    return {worker: count for worker, count in each.items() if count}


def leading(chain: list[int], held: set[int]) -> int:
    count = 0
    for block in chain:
        if block not in held:
            break
        count += 1
    return count


@both_indexes
@given(
    length=st.integers(0, 70),
    held=st.tuples(*[st.integers(0, 70)] * 3),
    asked=st.sets(st.sampled_from(WORKERS)),
)
def test_overlap_is_the_number_of_leading_blocks(
    make: Callable[[], PrefixIndex],
    length: int,
    held: tuple[int, int, int],
    asked: set[WorkerId],
) -> None:
    chain = list(range(100, 100 + length))
    index = make()
    for worker, count in zip(WORKERS, held, strict=True):
        index.stored(worker, hashes(chain[:count]))
    found = overlaps(index, chain, asked)
    expected = {w: min(n, length) for w, n in zip(WORKERS, held, strict=True) if w in asked}
    assert {w: n for w, n in expected.items() if n} == found


@both_indexes
def test_the_last_bit_of_a_removed_worker_goes_to_the_next_one(
    make: Callable[[], PrefixIndex],
) -> None:
    index = make()
    index.stored(A, hashes([1, 2, 3]))
    index.stored(B, hashes([1]))
    index.remove_worker(A)
    assert len(index) == 1
    assert overlaps(index, [1, 2, 3], WORKERS) == {B: 1}
    index.stored(C, hashes([1, 2]))
    assert overlaps(index, [1, 2, 3], WORKERS) == {B: 1, C: 2}


@both_indexes
def test_two_lives_of_a_worker_are_two_workers(make: Callable[[], PrefixIndex]) -> None:
    index = make()
    index.stored(A, hashes([1]))
    assert overlaps(index, [1], [WorkerId("a", 2)]) == {}


@both_indexes
def test_hashes_of_the_full_64_bits(make: Callable[[], PrefixIndex]) -> None:
    index = make()
    index.stored(A, hashes([2**64 - 1, 0]))
    assert overlaps(index, [2**64 - 1, 0], [A]) == {A: 2}


def test_the_compiled_index_is_used_where_there_is_one() -> None:
    assert isinstance(new_index(), type(compiled()))


def test_without_a_compiled_index_there_is_one_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    none = library.Choice(None, None, None, "not built")
    monkeypatch.setattr(library, "choice", lambda: none)
    assert isinstance(new_index(), PythonIndex)


# Blocks form a tree (parent i // 2); a worker stores below what it has and evicts leaves only.
BLOCKS = st.integers(1, 60)


class IndexAgainstSets(RuleBasedStateMachine):
    @initialize(index=st.sampled_from([lambda: PythonIndex(2), PythonIndex, compiled]))
    def start(self, index: Callable[[], PrefixIndex]) -> None:
        self.index = index()
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
        self.index.expect(worker, hashes(chain[held:]))
        assert overlaps(self.index, chain, [worker]) == {worker: len(chain)}
        self.index.unexpect(worker, hashes(chain[held:]))
        assert overlaps(self.index, chain, [worker]) == ({worker: held} if held else {})

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


# More workers than one word of the compiled index has bits.
MANY = [WorkerId(f"w{number}", 1) for number in range(70)]
# So many blocks that the tables of the compiled index grow.
LONGEST = 6000
ANY_BLOCKS = st.lists(st.integers(0, 300) | st.integers(0, LONGEST - 1), max_size=40)


class BothIndexes(RuleBasedStateMachine):
    """Whatever workers tell, in whatever order: not only chains that end at a leaf."""

    @initialize(slice_blocks=st.sampled_from([2, 1000]), seed=st.integers(0, 2**32))
    def start(self, slice_blocks: int, seed: int) -> None:
        self.indexes: tuple[PrefixIndex, ...] = (PythonIndex(slice_blocks), compiled())
        self.names = np.random.default_rng(seed).integers(0, 2**64, LONGEST, dtype=np.uint64)

    def same(self, ask: Callable[[PrefixIndex], Any]) -> None:
        in_python, in_cpp = map(ask, self.indexes)
        assert in_python == in_cpp

    @rule(worker=st.sampled_from(MANY), blocks=ANY_BLOCKS, what=st.sampled_from("srxu"))
    def change(self, worker: WorkerId, blocks: list[int], what: str) -> None:
        chosen = self.names[np.array(blocks, dtype=np.intp)]
        for index in self.indexes:
            if what == "s":
                index.stored(worker, chosen)
            elif what == "r":
                index.removed(worker, np.unique(chosen))
            elif what == "x":
                index.expect(worker, chosen)
            else:
                index.unexpect(worker, np.unique(chosen))

    @rule(
        first=st.integers(0, 60),
        count=st.integers(1, 10),
        start=st.integers(0, LONGEST // 2),
        length=st.integers(1, LONGEST),
        store=st.booleans(),
    )
    def several_store_or_drop(
        self, first: int, count: int, start: int, length: int, store: bool
    ) -> None:
        part = self.names[start : start + length]
        for index in self.indexes:
            for worker in MANY[first : first + count]:
                (index.stored if store else index.removed)(worker, part)

    @rule(worker=st.sampled_from(MANY), gone=st.booleans())
    def forget(self, worker: WorkerId, gone: bool) -> None:
        for index in self.indexes:
            (index.remove_worker if gone else index.reset)(worker)

    @rule(blocks=ANY_BLOCKS, length=st.integers(0, LONGEST))
    def ask(self, blocks: list[int], length: int) -> None:
        for asked in (self.names[:length], self.names[np.array(blocks, dtype=np.intp)]):
            self.same(lambda index, asked=asked: together(index, asked))

    @invariant()
    def tell_the_same_of_each_worker_and_block(self) -> None:
        self.same(lambda index: [index.num_held(worker) for worker in MANY])
        blocks = [int(self.names[at]) for at in (0, 20, 300, LONGEST // 2, LONGEST - 1)]
        self.same(lambda index: [index.holds(w, block) for w in MANY[:3] for block in blocks])
        in_python, in_cpp = self.indexes
        # Here those are gone at once that nobody holds any more.
        assert len(in_cpp) <= len(in_python)
        assert all(in_python.is_known(block) for block in blocks if in_cpp.is_known(block))


def together(index: PrefixIndex, asked: np.ndarray) -> list[int]:
    numbers = [index.number(worker) for worker in MANY]
    found = index.overlaps(asked, len(MANY))
    return [found.of(number) for number in numbers]


TestBothIndexes = BothIndexes.TestCase
TestBothIndexes.settings = settings(
    max_examples=examples(60), stateful_step_count=40, deadline=None
)
