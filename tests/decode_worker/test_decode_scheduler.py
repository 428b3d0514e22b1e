"""D's sequences and steps: who gets blocks, what steps hold, who is preempted, how answers end."""

from __future__ import annotations

import numpy as np
import pytest

from core.block_pool import BlockPool
from core.errors import InvalidField
from core.handoff import FailureCause
from core.lease_events import FailAttempt
from core.outputs import TokenOutput
from core.prefill_order import PATIENCE
from core.references import check_references
from core.request import AttemptKey, FinishReason, RequestKey, SamplingParams
from core.step import BlockCopy, SampledToken, StepPlan, StepResult
from decode_worker.scheduler import DecodeScheduler
from decode_worker.sequence_table import SequenceTable

SIZE = 4
EOS = 99


def key(name: str) -> AttemptKey:
    return AttemptKey(RequestKey("default", name), 1)


def tokens(count: int, first: int = 1) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.int32)


class Desk:
    """A scheduler with its pool and sequences; steps draw the token 7 unless told otherwise."""

    def __init__(
        self,
        num_blocks: int = 20,
        max_num_seqs: int = 4,
        budget: int = 8,
        depth: int = 1,
    ) -> None:
        self.pool = BlockPool(num_blocks, SIZE)
        self.sequences = SequenceTable(self.pool, max_num_seqs=max_num_seqs, eos=frozenset({EOS}))
        self.scheduler = DecodeScheduler(self.sequences, max_num_batched_tokens=budget, depth=depth)

    def local(self, name: str, length: int, first: int = 1, **params: object) -> None:
        sampling = SamplingParams(**({"max_tokens": 8} | params))  # type: ignore[arg-type]
        self.sequences.add_local(key(name), tokens(length, first), sampling, 0, 0.0)
        self.sequences.admit(0)

    def plan(self) -> StepPlan:
        plan = self.scheduler.plan_step(0.0)
        assert plan is not None
        return plan

    def complete(self, plan: StepPlan, token: int = 7, seconds: float = 0.0) -> list[TokenOutput]:
        drawn = {s.sequence_id: (SampledToken(token),) * len(s.samples) for s in plan.slices}
        outputs = self.scheduler.complete_step(plan, StepResult(drawn), seconds)
        self.sequences.admit(0)
        assert all(isinstance(output, TokenOutput) for output in outputs)
        return outputs  # type: ignore[return-value]

    def step(self, token: int = 7) -> list[TokenOutput]:
        return self.complete(self.plan(), token)

    def validate(self) -> None:
        self.pool.validate()
        check_references(self.pool, self.sequences.held_references())


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_slice_made_ahead_holds_the_token_that_is_drawn_after_it(desk: Desk) -> None:
    desk.local("a", 5, min_tokens=3, stop_token_ids=(50,))
    desk.step(token=11)
    plan = desk.plan()
    desk.scheduler.prepare_next()
    desk.complete(plan, token=12)
    [ahead] = desk.plan().slices
    assert (ahead.start, ahead.tokens.tolist()) == (6, [12])
    [spec] = ahead.samples
    assert (spec.position, spec.tokens.tolist()) == (7, [1, 2, 3, 4, 5, 11, 12])
    assert spec.banned_token_ids == (50, EOS)


def test_a_slice_made_ahead_is_dropped_with_the_blocks(desk: Desk) -> None:
    desk.local("a", 5)
    plan = desk.plan()
    desk.scheduler.prepare_next()
    desk.sequences.end(key("a"))
    assert desk.complete(plan) == []
    desk.scheduler.prepare_next()
    desk.validate()
    assert desk.sequences.idle


def test_a_long_prompt_is_computed_in_chunks_and_then_decoded(desk: Desk) -> None:
    desk.local("a", 18)
    sizes, drawn = [], []
    for _ in range(4):
        plan = desk.plan()
        sizes.append(plan.num_tokens)
        drawn.append(len(desk.complete(plan)))
    assert sizes == [8, 8, 2, 1]
    assert drawn == [0, 0, 1, 1]


