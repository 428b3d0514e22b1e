"""What a prefill worker decides: when it asks, announces, commits, answers alone or gives up."""

from __future__ import annotations

import numpy as np
import pytest

from core.block_pool import BlockPool
from core.handoff import (
    Beat,
    Cancel,
    Commit,
    Committed,
    FailureCause,
    LeaseTimes,
    NoRoom,
    Reserve,
    Ticket,
)
from core.outputs import TokenOutput
from core.push import ReportFailure
from core.request import AttemptKey, FinishReason, RequestKey, SamplingParams
from core.step import SampledToken, StepPlan, StepResult
from prefill_worker.messages import (
    Abort,
    AnnouncePieces,
    AttemptEnded,
    DecodeLost,
    FromDecode,
    PrefillerCommand,
    SendToDecode,
    Submit,
    Tick,
)
from prefill_worker.prefiller import Prefiller, consecutive_runs

SIZE = 4
EOS = 99
STOP_TEXT_TOKEN = 50


def key(name: str) -> AttemptKey:
    return AttemptKey(RequestKey("default", name), 1)


class Desk:
    """A prefiller with 40 blocks of 4 tokens and chunks of 8."""

    def __init__(
        self, num_blocks: int = 40, depth: int = 1, max_positions: int | None = None
    ) -> None:
        self.pool = BlockPool(num_blocks, SIZE)
        self.prefiller = Prefiller(
            self.pool,
            max_num_seqs=8,
            max_num_batched_tokens=8,
            eos=frozenset({EOS}),
            times=LeaseTimes(),
            ends_by_text=lambda params, token: token == STOP_TEXT_TOKEN,
            depth=depth,
            max_positions=max_positions,
        )

    def submit(
        self, name: str, length: int, first: int = 1, max_tokens: int = 5, n: int = 1
    ) -> list[object]:
        prompt = np.arange(first, first + length, dtype=np.int32)
        event = Submit(key(name), prompt, SamplingParams(max_tokens, n=n), 0, "D0")
        return list(self.prefiller.handle(event, 0.0))

    def ticket(self, name: str, held: int = 0) -> list[PrefillerCommand]:
        return self.prefiller.handle(FromDecode(Ticket(key(name), 5, held)), 0.0)

    def step(self, token: int = 7) -> list[PrefillerCommand]:
        return self.complete(self.plan(), token)

    def complete(self, plan: StepPlan, token: int = 7, now: float = 0.0) -> list[PrefillerCommand]:
        drawn = {s.sequence_id: (SampledToken(token),) * len(s.samples) for s in plan.slices}
        return self.prefiller.complete_step(plan, StepResult(drawn), now)

    def draw(self, *tokens: int) -> list[PrefillerCommand]:
        """A step that draws these first tokens for the only prompt."""
        plan = self.plan()
        (piece,) = plan.slices
        assert len(piece.samples) == len(tokens)
        drawn = {piece.sequence_id: tuple(SampledToken(token) for token in tokens)}
        return self.prefiller.complete_step(plan, StepResult(drawn), 0.0)

    def plan(self, now: float = 0.0) -> StepPlan:
        plan = self.prefiller.plan_step(now)
        assert plan is not None
        return plan

    def is_clean(self) -> bool:
        self.prefiller.validate()
        return self.prefiller.idle and self.pool.num_leased == 0


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_it_reserves_when_it_starts_and_announces_chunk_by_chunk(desk: Desk) -> None:
    (asked,) = desk.submit("a", 11)
    assert isinstance(asked, SendToDecode)
    assert isinstance(asked.message, Reserve)
    assert desk.ticket("a") == []
    (first,) = desk.step()
    assert isinstance(first, AnnouncePieces)
    assert (first.first, len(first.block_ids)) == (0, 2)
    second, commit = desk.step()
    assert isinstance(second, AnnouncePieces)
    assert (second.first, len(second.block_ids)) == (2, 1)
    assert commit == SendToDecode("D0", Commit(key("a"), 5, (SampledToken(7),), 0))
    ended = desk.prefiller.handle(FromDecode(Committed(key("a"), 5)), 0.0)
    assert ended == [AttemptEnded(key("a"))]
    assert desk.is_clean()


def test_announced_blocks_carry_the_generation_of_the_decision(desk: Desk) -> None:
    desk.submit("a", 8)
    desk.ticket("a")
    announced = desk.step()[0]
    assert isinstance(announced, AnnouncePieces)
    current = desk.pool.generation(np.array(announced.block_ids, dtype=np.int32))
    assert announced.generations == tuple(current.tolist())


