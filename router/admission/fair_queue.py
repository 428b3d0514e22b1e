"""Whose turn it is: by priority class, then by the tenants' weighted shares, then by due time.

Shares by virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI
2024), one for each tenant and class: each tenant pays for what its requests cost, divided by its
weight, and the one that has paid least is next. It pays what is expected when a request has its
turn, and the difference when that has ended. Who comes back after a pause starts level with those
who wait, by what has ended: a pause earns nothing, and nobody's guesses cost another anything.
When something has to go it is the newest of whoever has most waiting (McKenney, "Stochastic
fairness queueing", INFOCOM 1990), of the last class.

Whoever finds no room when it is next is passed by shorter ones that do, so that no worker idles for
it. Aging bounds it: once they have `PATIENCE` times its own tokens, all wait until it has room.

Pure. Does not cover: what a request costs, limits (``router.admission.tenant_account``), what has
room (``router.admission.worker_room``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

from core.prefill_order import PATIENCE
from core.request import RequestKey
from router.admission.tenant_sums import Paid, Share
from router.admission.waiting_line import Waiting, WaitingLine


class FairQueue:
    """Requests of all tenants that wait."""

    def __init__(self) -> None:
        self._lines: dict[int, dict[str, WaitingLine]] = {}
        # Of each class by itself: who waits for a turn that does not come in a later one would
        # else have saved up for a better one.
        self._paid: dict[Share, float] = {}
        # Of that, what is only expected as yet.
        self._expected: dict[Share, float] = {}
        # Where the latest one that left stood: where the next one starts after a quiet time.
        self._level: dict[int, float] = {}
        # Tokens of shorter prompts that left before one whose turn it was.
        self._passed: dict[RequestKey, int] = {}
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
            lines[tenant] = WaitingLine(tenant)
        self._number += 1
        self._count += 1
        lines[tenant].add(waiting, self._number)

    def _level_up(self, share: Share, others: Iterable[str]) -> None:
        priority = share[0]
        settled = (self._settled((priority, other)) for other in others)
        level = min(settled, default=self._level.get(priority, 0.0))
        self._paid[share] = max(self._paid.get(share, 0.0), level)

    @property
    def shortest(self) -> int:
        """Tokens of the shortest prompt that waits. Of a queue that is not empty."""
        return min(line.shortest.prompt_tokens for line in self._all_lines())

    def next(
        self, may_go: Callable[[Waiting], bool], has_room: Callable[[int], bool]
    ) -> Waiting | None:
        """Who is to leave now; None: nobody. ``may_go``: by its own tenant's limits. ``has_room``:
        whether workers take a prompt of so many tokens; if not, then no longer one either."""
        passed: list[Waiting] = []
        too_long: float = math.inf
        for waiting in self._in_turn(may_go):
            if waiting.prompt_tokens < too_long and has_room(waiting.prompt_tokens):
                self._pass(passed, waiting.prompt_tokens)
                return waiting
            if self._is_aged(waiting):
                return None
            too_long = min(too_long, waiting.prompt_tokens)
            passed.append(waiting)
        return None

    def _in_turn(self, may_go: Callable[[Waiting], bool]) -> Iterator[Waiting]:
        """Of each tenant the one that is due first, then the shortest. What waits for its tenant's
        limits is not overtaken by that tenant's others, which would keep it out for ever."""
        held_up: set[str] = set()
        for priority in sorted(self._lines):
            lines = self._lines[priority].values()
            for line in sorted(lines, key=lambda line: self._paid[priority, line.tenant]):
                if line.tenant in held_up or not may_go(line.first):
                    held_up.add(line.tenant)
                    continue
                yield line.first
                if line.shortest is not line.first and may_go(line.shortest):
                    yield line.shortest

    def _pass(self, passed: Iterable[Waiting], tokens: int) -> None:
        for waiting in passed:
            self._passed[waiting.key] = self._passed.get(waiting.key, 0) + tokens

    def _is_aged(self, waiting: Waiting) -> bool:
        return self._passed.get(waiting.key, 0) >= PATIENCE * waiting.prompt_tokens

    def leave(self, waiting: Waiting) -> None:
        """It has its turn now, and pays what it is expected to cost."""
        self._pay((waiting.priority, waiting.key.tenant), waiting.cost / waiting.weight)
        self.remove(waiting.key, waiting.priority)

    def pass_through(self, share: Share, cost: float) -> None:
        """As `add` and `leave` of one for which the queue is empty. ``cost``: weighted."""
        self._level_up(share, ())
        self._pay(share, cost)

    def _pay(self, share: Share, cost: float) -> None:
        self._level[share[0]] = self._settled(share)
        self._paid[share] += cost
        self._expected[share] = self._expected.get(share, 0.0) + cost

    def settle(self, share: Share, expected: float, actual: float) -> None:
        """One that had left has ended. Both weighted."""
        self._paid[share] += actual - expected
        self._expected[share] -= expected

    def paid_elsewhere(self, share: Share, more: Paid) -> None:
        """At other doors, which share with this one. Who comes here after a pause starts level with
        what has ended there, too."""
        priority = share[0]
        self._paid[share] = self._paid.get(share, 0.0) + more.ended + more.running
        self._expected[share] = self._expected.get(share, 0.0) + more.running
        self._level[priority] = max(self._level.get(priority, 0.0), self._settled(share))

    def _settled(self, share: Share) -> float:
        return self._paid[share] - self._expected.get(share, 0.0)

    def remove(self, key: RequestKey, priority: int) -> Waiting | None:
        """It waits no longer, and pays nothing; None if it did not."""
        lines = self._lines.get(priority, {})
        line = lines.get(key.tenant)
        waiting = None if line is None else line.remove(key)
        if line is None or waiting is None:
            return None
        self._count -= 1
        self._passed.pop(key, None)
        if not line.here:
            del lines[key.tenant]
            if not lines:
                del self._lines[priority]
        return waiting

    def last(self) -> Waiting:
        """The one to give up first. Of a queue that is not empty."""
        lines = self._lines[max(self._lines)].values()
        return max(lines, key=lambda line: line.cost).newest

    def _all_lines(self) -> Iterator[WaitingLine]:
        return (line for lines in self._lines.values() for line in lines.values())
