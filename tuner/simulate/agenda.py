"""What happens when in virtual time: one heap of events, in an order that nothing leaves to chance.

Time is in whole femtoseconds. At one moment the ends of steps come first, by worker; then all
else in the order in which it was put down; samples come last. So an event finds every step booked
that ended by its time, however the steps were computed.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from core.latency_profile import FEMTOSECONDS

Act = Callable[[Any], None]

_ORDINARY = 1 << 40
_LAST = _ORDINARY + 1


class Agenda:
    """``now`` is the time of the event that happens; ``count`` says how many happened."""

    def __init__(self) -> None:
        self.now = 0
        self.count = 0
        self._heap: list[tuple[int, int, int, Act, Any]] = []
        self._number = 0
        self._last_pending = 0

    @property
    def now_s(self) -> float:
        return self.now / FEMTOSECONDS

    def at(self, time: int, act: Act, argument: Any) -> None:
        self._push(time, _ORDINARY, act, argument)

    def at_step_end(self, time: int, worker: int, act: Act, argument: Any) -> None:
        self._push(time, worker, act, argument)

    def at_last(self, time: int, act: Act, argument: Any) -> None:
        """After all else of that moment. Such an event alone keeps no simulation going."""
        self._last_pending += 1
        self._push(time, _LAST, act, argument)

    def _push(self, time: int, order: int, act: Act, argument: Any) -> None:
        self._number += 1
        heappush(self._heap, (time, order, self._number, act, argument))

    @property
    def is_over(self) -> bool:
        return len(self._heap) == self._last_pending

    def next_time(self) -> int:
        return self._heap[0][0]

    def happen(self) -> None:
        """The next event."""
        time, order, _, act, argument = heappop(self._heap)
        if order == _LAST:
            self._last_pending -= 1
        self.now = time
        self.count += 1
        act(argument)