def test_decoding_goes_first_and_prefill_fills_what_is_left(desk: Desk) -> None:
    desk.local("short", 3)
    desk.step()
    desk.local("long", 30, first=100)
    plan = desk.plan()
    assert [len(s.tokens) for s in plan.slices] == [1, 7]
    desk.complete(plan)
    desk.validate()


def test_the_queue_is_served_in_order_even_if_a_later_one_would_fit() -> None:
    desk = Desk(num_blocks=6)
    desk.local("first", 12)
    desk.local("large", 16, first=100)
    desk.local("small", 2, first=200)
    assert (desk.sequences.load.running, desk.sequences.load.waiting) == (1, 2)
    desk.sequences.end(key("first"))
    desk.sequences.admit(0)
    assert desk.sequences.load.running == 1, "only the large one: it takes five of six blocks"


def test_the_youngest_is_preempted_and_resumes_first() -> None:
    desk = Desk(num_blocks=6)
    desk.local("old", 7, max_tokens=12)
    desk.local("young", 7, first=100, max_tokens=12)
    finished: list[AttemptKey] = []
    while len(finished) < 2:
        finished += [output.key for output in desk.step() if output.finish]
        desk.validate()
    assert desk.sequences.counters.preemptions > 0
    assert finished == [key("old"), key("young")]
    assert desk.sequences.counters.prefill_tokens_computed == 14
    assert desk.sequences.counters.recomputed_tokens > 0
    assert desk.pool.num_leased == 0


def test_a_prompt_that_is_all_in_cache_computes_its_last_block_only(desk: Desk) -> None:
    desk.local("first", 8, max_tokens=1)
    desk.step()
    desk.local("again", 8, max_tokens=1)
    plan = desk.plan()
    assert [(s.start, len(s.tokens)) for s in plan.slices] == [(4, 4)]
    (output,) = desk.complete(plan)
    assert (output.first, output.cached_tokens) == (True, 4)


@pytest.mark.parametrize(
    ("params", "drawn", "finish"),
    [
        ({}, EOS, FinishReason.STOP),
        ({"ignore_eos": True}, EOS, None),
        ({"stop_token_ids": (7,)}, 7, FinishReason.STOP),
        ({"min_tokens": 2}, EOS, None),
        ({"max_tokens": 1}, 7, FinishReason.LENGTH),
    ],
)
def test_how_an_answer_ends(
    desk: Desk, params: dict[str, object], drawn: int, finish: FinishReason | None
) -> None:
    desk.local("a", 3, **params)
    (output,) = desk.step(drawn)
    assert output.finish is finish


def test_before_min_tokens_the_end_is_not_even_drawn(desk: Desk) -> None:
    desk.local("a", 3, min_tokens=1, stop_token_ids=(5,))
    (piece,) = desk.plan().slices
    (sample,) = piece.samples
    assert sample.banned_token_ids == (5, EOS)


def test_blocks_of_an_aborted_sequence_stay_until_its_step_has_ended(desk: Desk) -> None:
    desk.local("a", 5)
    plan = desk.plan()
    assert desk.sequences.end(key("a"))
    assert desk.pool.num_leased > 0
    assert desk.complete(plan) == []
    assert desk.pool.num_leased == 0
    assert not desk.sequences.end(key("a"))


def test_an_answer_is_over_before_its_prompt_and_most_tokens_are_all_computed(desk: Desk) -> None:
    """So the model's last position is the longest that both may be together."""
    desk.local("a", 8, max_tokens=32)
    ends: list[int] = []
    while desk.sequences.load.running:
        plan = desk.plan()
        ends += [piece.end for piece in plan.slices]
        desk.complete(plan)
    assert max(ends) == 8 + 32 - 1


def test_a_cached_prefix_does_not_count_in_the_patience_of_a_prompt() -> None:
    desk = Desk()
    desk.local("first", 20, max_tokens=1)
    while desk.sequences.load.running:
        desk.step()
    desk.local("second", 20)
    order = desk.sequences.prompts
    (waiting,) = order.sequence(0.0)
    assert waiting.remaining == 4, "four blocks of it are in the cache"
    order.add(99, 4 * PATIENCE, 0.0)
    order.planned(99, 4 * PATIENCE)
    assert next(iter(order.sequence(0.0))).is_aged


