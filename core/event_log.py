"""A bounded diary of one worker: what happened to which attempt, and when.

For `status`, for tests and for people who ask what happened. Never holds prompts or tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from core.request import AttemptKey

_CAPACITY = 2048


# A tuple, as several are made for each step.
class LoggedEvent(NamedTuple):
    """``at`` is monotonic time in seconds (one clock for all processes of a host)."""

    at: float
    name: str
    key: AttemptKey
    detail: str


class EventLog:
    """The newest events, oldest first."""

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._events: deque[LoggedEvent] = deque(maxlen=capacity)

    def add(self, at: float, name: str, key: AttemptKey, detail: str = "") -> None:
        self._events.append(LoggedEvent(at, name, key, detail))

    def __iter__(self) -> Iterator[LoggedEvent]:
        return iter(tuple(self._events))
