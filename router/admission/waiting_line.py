"""One tenant's requests of one class that wait at the door: who is first due, shortest, newest.

Pure. Does not cover: turns of several tenants (``router.admission.fair_queue``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from core.request import RequestKey

# So many entries of requests that wait no longer are kept in any case.
_MOST_STALE = 64


class Waiting(NamedTuple):
    """``due``: when its first token is wanted, seconds. ``cost``: in tokens, weighted."""

    key: RequestKey
    priority: int
    due: float
    cost: float
    weight: float
    prompt_tokens: int


# By what rises, then by arrival; entries of requests that are gone stay for a while.
_Order = list[tuple[float, int, Waiting]]


@dataclass(slots=True)
class WaitingLine:
    """``here`` in the order of arrival; ``cost`` of all of them."""

    tenant: str
    here: dict[RequestKey, Waiting] = field(default_factory=dict)
    cost: float = 0.0
    by_due: _Order = field(default_factory=list)
    by_length: _Order = field(default_factory=list)

    def add(self, waiting: Waiting, number: int) -> None:
        """``number`` rises with each that is added."""
        self.here[waiting.key] = waiting
        self.cost += waiting.cost / waiting.weight
        heappush(self.by_due, (waiting.due, number, waiting))
        heappush(self.by_length, (waiting.prompt_tokens, number, waiting))

    def remove(self, key: RequestKey) -> Waiting | None:
        """None if it does not wait here."""
        waiting = self.here.pop(key, None)
        if waiting is not None:
            self.cost -= waiting.cost / waiting.weight
            self._forget_stale(self.by_due)
            self._forget_stale(self.by_length)
        return waiting

    @property
    def first(self) -> Waiting:
        """The first that is due. Of a line that is not empty, as all of these."""
        return self._least(self.by_due)

    @property
    def shortest(self) -> Waiting:
        """The one with the shortest prompt."""
        return self._least(self.by_length)

    @property
    def newest(self) -> Waiting:
        return self.here[next(reversed(self.here))]

    def _least(self, order: _Order) -> Waiting:
        while not self._is_here(order[0][2]):
            heappop(order)
        return order[0][2]

    def _forget_stale(self, order: _Order) -> None:
        """Else what is refused in a flood would pile up behind what is due earlier."""
        if len(order) > 2 * len(self.here) + _MOST_STALE:
            order[:] = [entry for entry in order if self._is_here(entry[2])]
            heapify(order)

    def _is_here(self, waiting: Waiting) -> bool:
        """A later request may have the same key."""
        return self.here.get(waiting.key) is waiting