@pytest.mark.parametrize(
    ("token", "max_tokens", "finish"),
    [
        (EOS, 5, FinishReason.STOP),
        (STOP_TEXT_TOKEN, 5, FinishReason.STOP),
        (7, 1, FinishReason.LENGTH),
    ],
)
def test_a_first_token_that_ends_the_answer_needs_no_decode_worker(
    desk: Desk, token: int, max_tokens: int, finish: FinishReason
) -> None:
    desk.submit("a", 6, max_tokens=max_tokens)
    desk.ticket("a")
    output, cancel, ended = desk.step(token)
    assert output == TokenOutput(key("a"), token, finish, first=True)
    assert isinstance(cancel, SendToDecode)
    assert isinstance(cancel.message, Cancel)
    assert ended == AttemptEnded(key("a"))
    assert desk.is_clean()


def test_several_answers_share_one_prefill_and_one_commit(desk: Desk) -> None:
    desk.submit("a", 6, n=3)
    desk.ticket("a")
    _, commit = desk.draw(7, EOS, 9)
    first_tokens = (SampledToken(7), SampledToken(EOS), SampledToken(9))
    assert commit == SendToDecode("D0", Commit(key("a"), 5, first_tokens, 0))


def test_several_answers_that_all_end_with_the_first_token(desk: Desk) -> None:
    desk.submit("a", 6, n=2)
    desk.ticket("a")
    one, two, *_ = desk.draw(EOS, STOP_TEXT_TOKEN)
    assert one == TokenOutput(key("a"), EOS, FinishReason.STOP, first=True)
    assert two == TokenOutput(key("a"), STOP_TEXT_TOKEN, FinishReason.STOP, first=True, index=1)
    assert desk.is_clean()


def test_logits_that_are_no_numbers_fail_the_attempt(desk: Desk) -> None:
    desk.submit("a", 6)
    desk.ticket("a")
    plan = desk.plan()
    result = StepResult(failed={plan.slices[0].sequence_id: "the logits hold NaN"})
    cancel, failure, ended = desk.prefiller.complete_step(plan, result, 0.0)
    assert isinstance(cancel, SendToDecode)
    assert isinstance(cancel.message, Cancel)
    assert failure == ReportFailure(key("a"), FailureCause.INTERNAL, "the logits hold NaN")
    assert ended == AttemptEnded(key("a"))
    assert desk.is_clean()


def test_prompts_without_a_ticket_hold_at_most_a_part_of_the_pool(desk: Desk) -> None:
    for i in range(3):
        desk.submit(f"p{i}", 20, first=100 * i + 1)
    for _ in range(5):
        desk.step()
    # Each takes 5 of 40 blocks; a third one would pass the limit of 12.
    assert (desk.prefiller.load.running, desk.prefiller.load.waiting) == (2, 1)
    assert desk.prefiller.plan_step(0.0) is None
    desk.ticket("p0")
    assert (desk.prefiller.load.running, desk.prefiller.load.waiting) == (3, 0)


def test_it_reserves_only_for_prompts_whose_turn_is_near(desk: Desk) -> None:
    assert len(desk.submit("now", 20)) == 1
    assert desk.submit("later", 8, first=100) == [], "the first one fills the next two steps"
    asked = desk.step()
    assert any(isinstance(c, SendToDecode) and c.message.key == key("later") for c in asked)


def test_a_prompt_larger_than_that_part_goes_alone(desk: Desk) -> None:
    assert len(desk.submit("huge", 130)) == 1
    assert desk.submit("next", 4, first=500) == []


def test_a_cached_prefix_is_not_computed_again(desk: Desk) -> None:
    desk.submit("a", 8, max_tokens=1)
    desk.step()
    desk.submit("b", 10, max_tokens=1)
    plan = desk.plan()
    assert [(s.start, len(s.tokens)) for s in plan.slices] == [(8, 2)]


def test_no_room_is_reported_and_the_blocks_stay_as_cache(desk: Desk) -> None:
    desk.submit("a", 8)
    desk.step()
    failed, ended = desk.prefiller.handle(FromDecode(NoRoom(key("a"), "full")), 0.0)
    assert failed == ReportFailure(key("a"), FailureCause.NO_ROOM, "full")
    assert ended == AttemptEnded(key("a"))
    assert desk.is_clean()
    assert desk.pool.num_cached == 2


