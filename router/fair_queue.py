"""Whose turn it is: by priority class, then by the tenants' weighted shares, then by due time.

Shares by virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI
2024), one for each tenant and class: each tenant pays for what its requests cost, divided by its
weight, and the one that has paid least is next. It pays what is expected when a request has its
turn, and the difference when that has ended. Who comes back after a pause starts level with those
who wait, by what has ended: a pause earns nothing, and nobody's guesses cost another anything.
When something has to go it is the newest of whoever has most waiting (McKenney, "Stochastic
fairness queueing", INFOCOM 1990), of the last class.

Pure. Does not cover: what a request costs, limits (``router.tenant_account``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from core.request import RequestKey

# A tenant's of one class: (class, tenant).
_Share = tuple[int, str]

# So many entries of requests that wait no longer are kept in any case.
_MOST_STALE = 64


class Waiting(NamedTuple):
    """``due``: when its first token is wanted, seconds. ``cost``: in tokens, weighted."""

    key: RequestKey
    priority: int
    due: float
    cost: float
    weight: float


@dataclass(slots=True)
class _Line:
    """One tenant's requests of one class; ``here`` in the order of arrival."""

    tenant: str
    here: dict[RequestKey, Waiting] = field(default_factory=dict)
    by_due: list[tuple[float, int, Waiting]] = field(default_factory=list)
    cost: float = 0.0

    def add(self, waiting: Waiting, number: int) -> None:
        self.here[waiting.key] = waiting
        self.cost += waiting.cost / waiting.weight
        heappush(self.by_due, (waiting.due, number, waiting))

    def remove(self, key: RequestKey) -> Waiting | None:
        waiting = self.here.pop(key, None)
        if waiting is not None:
            self.cost -= waiting.cost / waiting.weight
            self._forget_stale()
        return waiting

    def _forget_stale(self) -> None:
        """Else what is refused in a flood would pile up behind what is due earlier."""
        if len(self.by_due) > 2 * len(self.here) + _MOST_STALE:
            self.by_due = [entry for entry in self.by_due if self._is_here(entry[2])]
            heapify(self.by_due)

    def _is_here(self, waiting: Waiting) -> bool:
        """A later request may have the same key."""
        return self.here.get(waiting.key) is waiting

    @property
    def first(self) -> Waiting:
        """Of a line that is not empty."""
        while not self._is_here(self.by_due[0][2]):
            heappop(self.by_due)
        return self.by_due[0][2]

    @property
    def newest(self) -> Waiting:
        return self.here[next(reversed(self.here))]


class FairQueue:
    """Requests of all tenants that wait."""

    def __init__(self) -> None:
        self._lines: dict[int, dict[str, _Line]] = {}
        # Of each class by itself: who waits for a turn that does not come in a later one would
        # else have saved up for a better one.
        self._paid: dict[_Share, float] = {}
        # Of that, what is only expected as yet.
        self._expected: dict[_Share, float] = {}
        # Where the latest one that left stood: where the next one starts after a quiet time.
        self._level: dict[int, float] = {}
        self._number = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def waiting(self) -> dict[str, int]:
        """How many requests of each tenant."""
        counts: dict[str, int] = {}
        for line in self._all_lines():
            counts[line.tenant] = counts.get(line.tenant, 0) + len(line.here)
        return counts

    def add(self, waiting: Waiting) -> None:
        lines = self._lines.setdefault(waiting.priority, {})
        tenant = waiting.key.tenant
        if tenant not in lines:
            self._level_up((waiting.priority, tenant), lines)
            lines[tenant] = _Line(tenant)
        self._number += 1
        self._count += 1
        lines[tenant].add(waiting, self._number)

    def _level_up(self, share: _Share, others: Iterable[str]) -> None:
        priority = share[0]
        settled = (self._settled((priority, other)) for other in others)
        level = min(settled, default=self._level.get(priority, 0.0))
        self._paid[share] = max(self._paid.get(share, 0.0), level)

    def next(self, may_go: Callable[[Waiting], bool]) -> Waiting | None:
        """Who is next among the tenants' first ones that ``may_go``. What waits for its own
        tenant's limits is not overtaken by later classes of that tenant, which would keep it out
        for ever."""
        held_up: set[str] = set()
        for priority in sorted(self._lines):
            lines = [line for line in self._lines[priority].values() if line.tenant not in held_up]
            for line in sorted(lines, key=lambda line: self._paid[priority, line.tenant]):
                if may_go(line.first):
                    return line.first
                held_up.add(line.tenant)
        return None

    def leave(self, waiting: Waiting) -> None:
        """It has its turn now, and pays what it is expected to cost."""
        cost = waiting.cost / waiting.weight
        share = waiting.priority, waiting.key.tenant
        self._level[waiting.priority] = self._settled(share)
        self._paid[share] += cost
        self._expected[share] = self._expected.get(share, 0.0) + cost
        self.remove(waiting.key, waiting.priority)

    def settle(self, tenant: str, priority: int, expected: float, actual: float) -> None:
        """One that had left has ended. Both weighted."""
        share = priority, tenant
        self._paid[share] += actual - expected
        self._expected[share] -= expected

    def pay(self, tenant: str, priority: int, cost: float) -> None:
        """A request of the tenant has ended at another door, which shares with this one; weighted.
        Who comes here after a pause starts level with it, too."""
        share = priority, tenant
        self._paid[share] = self._paid.get(share, 0.0) + cost
        self._level[priority] = max(self._level.get(priority, 0.0), self._settled(share))

    def _settled(self, share: _Share) -> float:
        return self._paid[share] - self._expected.get(share, 0.0)

    def remove(self, key: RequestKey, priority: int) -> Waiting | None:
        """It waits no longer, and pays nothing; None if it did not."""
        lines = self._lines.get(priority, {})
        line = lines.get(key.tenant)
        waiting = None if line is None else line.remove(key)
        if line is None or waiting is None:
            return None
        self._count -= 1
        if not line.here:
            del lines[key.tenant]
            if not lines:
                del self._lines[priority]
        return waiting

    def last(self) -> Waiting:
        """The one to give up first. Of a queue that is not empty."""
        lines = self._lines[max(self._lines)].values()
        return max(lines, key=lambda line: line.cost).newest

    def _all_lines(self) -> Iterator[_Line]:
        return (line for lines in self._lines.values() for line in lines.values())
