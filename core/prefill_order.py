"""Which prompt is computed next: as many as possible get their first token in time.

Moore and Hodgson's rule (Moore 1968, "An n job, one machine sequencing algorithm for minimizing
the number of late jobs"): prompts are taken in the order of arrival; whenever one would be late,
the longest of those taken so far gives way. What gave way, and what is late already, comes after
all that can still be in time, in the order of arrival. So short prompts pass a long one only where
that saves them. Aging bounds it: a prompt that was passed by `PATIENCE` times its own tokens goes
first.

Covers: the order, the measured speed, who was passed by how much. Pure: the clock is passed in.
Does not cover: blocks, chunks and which prompts may be under way at once (the workers' schedulers).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

# Tokens of later prompts that may be computed before a prompt, for each token of its own.
PATIENCE = 8
# Of the time to the first token this part is for waiting and computing; the rest is for routing
# before it, and for the handoff and the way to the client after it.
_PREFILL_SHARE = 0.9
# As long as nobody says otherwise (``slo.ttft``).
DEFAULT_TTFT_S = 1.0
# The speed is that of the latest steps: each counts so much of the one after it.
_FADING = 0.9


@dataclass(slots=True, eq=False)
class PendingPrefill:
    """A prompt with tokens in no step yet. Times in seconds.

    ``total``: how many tokens it has to compute (its prefix in the cache needs none; where blocks
    were taken away, the most that were ever left since its first chunk); ``remaining``: how many of
    them are in no step yet; ``passed``: how many tokens of later prompts were planned meanwhile.
    """

    number: int
    deadline: float
    total: int
    remaining: int
    passed: int = 0

    @property
    def is_aged(self) -> bool:
        return self.passed >= PATIENCE * self.total


class PrefillOrder:
    """The prompts of one worker that wait for their next chunk, by numbers that rise with arrival.

    ``ttft``: seconds in which a request wants its first token (``slo.ttft``).
    """

    def __init__(self, ttft: float) -> None:
        self._time = _PREFILL_SHARE * ttft
        # In the order of arrival.
        self._pending: dict[int, PendingPrefill] = {}
        self._tokens = 0.0
        self._seconds = 0.0

    def __contains__(self, number: int) -> bool:
        return number in self._pending

    def add(self, number: int, tokens: int, now: float) -> None:
        """A prompt came at ``now`` with so many ``tokens`` to compute, at least one."""
        self._pending[number] = PendingPrefill(number, now + self._time, tokens, tokens)

    def remove(self, number: int) -> None:
        """Nothing more of this prompt is to be computed; it may be gone already."""
        self._pending.pop(number, None)

    def correct(self, number: int, remaining: int) -> None:
        """The cache holds more or less of the prompt than it did, or blocks were taken away."""
        pending = self._pending[number]
        is_new = pending.remaining == pending.total
        pending.total = remaining if is_new else max(pending.total, remaining)
        pending.remaining = remaining

    def planned(self, number: int, tokens: int) -> None:
        """A step takes the next ``tokens`` of a prompt."""
        for pending in self._pending.values():
            if pending.number >= number:
                break
            pending.passed += tokens
        pending = self._pending[number]
        pending.remaining -= tokens
        if pending.remaining <= 0:
            del self._pending[number]

    def measured(self, tokens: int, seconds: float) -> None:
        """A step that computed ``tokens`` of prompts kept the engine busy for so long."""
        if tokens:
            self._tokens = _FADING * self._tokens + tokens
            self._seconds = _FADING * self._seconds + seconds

    @property
    def seconds_per_token(self) -> float:
        """As measured; 0 before the first step."""
        return self._seconds / self._tokens if self._tokens else 0.0

    def sequence(self, now: float) -> list[PendingPrefill]:
        """All that wait, the first to compute first. Before any measurement that is by arrival."""
        aged = [p for p in self._pending.values() if p.is_aged]
        others = [p for p in self._pending.values() if not p.is_aged]
        free_at = now + sum(map(self._predicted, aged))
        in_time = self._in_time(others, free_at)
        late = [p for p in others if p.number not in in_time]
        return [*aged, *in_time.values(), *late]

    def _in_time(
        self, candidates: list[PendingPrefill], free_at: float
    ) -> dict[int, PendingPrefill]:
        """The largest set that can be in time one after the other, by arrival."""
        taken: dict[int, PendingPrefill] = {}
        longest: list[tuple[int, int]] = []
        for pending in candidates:
            taken[pending.number] = pending
            # Among equals the latest gives way.
            heapq.heappush(longest, (-pending.remaining, -pending.number))
            free_at += self._predicted(pending)
            if free_at > pending.deadline:
                given_way = taken.pop(-heapq.heappop(longest)[1])
                free_at -= self._predicted(given_way)
        return taken

    def _predicted(self, pending: PendingPrefill) -> float:
        return pending.remaining * self.seconds_per_token