def test_a_lost_decode_worker_fails_its_attempts_and_no_others(desk: Desk) -> None:
    desk.submit("a", 8)
    lost = DecodeLost("D1", FailureCause.DECODE_LOST, "gone")
    assert desk.prefiller.handle(lost, 0.0) == []
    lost = DecodeLost("D0", FailureCause.DECODE_LOST, "gone")
    assert desk.prefiller.handle(lost, 0.0)[0] == ReportFailure(
        key("a"), FailureCause.DECODE_LOST, "gone"
    )
    assert desk.is_clean()


def test_an_abort_during_a_step_frees_when_the_step_has_ended(desk: Desk) -> None:
    desk.submit("a", 20)
    plan = desk.plan()
    desk.prefiller.handle(Abort(key("a")), 0.0)
    assert desk.pool.num_leased == 5
    assert desk.prefiller.complete_step(plan, StepResult(), 0.0) == []
    assert desk.is_clean()


def test_a_prompt_that_never_fits_is_rejected_and_others_go_on(desk: Desk) -> None:
    (failed,) = desk.submit("huge", 161)
    assert isinstance(failed, ReportFailure)
    assert failed.cause is FailureCause.REJECTED
    assert len(desk.submit("fine", 160)) == 1


def test_a_prompt_beyond_the_model_s_last_position_is_rejected() -> None:
    desk = Desk(max_positions=100)
    assert desk.submit("long", 101) == [
        ReportFailure(
            key("long"),
            FailureCause.REJECTED,
            "prompt = '101 tokens': this model ends at 100 tokens",
        )
    ]
    assert len(desk.submit("fine", 100)) == 1


def test_runs_of_indices() -> None:
    assert consecutive_runs((3, 4, 5, 9, 11, 12)) == [(3, 6), (9, 10), (11, 13)]
    assert consecutive_runs(()) == []


# Several steps under way


def slices(plan: StepPlan) -> list[tuple[int, int, int]]:
    """(sequence id, first token, end) of each slice."""
    return [(piece.sequence_id, piece.start, piece.end) for piece in plan.slices]


def test_chunks_of_one_prompt_and_of_the_next_follow_each_other_through_the_stages() -> None:
    desk = Desk(depth=3)
    desk.submit("a", 11)
    desk.submit("b", 9, first=100)
    desk.ticket("a")
    plans = [desk.plan() for _ in range(3)]
    assert [slices(plan) for plan in plans] == [[(1, 0, 8)], [(1, 8, 11), (2, 0, 5)], [(2, 5, 9)]]
    assert desk.prefiller.plan_step(0.0) is None
    (first,) = desk.complete(plans[0])
    assert isinstance(first, AnnouncePieces)
    assert (first.first, len(first.block_ids)) == (0, 2), "blocks of the first chunk, no others"
    second, commit = desk.complete(plans[1])
    assert isinstance(second, AnnouncePieces)
    assert (second.first, len(second.block_ids)) == (2, 1)
    assert isinstance(commit, SendToDecode)
    assert isinstance(commit.message, Commit)


def test_an_abort_frees_when_the_last_step_with_a_chunk_has_ended() -> None:
    desk = Desk(depth=2)
    desk.submit("a", 20)
    first, second = desk.plan(), desk.plan()
    desk.prefiller.handle(Abort(key("a")), 0.0)
    assert desk.complete(first) == []
    assert desk.pool.num_leased == 5
    desk.prefiller.validate()
    assert desk.complete(second) == []
    assert desk.is_clean()


def test_it_reserves_for_all_that_the_steps_under_way_and_the_next_one_compute() -> None:
    desk = Desk(depth=2)
    assert len(desk.submit("now", 20)) == 1
    assert len(desk.submit("soon", 8, first=100)) == 1, "three steps take it in"
    assert desk.submit("later", 8, first=200) == []


def test_a_step_lasts_from_its_plan_to_its_result_whatever_else_is_under_way() -> None:
    desk = Desk(depth=2)
    desk.submit("a", 20)
    desk.ticket("a")
    first, second = desk.plan(now=1.0), desk.plan(now=2.0)
    desk.complete(first, now=4.0)
    desk.complete(second, now=7.0)
    (beat,) = desk.prefiller.handle(Tick(), 8.0)
    assert beat == SendToDecode("D0", Beat(((5, 16),), 5.0))