def test_a_request_that_exactly_fills_the_pool_finishes() -> None:
    desk = Desk(num_blocks=3)
    desk.local("a", 8, max_tokens=4)
    outputs = [output for _ in range(4) for output in desk.step()]
    assert outputs[-1].finish is FinishReason.LENGTH
    desk.validate()


def test_a_budget_that_can_not_hold_a_token_of_each_is_refused() -> None:
    with pytest.raises(InvalidField, match="max_num_batched_tokens"):
        Desk(max_num_seqs=9, budget=8)


# Several answers to one prompt


def test_answers_share_the_full_blocks_of_their_prompt_and_copy_the_last(desk: Desk) -> None:
    desk.local("a", 6, n=3)
    first = desk.step()
    assert [(o.index, o.token, o.first) for o in first] == [
        (0, 7, True),
        (1, 7, True),
        (2, 7, True),
    ]
    plan = desk.plan()
    tables = [piece.block_table.tolist() for piece in plan.slices]
    assert len({table[0] for table in tables}) == 1, "one full block, shared by all"
    assert len({table[1] for table in tables}) == 3, "each writes into a block of its own"
    assert plan.copies == tuple(BlockCopy(tables[0][1], table[1]) for table in tables[1:])
    desk.validate()
    desk.complete(plan)
    assert desk.plan().copies == (), "copied once"


def test_each_answer_draws_with_its_own_index(desk: Desk) -> None:
    desk.local("a", 3, n=2)
    (piece,) = desk.plan().slices
    assert [(s.sequence_index, s.position) for s in piece.samples] == [(0, 3), (1, 3)]


def test_a_prompt_of_full_blocks_needs_no_copy(desk: Desk) -> None:
    desk.local("a", 8, n=2)
    desk.step()
    plan = desk.plan()
    assert plan.copies == ()
    assert len(plan.slices) == 2


def test_answers_without_a_place_wait_behind_those_who_came_before() -> None:
    desk = Desk(max_num_seqs=3)
    desk.local("two", 3, n=2, max_tokens=3)
    desk.local("also two", 3, first=50, n=2, max_tokens=3)
    assert desk.sequences.load.running == 2, "a prompt takes one place"
    assert len(desk.step()) == 4, "each answer has its first token"
    assert (desk.sequences.load.running, desk.sequences.load.waiting) == (3, 1)
    desk.validate()
    ended: list[tuple[AttemptKey, int]] = []
    while len(ended) < 4:
        ended += [(output.key, output.index) for output in desk.step() if output.finish]
        assert desk.sequences.load.running <= 3
        desk.validate()
    assert ended[-1] == (key("also two"), 1)
    assert desk.pool.num_leased == 0


def test_many_answers_hold_nobody_up_until_there_are_places_for_all() -> None:
    desk = Desk(max_num_seqs=4)
    desk.local("runs", 3, max_tokens=8)
    desk.local("wide", 3, first=50, n=4)
    desk.local("narrow", 3, first=90)
    assert desk.sequences.load.running == 3


def test_one_answer_may_end_before_the_others(desk: Desk) -> None:
    desk.local("a", 5, n=3)
    desk.step()
    desk.sequences.end_answer(key("a"), 1)
    outputs = desk.step()
    assert [output.index for output in outputs] == [0, 2]
    desk.validate()
    assert desk.sequences.end(key("a"))
    desk.validate()
    assert desk.pool.num_leased == 0


def test_the_source_of_a_copy_stays_until_the_copy_is_made(desk: Desk) -> None:
    desk.local("a", 6, n=2)
    desk.step()
    desk.sequences.end_answer(key("a"), 0)
    desk.validate()
    plan = desk.plan()
    (copy,) = plan.copies
    assert desk.pool.references[copy.source] == 1
    desk.complete(plan)
    assert desk.pool.references[copy.source] == 0
    desk.validate()


