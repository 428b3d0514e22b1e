"""Tables of moves: what is not in the table is refused, with the story."""

from __future__ import annotations

import pytest

from core.lease_record import LEASE_TABLE, LeaseEvent, LeaseState
from core.push import PUSH_TABLE, PushEvent, PushState
from core.transitions import IllegalTransition, StateMachine


def test_a_legal_walk_ends_in_a_terminal_state() -> None:
    machine = StateMachine(LEASE_TABLE, "r1")
    for event in (LeaseEvent.GRANT, LeaseEvent.COMMIT, LeaseEvent.READY):
        assert machine.allows(event)
        machine.advance(event)
    assert machine.state is LeaseState.COMMITTED
    assert machine.ended


def test_an_illegal_move_tells_its_history_and_changes_nothing() -> None:
    machine = StateMachine(PUSH_TABLE, "r2")
    machine.advance(PushEvent.ASK)
    with pytest.raises(IllegalTransition, match=r"r2.*'commit' is not allowed.*reserve"):
        machine.advance(PushEvent.COMMIT)
    assert machine.state is PushState.ASKED


def test_terminal_states_follow_from_the_table() -> None:
    assert LEASE_TABLE.terminal == {LeaseState.COMMITTED, LeaseState.LOST}
    assert PUSH_TABLE.terminal == {PushState.RELEASED, PushState.FAILED}


def test_the_diagram_shows_every_move() -> None:
    diagram = LEASE_TABLE.mermaid()
    assert diagram.startswith("stateDiagram-v2\n    [*] --> queued")
    assert "queued --> granted: blocks found" in diagram
    assert "lost --> [*]" in diagram
