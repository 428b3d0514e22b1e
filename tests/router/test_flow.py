"""One request's flow: attempts, failures, late messages, and one end whatever happens."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amounts import examples
from core.errors import (
    DeadlineExceeded,
    Overloaded,
    RequestAborted,
    RequestCancelled,
    Unavailable,
)
from core.handoff import FailureCause
from core.lifecycle import State
from core.request import FinishReason, RequestKey
from router.flow.flow import Flow
from router.flow.messages import (
    AttemptFailed,
    ClientGone,
    Command,
    DeadlinePassed,
    Emit,
    Fail,
    Finish,
    FlowEvent,
    Output,
    ReportDefect,
    Route,
    Routed,
    RouteDue,
    RouterStopping,
    SendAbort,
    SendOpen,
    SendPrefill,
    Unroutable,
    WorkerLost,
)
from router.flow.retries import RetryLimits
from router.placement import Placement, WorkerId

P0, P1, D0, D1 = (WorkerId(name, 1) for name in ("p0", "p1", "d0", "d1"))
PAIR = Placement(D0, P0)
STOP = FinishReason.STOP


def new_flow(deadline: float | None = None, n: int = 1) -> Flow:
    return Flow(RequestKey("default", "r1"), arrived=0.0, deadline=deadline, n=n)


def dispatched(placement: Placement = PAIR, n: int = 1) -> Flow:
    flow = new_flow(n=n)
    flow.handle(RouteDue(), 0.0)
    flow.handle(Routed(placement), 0.0)
    return flow


def streaming(tokens: int = 1) -> Flow:
    flow = dispatched()
    flow.handle(output(list(range(tokens))), 0.5)
    return flow


def output(
    tokens: list[int],
    worker: WorkerId = D0,
    attempt: int = 1,
    finish: FinishReason | None = None,
    cached: int = 0,
    index: int = 0,
) -> Output:
    return Output(worker, attempt, tokens, "x" * len(tokens), finish, cached, index)


def failed(cause: FailureCause, worker: WorkerId = P0, attempt: int = 1) -> AttemptFailed:
    return AttemptFailed(worker, attempt, cause)


def the_error(commands: list[Command]) -> Any:
    [error] = [command.error for command in commands if isinstance(command, Fail)]
    return error


def test_a_handoff_opens_at_decode_and_sends_the_prompt_to_prefill() -> None:
    flow = new_flow(deadline=10.0)
    assert flow.handle(RouteDue(), 0.0) == [Route(frozenset(), 0.0)]
    assert flow.handle(Routed(PAIR), 2.0) == [
        SendOpen(D0, 1, handoff=True, deadline_s=8.0),
        SendPrefill(P0, 1, D0, deadline_s=8.0),
    ]


def test_a_local_attempt_has_no_prefill_worker() -> None:
    flow = new_flow()
    assert flow.handle(Routed(Placement(D0)), 0.0) == [SendOpen(D0, 1, False, 0.0)]


def test_an_answer_from_start_to_end() -> None:
    flow = dispatched()
    assert flow.handle(output([7], cached=16), 0.5) == [Emit([7], "x")]
    assert flow.handle(output([8, 9]), 0.6) == [Emit([8, 9], "xx")]
    emit, finish = flow.handle(output([1], finish=STOP), 1.0)
    assert emit == Emit([1], "x")
    assert finish == Finish(
        STOP,
        completion_tokens=4,
        cached_tokens=16,
        queue_s=0.0,
        ttft_s=0.5,
        total_s=1.0,
        placement=PAIR,
        attempts=1,
    )


def test_a_first_token_that_ends_the_request_comes_from_prefill_and_drops_the_open() -> None:
    flow = dispatched()
    abort, emit, finish = flow.handle(output([1], worker=P0, finish=STOP), 0.5)
    assert (abort, emit) == (SendAbort(D0, 1), Emit([1], "x"))
    assert isinstance(finish, Finish)


def test_each_of_n_answers_ends_by_itself_and_the_request_with_the_last() -> None:
    flow = dispatched(n=2)
    assert flow.handle(output([7], index=1, cached=16), 0.5) == [Emit([7], "x", 1)]
    assert flow.handle(output([7, 8], index=0), 0.6) == [Emit([7, 8], "xx", 0)]
    _, first = flow.handle(output([1], index=1, finish=STOP), 0.7)
    assert isinstance(first, Finish)
    assert (first.index, first.completion_tokens, first.ttft_s, first.total_s) == (1, 2, 0.5, 0.7)
    assert not flow.ended
    _, second = flow.handle(output([9], index=0, finish=FinishReason.LENGTH), 0.9)
    assert isinstance(second, Finish)
    assert (second.index, second.completion_tokens, second.ttft_s) == (0, 3, 0.6)
    assert (second.reason, second.cached_tokens) == (FinishReason.LENGTH, 16)
    assert flow.lifecycle.state is State.FINISHED
    assert flow.tokens_delivered == 5


def test_first_tokens_that_end_all_answers_come_from_prefill() -> None:
    flow = dispatched(n=2)
    abort, *_ = flow.handle(output([1], worker=P0, finish=STOP, index=1), 0.5)
    assert abort == SendAbort(D0, 1)
    assert flow.handle(output([7], worker=D0, index=0), 0.5) == []
    assert flow.handle(WorkerLost(D0), 0.5) == []
    emit, finish = flow.handle(output([1], worker=P0, finish=STOP), 0.5)
    assert emit == Emit([1], "x", 0)
    assert isinstance(finish, Finish)
    assert flow.ended


def test_a_prefill_worker_that_dies_between_the_answers_it_ends_cuts_the_request() -> None:
    flow = dispatched(n=2)
    flow.handle(output([1], worker=P0, finish=STOP), 0.5)
    assert isinstance(the_error(flow.handle(WorkerLost(P0), 0.6)), RequestAborted)


def test_outputs_for_ended_and_unknown_answers_are_reported_and_left_out() -> None:
    flow = dispatched(n=2)
    flow.handle(output([1], finish=STOP), 0.5)
    for index in (0, 2, 10_000):
        [report] = flow.handle(output([7], index=index), 0.6)
        assert isinstance(report, ReportDefect)
        assert report.worker == D0
    assert flow.handle(output([7], index=1), 0.7) == [Emit([7], "x", 1)]


def test_after_one_answer_ended_empty_there_is_no_other_attempt() -> None:
    flow = dispatched(n=2)
    [finish] = flow.handle(output([], finish=STOP), 0.5)
    assert isinstance(finish, Finish)
    assert isinstance(the_error(flow.handle(WorkerLost(D0), 0.6)), RequestAborted)


def test_a_client_that_goes_cancels_all_answers_at_once() -> None:
    flow = dispatched(n=3)
    flow.handle(output([7], index=1, finish=STOP), 0.5)
    commands = flow.handle(ClientGone(), 1.0)
    assert commands[:2] == [SendAbort(D0, 1), SendAbort(P0, 1)]
    assert isinstance(the_error(commands), RequestCancelled)


def test_a_router_that_stops_says_so_and_lets_go_of_the_workers() -> None:
    commands = dispatched().handle(RouterStopping(), 1.0)
    assert isinstance(the_error(commands), Unavailable)
    assert {c.worker for c in commands if isinstance(c, SendAbort)} == {D0, P0}
    error = the_error(streaming(tokens=3).handle(RouterStopping(), 1.0))
    assert isinstance(error, RequestAborted)
    assert error.metadata["tokens_sent"] == "3"
    assert isinstance(the_error(new_flow().handle(RouterStopping(), 1.0)), Unavailable)


def test_an_answer_may_be_empty() -> None:
    [finish] = dispatched().handle(output([], finish=STOP), 0.5)
    assert isinstance(finish, Finish)
    assert finish.completion_tokens == 0


@pytest.mark.parametrize(
    ("cause", "reporter", "avoided", "aborted"),
    [
        (FailureCause.DECODE_LOST, P0, D0, D0),
        (FailureCause.PREFILL_LOST, D0, P0, P0),
        (FailureCause.LEASE_EXPIRED, D0, P0, P0),
        (FailureCause.INCOMPATIBLE, P0, P0, D0),
        (FailureCause.REJECTED, D0, D0, P0),
        (FailureCause.INTERNAL, P0, P0, D0),
        (FailureCause.NO_ROOM, P0, D0, D0),
    ],
)
def test_before_the_first_token_a_failure_is_followed_by_another_attempt(
    cause: FailureCause, reporter: WorkerId, avoided: WorkerId, aborted: WorkerId
) -> None:
    abort, route = dispatched().handle(failed(cause, reporter), 1.0)
    assert abort == SendAbort(aborted, 1)
    assert isinstance(route, Route)
    assert route.avoid == {avoided}


def test_a_lost_worker_before_the_first_token() -> None:
    flow = dispatched()
    assert flow.handle(WorkerLost(D0), 1.0) == [SendAbort(P0, 1), Route(frozenset({D0}), 0.0)]
    open_, prefill = flow.handle(Routed(Placement(D1, P0)), 1.0)
    assert (open_.attempt, prefill.attempt) == (2, 2)
    assert flow.handle(output([7], worker=D1, attempt=2), 1.5) == [Emit([7], "x")]


def test_after_the_first_token_a_lost_decode_worker_aborts_with_the_count() -> None:
    commands = streaming(tokens=3).handle(WorkerLost(D0), 1.0)
    assert SendAbort(P0, 1) in commands
    error = the_error(commands)
    assert isinstance(error, RequestAborted)
    assert error.metadata["tokens_sent"] == "3"


def test_after_the_first_token_the_prefill_worker_may_die() -> None:
    flow = streaming()
    assert flow.handle(WorkerLost(P0), 1.0) == []
    assert flow.handle(failed(FailureCause.INTERNAL, P0), 1.0) == []
    assert flow.handle(output([8]), 1.1) == [Emit([8], "x")]


def test_outputs_of_an_earlier_attempt_are_ignored() -> None:
    flow = dispatched()
    flow.handle(failed(FailureCause.PREFILL_LOST, D0), 1.0)
    assert flow.handle(output([7], attempt=1), 1.0) == []
    flow.handle(Routed(PAIR), 1.0)
    assert flow.handle(output([7], attempt=1), 1.1) == []
    assert flow.handle(failed(FailureCause.INTERNAL, attempt=1), 1.1) == []
    assert flow.handle(output([7], attempt=2), 1.2) == [Emit([7], "x")]


def test_attempts_are_limited_and_spaced_out() -> None:
    flow = dispatched()
    pauses = []
    for attempt in range(1, 5):
        *_, route = flow.handle(failed(FailureCause.INTERNAL, attempt=attempt), 1.0)
        pauses.append(route.delay_s)
        flow.handle(Routed(PAIR), 1.0)
    assert pauses == [0.0, 0.05, 0.1, 0.2]
    error = the_error(flow.handle(failed(FailureCause.INTERNAL, attempt=5), 1.0))
    assert isinstance(error, Unavailable)
    assert error.retry_after is not None
    assert error.metadata["attempts"] == "5"


def test_waiting_for_room_is_limited_by_time_instead() -> None:
    flow = dispatched()
    patience = RetryLimits().room_patience_s
    for attempt in range(1, 30):
        now = attempt * patience / 30
        *_, route = flow.handle(failed(FailureCause.NO_ROOM, attempt=attempt), now)
        assert isinstance(route, Route)
        assert route.delay_s > 0
        flow.handle(Routed(PAIR), now)
    late = patience * 1.1
    error = the_error(flow.handle(failed(FailureCause.NO_ROOM, attempt=30), late))
    assert isinstance(error, Overloaded)
    assert error.retry_after is not None


def test_a_worker_that_drains_is_left_at_once_and_no_failure_counts() -> None:
    flow = dispatched()
    for attempt in range(1, 20):
        *_, route = flow.handle(failed(FailureCause.DRAINING, D0, attempt), 1.0)
        assert D0 in route.avoid
        assert route.delay_s == (0.0 if attempt == 1 else RetryLimits().first_pause_s)
        flow.handle(Routed(PAIR), 1.0)
    *_, route = flow.handle(failed(FailureCause.INTERNAL, attempt=20), 1.0)
    assert route.delay_s == 0.0, "the first failure"


def test_draining_that_never_ends_ends_the_request() -> None:
    flow = dispatched()
    flow.handle(failed(FailureCause.DRAINING, D0), 0.0)
    flow.handle(Routed(PAIR), 0.0)
    late = RetryLimits().room_patience_s + 1
    error = the_error(flow.handle(failed(FailureCause.DRAINING, D0, 2), late))
    assert isinstance(error, Overloaded)


def test_an_answer_cut_at_the_drain_limit_says_so() -> None:
    flow = streaming(tokens=3)
    cut = AttemptFailed(D0, 1, FailureCause.DRAINING, "the drain limit of 30 s was over")
    error = the_error(flow.handle(cut, 1.0))
    assert isinstance(error, RequestAborted)
    assert "after 3 tokens (DRAINING the drain limit of 30 s was over)" in error.message


def test_while_a_worker_is_about_to_be_reached_a_request_waits_a_little() -> None:
    flow = new_flow()
    flow.handle(RouteDue(), 0.0)
    error = Unavailable("none", reason="NO_WORKER")
    [route] = flow.handle(Unroutable(error, hopeful=True), 0.0)
    assert isinstance(route, Route)
    assert route.delay_s > 0
    late = RetryLimits().attach_patience_s
    assert flow.handle(Unroutable(error, hopeful=True), late) == [Fail(error)]


def test_a_request_that_lost_its_workers_waits_for_their_replacement() -> None:
    flow = dispatched()
    error = Unavailable("nobody", reason="NO_WORKER")
    flow.handle(WorkerLost(D0), 1.0)
    for now in (1.0, 20.0, 60.0):
        commands = flow.handle(Unroutable(error), now)
        assert [type(command) for command in commands] == [Route]
    flow.handle(Routed(Placement(D1, P0)), 60.5)
    assert flow.placement == Placement(D1, P0)
    flow.handle(WorkerLost(D1), 61.0)
    assert isinstance(flow.handle(Unroutable(error), 70.0)[0], Route)
    assert flow.handle(Unroutable(error), 131.0) == [Fail(error)]


def test_no_worker_fails_the_request_with_the_policys_error() -> None:
    flow = new_flow()
    flow.handle(RouteDue(), 0.0)
    error = Unavailable("none", reason="NO_WORKER")
    assert flow.handle(Unroutable(error), 0.0) == [Fail(error)]
    assert flow.lifecycle.state is State.FAILED


def test_a_client_that_goes_cancels_on_both_workers() -> None:
    commands = streaming().handle(ClientGone(), 1.0)
    assert commands[:2] == [SendAbort(D0, 1), SendAbort(P0, 1)]
    assert isinstance(the_error(commands), RequestCancelled)


def test_the_deadline_ends_the_request_on_both_workers() -> None:
    flow = new_flow(deadline=5.0)
    flow.handle(Routed(PAIR), 0.0)
    commands = flow.handle(DeadlinePassed(), 5.0)
    assert commands[:2] == [SendAbort(D0, 1), SendAbort(P0, 1)]
    assert isinstance(the_error(commands), DeadlineExceeded)


def test_a_call_closed_by_its_deadline_counts_as_expired() -> None:
    flow = new_flow(deadline=5.0)
    flow.handle(Routed(PAIR), 0.0)
    flow.handle(ClientGone(), 5.0)
    assert flow.lifecycle.state is State.EXPIRED


def test_a_worker_that_met_the_deadline_first() -> None:
    flow = new_flow(deadline=5.0)
    flow.handle(Routed(PAIR), 0.0)
    flow.handle(failed(FailureCause.DEADLINE, D0), 4.99)
    assert flow.lifecycle.state is State.EXPIRED


workers = st.sampled_from([P0, P1, D0, D1])
attempts = st.integers(1, 4)
placements = st.builds(Placement, st.sampled_from([D0, D1]), st.sampled_from([None, P0, P1]))
finishes = st.sampled_from([None, None, None, *FinishReason])
outputs = st.builds(
    output,
    st.lists(st.just(0), max_size=2),
    workers,
    attempts,
    finishes,
    st.integers(0, 32),
    st.integers(0, 3),
)
answers = st.integers(1, 3)
events: st.SearchStrategy[FlowEvent] = st.one_of(
    st.just(RouterStopping()),
    st.builds(RouteDue),
    st.builds(Routed, placements),
    outputs,
    outputs,
    st.builds(failed, st.sampled_from(FailureCause), workers, attempts),
    st.builds(WorkerLost, workers),
    st.builds(Unroutable, st.just(Unavailable("none", reason="NO_WORKER")), st.booleans()),
    st.builds(ClientGone),
    st.builds(DeadlinePassed),
)


@given(story=st.lists(events, max_size=40), limit=st.sampled_from([None, 20.0]), n=answers)
@settings(max_examples=examples(400), deadline=None)
def test_whatever_happens_every_answer_ends_once_or_all_fail_and_nothing_comes_after(
    story: list[FlowEvent], limit: float | None, n: int
) -> None:
    flow = new_flow(limit, n)
    commands: list[Command] = []
    for now, event in enumerate(story):
        ended = flow.ended
        new = flow.handle(event, float(now))
        assert not (new and ended)
        commands += new
    commands += flow.handle(ClientGone(), float(len(story)))
    assert flow.ended
    finished = [command.index for command in commands if isinstance(command, Finish)]
    failed_at = [at for at, command in enumerate(commands) if isinstance(command, Fail)]
    assert len(finished) == len(set(finished))
    assert failed_at == ([] if set(finished) == set(range(n)) else [len(commands) - 1])


@given(story=st.lists(events, max_size=40), n=answers)
@settings(max_examples=examples(400), deadline=None)
def test_whatever_happens_tokens_come_from_one_worker_and_are_counted(
    story: list[FlowEvent], n: int
) -> None:
    flow = new_flow(n=n)
    emitted = [0] * n
    sources = set()
    finished = set()
    for now, event in enumerate(story):
        for command in flow.handle(event, float(now)):
            if isinstance(command, Emit | Finish):
                assert isinstance(event, Output)
                assert command.index not in finished
                sources.add((event.worker, event.attempt))
            if isinstance(command, Emit):
                emitted[command.index] += len(command.token_ids)
            if isinstance(command, Finish):
                assert command.completion_tokens == emitted[command.index]
                finished.add(command.index)
    assert flow.tokens_delivered == sum(emitted)
    assert len(sources) <= 1


@given(story=st.lists(events, max_size=40), n=answers)
@settings(max_examples=examples(400), deadline=None)
def test_whatever_happens_no_worker_is_left_with_an_attempt(story: list[FlowEvent], n: int) -> None:
    """A worker that was given an attempt ended it itself, was lost, or is told to abort."""
    flow = new_flow(n=n)
    open_at: set[tuple[WorkerId, int]] = set()
    for now, event in enumerate([*story, ClientGone()]):
        commands = flow.handle(event, float(now))
        if isinstance(event, WorkerLost):
            open_at = {pair for pair in open_at if pair[0] != event.worker}
        if isinstance(event, AttemptFailed):
            open_at.discard((event.worker, event.attempt))
        for command in commands:
            if isinstance(command, SendOpen | SendPrefill):
                open_at.add((command.worker, command.attempt))
            if isinstance(command, SendAbort):
                open_at.discard((command.worker, command.attempt))
            if isinstance(command, Finish) and flow.ended:
                # D ended with its last output, P when it had handed over.
                open_at -= {(w, command.attempts) for w in command.placement.workers}
    assert open_at == set()


@given(story=st.lists(events, max_size=40), n=answers)
@settings(max_examples=examples(400), deadline=None)
def test_the_short_way_of_further_tokens_leads_to_the_same(story: list[FlowEvent], n: int) -> None:
    long, short = new_flow(n=n), new_flow(n=n)
    for now, event in enumerate(story):
        expected = long.handle(event, float(now))
        if isinstance(event, Output) and _goes_the_short_way(short, event):
            assert expected == [Emit(event.token_ids, event.text, event.index)]
            continue
        assert [str(command) for command in short.handle(event, float(now))] == [
            str(command) for command in expected
        ]
        assert (short.lifecycle, short.answers) == (long.lifecycle, long.answers)


def _goes_the_short_way(flow: Flow, event: Output) -> bool:
    """Only answers of the latest attempt have numbers."""
    if event.attempt != flow.lifecycle.attempt or event.index >= flow.n:
        return False
    if not _only_brings_tokens(event):
        return False
    return flow.answers[event.index].continues(event.worker, len(event.token_ids))


def _only_brings_tokens(event: Output) -> bool:
    return bool(event.token_ids) and event.finish_reason is None and not event.cached_tokens