def test_an_answer_without_a_block_of_its_own_waits_and_recomputes() -> None:
    desk = Desk(num_blocks=4, max_num_seqs=4)
    desk.local("a", 6, n=2, max_tokens=10)
    desk.local("other", 6, first=60, max_tokens=2)
    finished: dict[int, int] = {}
    while len(finished) < 2 or desk.sequences.load.waiting:
        for output in desk.step():
            desk.validate()
            if output.finish and output.key == key("a"):
                finished[output.index] = 1
    assert desk.sequences.counters.preemptions > 0
    while desk.sequences.load.running:
        desk.step()
    assert desk.pool.num_leased == 0


def test_logits_that_are_no_numbers_fail_their_own_attempt_only(desk: Desk) -> None:
    desk.local("bad", 3, n=2)
    desk.local("good", 3, first=50)
    plan = desk.plan()
    bad, good = (piece.sequence_id for piece in plan.slices)
    result = StepResult({good: (SampledToken(7),)}, {bad: "the logits hold NaN"})
    failure, output = desk.scheduler.complete_step(plan, result, 0.0)
    assert failure == FailAttempt(key("bad"), FailureCause.INTERNAL, "the logits hold NaN")
    assert output.key == key("good")
    desk.validate()


def test_more_answers_than_blocks_do_not_wait_for_ever() -> None:
    desk = Desk(num_blocks=4)
    desk.local("a", 12, n=4, max_tokens=4)
    ended: set[int] = set()
    while len(ended) < 4:
        ended |= {output.index for output in desk.step() if output.finish}
        desk.validate()
    assert desk.pool.num_leased == 0


# Several steps under way


def starts(plan: StepPlan) -> dict[int, int]:
    return {piece.sequence_id: piece.start for piece in plan.slices}


def decoding(depth: int, count: int, **options: int) -> Desk:
    """A desk with ``count`` sequences of 3 prompt tokens that have their first token."""
    desk = Desk(depth=depth, **options)
    for number in range(count):
        desk.local(str(number), 3, first=10 * number + 1, max_tokens=30)
    while desk.sequences.load.pending_prefill_tokens:
        desk.step()
    return desk


def test_a_sequence_whose_token_is_under_way_is_not_planned_again() -> None:
    desk = decoding(depth=2, count=1)
    plan = desk.plan()
    assert desk.scheduler.plan_step(0.0) is None
    assert len(desk.complete(plan)) == 1
    assert desk.scheduler.plan_step(0.0) is not None


@pytest.mark.parametrize(
    ("depth", "count", "sizes"),
    [(1, 5, [5]), (2, 4, [2, 2]), (2, 5, [3, 2]), (3, 5, [2, 2, 1]), (3, 1, [1])],
)
def test_every_stage_gets_its_share_of_the_decoding_sequences(
    depth: int, count: int, sizes: list[int]
) -> None:
    desk = decoding(depth, count, max_num_seqs=8)
    plans = [desk.plan() for _ in sizes]
    assert [len(plan.slices) for plan in plans] == sizes
    assert desk.scheduler.plan_step(0.0) is None
    ids = [i for plan in plans for i in starts(plan)]
    assert len(set(ids)) == count
    desk.validate()


def test_who_waited_longest_has_its_turn_even_if_new_ones_keep_coming() -> None:
    desk = decoding(depth=2, count=2)
    turns: dict[int, int] = {1: 0, 2: 0}
    for number in range(8):
        # Two answers of two tokens each start and end all the time.
        while desk.sequences.load.running < 4:
            desk.local(f"{number}/{desk.sequences.load.running}", 1, first=90, max_tokens=2)
        plan = desk.plan()
        for sequence_id in starts(plan).keys() & turns:
            turns[sequence_id] += 1
        desk.complete(plan)
    assert turns == {1: 4, 2: 4}


def test_the_next_chunk_of_a_prompt_is_planned_while_one_is_under_way() -> None:
    desk = Desk(depth=3)
    desk.local("a", 18)
    plans = [desk.plan() for _ in range(3)]
    assert [starts(plan) for plan in plans] == [{1: 0}, {1: 8}, {1: 16}]
    assert desk.scheduler.plan_step(0.0) is None
    assert [len(desk.complete(plan)) for plan in plans] == [0, 0, 1]
    assert desk.sequences.counters.prefill_tokens_computed == 18
    desk.validate()


