"""Arrays that are kept from step to step hold what arrays made from scratch would."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from amounts import examples
from core.block_pool import BlockPool
from core.request import AttemptKey, RequestKey, SamplingParams
from core.sequence import Sequence
from core.step import SampleSpec, Slice, StepPlan
from engine.batch import BatchArrays, batch_arrays
from engine.running_batch import RunningBatch

SIZE = 4
NO_EOS: frozenset[int] = frozenset()
KEY = AttemptKey(RequestKey("default", "a"), 1)


def by_sequence(arrays: BatchArrays) -> dict[int, tuple[object, ...]]:
    """What a step says of each sequence, wherever its row is."""
    found = {}
    for row, part in zip(arrays.sampled_rows, arrays.sampled_slices, strict=True):
        used = -(-int(arrays.lengths[row]) // SIZE)
        found[part.sequence_id] = (
            int(arrays.token_ids[row]),
            int(arrays.positions[row]),
            int(arrays.slots[row]),
            int(arrays.lengths[row]),
            arrays.block_tables[row, :used].tolist(),
        )
    return found


def check_same(kept: BatchArrays, plan: StepPlan) -> None:
    made = batch_arrays(plan, SIZE)
    assert by_sequence(kept) == by_sequence(made)
    assert kept.first_rows.tolist() == made.first_rows.tolist()
    assert sorted(kept.sampled_rows.tolist()) == sorted(made.sampled_rows.tolist())
    assert (kept.num_decodes, kept.longest_query) == (made.num_decodes, made.longest_query)
    assert kept.longest == made.longest
    assert all(
        getattr(kept, name).dtype == getattr(made, name).dtype
        for name in ("token_ids", "positions", "slots", "block_tables", "lengths", "first_rows")
    )
    assert kept.block_tables.flags.c_contiguous


class RunningBatchMachine(RuleBasedStateMachine):
    """Sequences come, decode, lose their blocks and leave; any of them may miss a step."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(400, SIZE)
        self.batch = RunningBatch(SIZE, widest=400)
        self.sequences: list[Sequence] = []
        self.next_id = 0

    def give_blocks(self, sequence: Sequence, end: int) -> None:
        blocks = self.pool.allocate(max(0, -(-end // SIZE) - sequence.num_blocks))
        assert blocks is not None
        sequence.add_blocks(blocks)

    @precondition(lambda self: len(self.sequences) < 20)
    @rule(length=st.integers(2, 60))
    def begin(self, length: int) -> None:
        self.next_id += 1
        prompt = np.arange(length, dtype=np.int32)
        sequence = Sequence(self.next_id, KEY, prompt, SamplingParams(200), 0, SIZE)
        self.give_blocks(sequence, length - 1)
        sequence.advance(length - 1)
        self.sequences.append(sequence)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.sequences))
        self.sequences.remove(gone)
        self.pool.release(gone.forget_blocks())

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def lose_blocks_and_resume(self, data: st.DataObject) -> None:
        """As after preemption, in other blocks and at the same position."""
        sequence = data.draw(st.sampled_from(self.sequences))
        computed = sequence.computed
        lost = sequence.forget_blocks()
        self.give_blocks(sequence, computed)
        self.pool.release(lost)
        sequence.advance(computed)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), prepared=st.booleans())
    def step(self, data: st.DataObject, prepared: bool) -> None:
        chosen = data.draw(st.lists(st.sampled_from(self.sequences), unique=True, min_size=1))
        for sequence in chosen:
            self.give_blocks(sequence, sequence.length)
        plan = StepPlan(tuple(s.plan_slice(1, NO_EOS) for s in chosen))
        check_same(self.batch.arrays_of(plan), plan)
        for sequence in chosen:
            if prepared:
                sequence.prepare_slice(NO_EOS)
            sequence.advance(sequence.length)
            sequence.append(500 + sequence.length)


TestRunningBatchMachine = RunningBatchMachine.TestCase
TestRunningBatchMachine.settings = settings(
    max_examples=examples(60), stateful_step_count=40, deadline=None
)


def slice_of(sequence_id: int, start: int, table: list[int]) -> Slice:
    token = np.array([sequence_id], np.int32)
    spec = SampleSpec(SamplingParams(1), start + 1)
    return Slice(sequence_id, start, token, np.array(table, np.int32), (spec,))


def test_a_table_that_is_no_view_is_read_anew_in_every_step() -> None:
    batch = RunningBatch(SIZE, widest=100)
    for table in ([3, 4], [5, 6], [5, 6, 7]):
        plan = StepPlan((slice_of(1, 6, table),))
        check_same(batch.arrays_of(plan), plan)


def test_tables_are_no_wider_than_the_longest_sequence_and_shrink_after_it() -> None:
    batch = RunningBatch(SIZE, widest=70)
    long = StepPlan((slice_of(1, 4 * 64 - 1, list(range(64))),))
    assert batch.arrays_of(long).block_tables.shape == (1, 70)
    short = StepPlan((slice_of(2, 2, [9]),))
    check_same(batch.arrays_of(short), short)
    assert batch.arrays_of(short).block_tables.shape == (1, 2)


def test_a_step_with_a_prompt_in_it_changes_no_row() -> None:
    batch = RunningBatch(SIZE, widest=100)
    one = StepPlan((slice_of(1, 6, [3, 4]),))
    before = by_sequence(batch.arrays_of(one))
    prompt = Slice(2, 0, np.arange(7, dtype=np.int32), np.array([8, 9, 2], np.int32))
    last = Slice(3, 8, np.array([5], np.int32), np.array([6, 7, 5], np.int32))
    plan = StepPlan((prompt, *one.slices, last))
    mixed, made = batch.arrays_of(plan), batch_arrays(plan, SIZE)
    check_same(mixed, plan)
    assert mixed.longest_query == 7
    assert mixed.token_ids.tolist() == made.token_ids.tolist()
    assert mixed.slots.tolist() == made.slots.tolist()
    assert mixed.positions.tolist() == made.positions.tolist()
    assert mixed.lengths.tolist() == made.lengths.tolist()
    assert mixed.block_tables[1:, :3].tolist() == made.block_tables[1:].tolist()
    assert by_sequence(batch.arrays_of(one)) == before
