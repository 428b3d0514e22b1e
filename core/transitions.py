"""A table of allowed moves. Illegal moves raise and carry the story that led to them.

Covers: looking up a move, remembering a bounded history, drawing the table as a Mermaid diagram.
Does not cover: what a move does (the owners of the tables).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

from core.errors import InternalError

S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)

_HISTORY_LENGTH = 32


class Symbol(Enum):
    """A state or an event. Hashed as the one object that it is: `Enum` hashes its name, in Python,
    each time that it is looked up."""

    __hash__ = object.__hash__


class IllegalTransition(InternalError):
    """An event met a state that does not allow it: a defect, told with its history."""


@dataclass(frozen=True, slots=True)
class TransitionTable(Generic[S, E]):
    """``moves[(state, event)]`` is the next state; what is not in it is illegal. ``terminal``:
    states that nothing leaves."""

    name: str
    initial: S
    moves: Mapping[tuple[S, E], S]
    terminal: frozenset[S] = field(init=False)

    def __post_init__(self) -> None:
        states = {self.initial, *self.moves.values()}
        object.__setattr__(self, "terminal", frozenset(states - {state for state, _ in self.moves}))

    def mermaid(self) -> str:
        """The table as a Mermaid state diagram, one line per pair of states."""
        arrows: dict[tuple[S, S], list[str]] = {}
        for (source, event), target in self.moves.items():
            arrows.setdefault((source, target), []).append(str(event.value))
        lines = ["stateDiagram-v2", f"    [*] --> {self.initial.value}"]
        lines += [
            f"    {source.value} --> {target.value}: {', '.join(events)}"
            for (source, target), events in arrows.items()
        ]
        lines += [f"    {state.value} --> [*]" for state in sorted_by_value(self.terminal)]
        return "\n".join(lines)


def sorted_by_value(states: frozenset[S]) -> list[S]:
    return sorted(states, key=lambda state: str(state.value))


@dataclass(slots=True)
class StateMachine(Generic[S, E]):
    """One walk through a table. ``subject`` names whose walk it is in error messages."""

    table: TransitionTable[S, E]
    subject: Hashable
    state: S = field(init=False)
    history: deque[tuple[S, E]] = field(init=False)

    def __post_init__(self) -> None:
        self.state = self.table.initial
        self.history = deque(maxlen=_HISTORY_LENGTH)

    @property
    def ended(self) -> bool:
        return self.state in self.table.terminal

    def allows(self, event: E) -> bool:
        return (self.state, event) in self.table.moves

    def advance(self, event: E) -> S:
        """Moves on. Raises `IllegalTransition` with the history if the table has no such move."""
        following = self.table.moves.get((self.state, event))
        if following is None:
            raise self._illegal(event)
        # A long answer is thousands of equal moves; they would push out everything that matters.
        if following is not self.state:
            self.history.append((self.state, event))
        self.state = following
        return following

    def _illegal(self, event: E) -> IllegalTransition:
        story = [f"{state.value} --{happened.value}-->" for state, happened in self.history]
        history = " ".join([*story, str(self.state.value)])
        return IllegalTransition(
            f"{self.table.name} {self.subject}: {event.value!r} is not allowed in "
            f"{self.state.value!r}; history: {history}",
            reason="ILLEGAL_TRANSITION",
            metadata={
                "state": str(self.state.value),
                "event": str(event.value),
                "history": history,
            },
        )