def test_blocks_of_an_aborted_sequence_stay_until_its_last_step_has_ended() -> None:
    desk = Desk(depth=2)
    desk.local("a", 12)
    first, second = desk.plan(), desk.plan()
    desk.sequences.end(key("a"))
    assert desk.complete(first) == []
    assert desk.pool.num_leased > 0
    desk.validate()
    assert desk.complete(second) == []
    assert desk.pool.num_leased == 0
    desk.validate()


def test_a_failed_draw_frees_the_blocks_of_all_answers_once_their_steps_have_ended() -> None:
    desk = Desk(depth=2)
    desk.local("a", 6, n=2)
    desk.step()
    first, second = desk.plan(), desk.plan()
    result = StepResult({}, {first.slices[0].sequence_id: "the logits hold NaN"})
    (failure,) = desk.scheduler.complete_step(first, result, 0.0)
    assert isinstance(failure, FailAttempt)
    assert desk.pool.num_leased > 0, "the other answer is in the second step"
    desk.validate()
    assert desk.complete(second) == []
    assert desk.pool.num_leased == 0
    desk.validate()


def test_a_copy_belongs_to_the_step_that_makes_it() -> None:
    desk = Desk(depth=2)
    desk.local("a", 6, n=2)
    desk.step()
    first, second = desk.plan(), desk.plan()
    assert first.copies == ()
    (copy,) = second.copies
    desk.sequences.end(key("a"))
    desk.complete(first)
    assert desk.pool.references[copy.source] == 1
    desk.validate()
    desk.complete(second)
    assert desk.pool.num_leased == 0
    desk.validate()


def test_a_sequence_under_way_is_never_preempted_and_the_older_one_waits_for_it() -> None:
    desk = Desk(num_blocks=6, depth=2, budget=17)
    desk.local("old", 6, max_tokens=9)
    desk.local("young", 11, first=50, max_tokens=9)
    desk.step()
    desk.complete(desk.plan())
    desk.complete(desk.plan())
    full_block, young = desk.plan(), desk.plan()
    assert (starts(full_block), starts(young)) == ({1: 7}, {2: 12})
    assert desk.pool.num_available == 0, "the younger one took the last block"
    desk.complete(full_block)
    assert desk.scheduler.plan_step(0.0) is None, "the older one waits"
    assert desk.sequences.counters.preemptions == 0
    desk.validate()
    desk.complete(young)
    assert starts(desk.plan()) == {1: 8}, "it has its turn with the blocks of the younger one"
    assert desk.sequences.counters.preemptions == 1
    desk.validate()


def test_the_youngest_of_all_gives_its_own_blocks_up_if_it_lacks_one() -> None:
    desk = Desk(num_blocks=6, depth=2, budget=18)
    desk.local("old", 7, max_tokens=9)
    desk.local("young", 11, first=50, max_tokens=9)
    desk.step()
    desk.complete(desk.plan())
    desk.complete(desk.plan())
    last_block = desk.plan()
    assert starts(last_block) == {1: 8}
    assert desk.scheduler.plan_step(0.0) is None
    assert desk.sequences.load.waiting == 1
    assert desk.pool.num_available == 3
    desk.validate()


# Several prompts to compute


def test_a_short_prompt_passes_a_long_one_that_would_make_it_late(desk: Desk) -> None:
    desk.local("long", 40)
    desk.complete(desk.plan(), seconds=0.4)
    desk.local("short", 6, first=100)
    assert [(s.start, len(s.tokens)) for s in desk.plan().slices] == [(0, 6), (8, 2)]


def test_a_preempted_stream_goes_before_prompts_that_have_not_begun() -> None:
    desk = Desk(num_blocks=6, budget=16)
    desk.local("old", 7, max_tokens=12)
    desk.local("young", 5, first=50, max_tokens=9)
    while desk.sequences.counters.preemptions == 0:
        desk.step()
    desk.sequences.end(key("old"))
    desk.sequences.admit(0)
    desk.local("new", 3, first=90, max_tokens=1)
    again, new = desk.plan().slices
    assert len(again.tokens) > 1
    assert again.sequence_id < new.sequence_id
