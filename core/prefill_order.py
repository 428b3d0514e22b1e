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
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# Tokens of later prompts that may be computed before a prompt, for each token of its own.
PATIENCE = 8
# Of the time to the first token this part is for waiting and computing; the rest is for routing
# before it, and for the handoff and the way to the client after it.
PREFILL_SHARE = 0.9
# As long as nobody says otherwise (``slo.ttft``).
DEFAULT_TTFT_S = 1.0
# The speed is that of the latest steps: each counts so much of the one after it.
_FADING = 0.9


class PendingPrefill(NamedTuple):
    """A prompt with tokens in no step yet, ``remaining`` of them. ``deadline`` in seconds.

    ``is_aged``: it was passed so often that it goes first.
    """

    number: int
    deadline: float
    remaining: int
    is_aged: bool


# So many at a time are made into objects; mostly the first few are asked for.
_CHUNK = 64
# Who comes first; gone ones nowhere.
_AGED, _IN_TIME, _LATE, _GONE = range(4)
# Columns of the prompts that wait. ``total``: tokens to compute (its prefix in the cache needs
# none; where blocks were taken away, the most that were ever left since its first chunk);
# ``remaining``: those of them in no step yet, 0 once it is gone; ``passed``: tokens of later
# prompts that were planned meanwhile.
_NUMBER, _TOTAL, _REMAINING, _PASSED = range(4)


class PrefillOrder:
    """The prompts of one worker that wait for their next chunk, by numbers that rise with arrival.

    ``ttft``: seconds in which a request wants its first token (``slo.ttft``). In arrays, because
    thousands wait when there is more to do than a worker can.
    """

    def __init__(self, ttft: float) -> None:
        self._time = PREFILL_SHARE * ttft
        # In the order of arrival; those of prompts that are gone stay for a while.
        self._counts = np.zeros((4, _CHUNK), dtype=np.int64)
        self._deadlines = np.zeros(_CHUNK)
        self._end = 0
        self._place: dict[int, int] = {}
        self._tokens = 0.0
        self._seconds = 0.0

    def __contains__(self, number: int) -> bool:
        return number in self._place

    def add(self, number: int, tokens: int, now: float) -> None:
        """A prompt came at ``now`` with so many ``tokens`` to compute, at least one."""
        if self._end == len(self._deadlines):
            self._make_room()
        self._counts[:, self._end] = (number, tokens, tokens, 0)
        self._deadlines[self._end] = now + self._time
        self._place[number] = self._end
        self._end += 1

    def _make_room(self) -> None:
        """Drops those that are gone; then at most half of the places are taken."""
        here = self._counts[_REMAINING] > 0
        counts, deadlines = self._counts[:, here], self._deadlines[here]
        self._end = len(deadlines)
        room = np.zeros((4, self._end + _CHUNK), dtype=np.int64)
        self._counts = np.concatenate([counts, room], axis=1)
        self._deadlines = np.concatenate([deadlines, room[0]])
        self._place = {number: i for i, number in enumerate(counts[_NUMBER].tolist())}

    def remove(self, number: int) -> None:
        """Nothing more of this prompt is to be computed; it may be gone already."""
        place = self._place.pop(number, None)
        if place is not None:
            self._counts[_REMAINING, place] = 0
            if not self._place:
                self._end = 0

    def correct(self, number: int, remaining: int) -> None:
        """The cache holds more or less of the prompt than it did, or blocks were taken away."""
        counts, place = self._counts, self._place[number]
        is_new = counts[_REMAINING, place] == counts[_TOTAL, place]
        counts[_TOTAL, place] = remaining if is_new else max(counts[_TOTAL, place], remaining)
        counts[_REMAINING, place] = remaining

    def planned(self, number: int, tokens: int) -> None:
        """A step takes the next ``tokens`` of a prompt."""
        place = self._place[number]
        self._counts[_PASSED, :place] += tokens
        self._counts[_REMAINING, place] -= tokens
        if self._counts[_REMAINING, place] <= 0:
            self.remove(number)

    def measured(self, tokens: int, seconds: float) -> None:
        """A step that computed ``tokens`` of prompts kept the engine busy for so long."""
        if tokens:
            self._tokens = _FADING * self._tokens + tokens
            self._seconds = _FADING * self._seconds + seconds

    @property
    def seconds_per_token(self) -> float:
        """As measured; 0 before the first step."""
        return self._seconds / self._tokens if self._tokens else 0.0

    @property
    def oldest_aged(self) -> int | None:
        """The number of the prompt that goes first because it was passed so often."""
        places = np.flatnonzero(self._aged)
        return int(self._counts[_NUMBER, places[0]]) if len(places) else None

    @property
    def _aged(self) -> npt.NDArray[np.bool_]:
        counts = self._counts[:, : self._end]
        passed_enough = counts[_PASSED] >= PATIENCE * counts[_TOTAL]
        aged: npt.NDArray[np.bool_] = passed_enough & (counts[_REMAINING] > 0)
        return aged

    def sequence(self, now: float) -> Iterator[PendingPrefill]:
        """All that wait, the first to compute first. Before any measurement that is by arrival."""
        classes = self._classes(now)
        order = np.argsort(classes, kind="stable")[: len(self._place)]
        for start in range(0, len(order), _CHUNK):
            yield from self._pending(order[start : start + _CHUNK], classes)

    def sequence_of(self, numbers: Iterable[int], now: float) -> list[PendingPrefill]:
        """Those of ``numbers`` that wait, in the same order."""
        known = sorted(self._place[n] for n in numbers if n in self._place)
        places = np.array(known, dtype=np.intp)
        classes = self._classes(now)
        order = places[np.argsort(classes[places], kind="stable")]
        return list(self._pending(order, classes))

    def _pending(
        self, places: npt.NDArray[np.intp], classes: npt.NDArray[np.int8]
    ) -> Iterator[PendingPrefill]:
        counts = self._counts
        columns = (counts[_NUMBER], self._deadlines, counts[_REMAINING], classes == _AGED)
        rows = zip(*(column[places].tolist() for column in columns), strict=True)
        return map(PendingPrefill._make, rows)

    def _classes(self, now: float) -> npt.NDArray[np.int8]:
        """For each place who waits there.

        In time is the largest set that can be so one after the other, after those aged. Who would
        be late even alone is not in it, nor makes another one give way.
        """
        remaining, deadlines = self._counts[_REMAINING, : self._end], self._deadlines[: self._end]
        seconds = remaining * np.float64(self.seconds_per_token)
        aged = self._aged
        free_at = now + float(seconds[aged].sum())
        classes = np.full(self._end, _LATE, dtype=np.int8)
        classes[remaining == 0] = _GONE
        able = np.flatnonzero((classes == _LATE) & ~aged & (free_at + seconds <= deadlines))
        classes[able] = _IN_TIME
        classes[_too_many(seconds[able], deadlines[able], able, free_at)] = _LATE
        classes[aged] = _AGED
        return classes


def _too_many(
    seconds: npt.NDArray[np.float64],
    deadlines: npt.NDArray[np.float64],
    places: npt.NDArray[np.intp],
    free_at: float,
) -> list[int]:
    """The fewest that have to give way so that all others are in time, by arrival."""
    given_way: list[int] = []
    longest: list[tuple[float, int]] = []
    rows = zip(places.tolist(), seconds.tolist(), deadlines.tolist(), strict=True)
    for place, needed, deadline in rows:
        # Among equals the latest gives way.
        heapq.heappush(longest, (-needed, -place))
        free_at += needed
        if free_at > deadline:
            saved, last = heapq.heappop(longest)
            given_way.append(-last)
            free_at += saved
    return given_way
