"""The table of a request's life: what it allows, and the story that an illegal move tells."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.lifecycle import REQUEST_TABLE, Event, Lifecycle, State
from core.request import RequestKey
from core.transitions import IllegalTransition

KEY = RequestKey("default", "r1")


def test_a_request_that_goes_well() -> None:
    life = Lifecycle(KEY)
    life.move(Event.DISPATCHED)
    life.deliver()
    life.deliver()
    assert life.move(Event.COMPLETED) is State.FINISHED
    assert (life.attempt, life.ended) == (1, True)


def test_before_the_first_token_a_failed_attempt_is_followed_by_another() -> None:
    life = Lifecycle(KEY)
    life.move(Event.DISPATCHED)
    assert life.move(Event.ATTEMPT_FAILED) is State.QUEUED
    life.move(Event.DISPATCHED)
    assert life.attempt == 2


def test_after_the_first_token_a_failed_attempt_aborts() -> None:
    life = Lifecycle(KEY)
    life.move(Event.DISPATCHED)
    life.deliver()
    assert life.move(Event.ATTEMPT_FAILED) is State.ABORTED


def test_an_illegal_move_tells_the_history() -> None:
    life = Lifecycle(KEY)
    life.move(Event.DISPATCHED)
    with pytest.raises(IllegalTransition) as caught:
        life.move(Event.DISPATCHED)
    assert "queued --dispatched--> prefilling" in caught.value.metadata["history"]
    assert caught.value.metadata["state"] == "prefilling"
    assert life.state is State.PREFILLING


def test_a_long_answer_does_not_push_the_history_out() -> None:
    life = Lifecycle(KEY)
    life.move(Event.DISPATCHED)
    for _ in range(1000):
        life.deliver()
    life.move(Event.COMPLETED)
    with pytest.raises(IllegalTransition) as caught:
        life.move(Event.TOKEN)
    assert caught.value.metadata["history"] == (
        "queued --dispatched--> prefilling --first token--> streaming --completed--> finished"
    )


@given(events=st.lists(st.sampled_from(Event), max_size=30))
def test_no_order_of_events_leaves_the_table(events: list[Event]) -> None:
    life = Lifecycle(KEY)
    for event in events:
        before = life.state
        if (before, event) in REQUEST_TABLE.moves:
            life.move(event)
            continue
        with pytest.raises(IllegalTransition):
            life.move(event)
        assert life.state is before


def test_every_running_state_can_be_ended_by_client_and_deadline() -> None:
    for state in set(State) - REQUEST_TABLE.terminal:
        assert REQUEST_TABLE.moves[state, Event.CLIENT_GONE] is State.CANCELLED
        assert REQUEST_TABLE.moves[state, Event.DEADLINE] is State.EXPIRED


def test_every_state_is_reached_and_terminal_ones_are_the_outcomes() -> None:
    reached = {State.QUEUED, *REQUEST_TABLE.moves.values()}
    assert reached == set(State)
    outcomes = {State.FINISHED, State.FAILED, State.ABORTED, State.CANCELLED, State.EXPIRED}
    assert REQUEST_TABLE.terminal == outcomes


def test_the_diagram_has_every_move() -> None:
    diagram = REQUEST_TABLE.mermaid()
    for (source, event), target in REQUEST_TABLE.moves.items():
        [line] = [li for li in diagram.splitlines() if f"{source.value} --> {target.value}:" in li]
        assert event.value in line
