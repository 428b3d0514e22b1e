"""How busy workers are now: what each last reported and what was sent to it since.

One entry for each worker in arrays: who chooses among a thousand workers looks at all of them.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from core.outputs import Load
from core.request import AttemptKey
from core.values import value

# A report that comes this long (seconds) after a message was sent is taken to include it.
SETTLE_S = 0.02

Counts = npt.NDArray[np.int64]
# Numbers of which times are computed: that is faster than with integers.
Floats = npt.NDArray[np.float64]

_ENDLESS = 2**31


class InFlight(NamedTuple):
    """Sent to a worker and in no report yet, sums. ``late_tokens``: of prompts that will miss their
    time, until their first output."""

    prefill_tokens: int = 0
    blocks: int = 0
    sequences: int = 0
    late_tokens: int = 0


NOTHING_SENT = InFlight()


@value()
class _Sent:
    prefill_tokens: int
    blocks: int
    sequences: int
    included_from: float


def context_grain(num_blocks: int) -> int:
    """How exactly the context of running answers is looked at, in blocks: it changes with every few
    steps, and a sixteenth of the pool more or less changes no choice."""
    return max(1, num_blocks // 16)


class _Ledger:
    """One worker: its last report, and what was sent since, with the sums."""

    __slots__ = (
        *("blocks", "elsewhere", "grain", "late", "late_tokens", "num_blocks", "reported", "sent"),
        *("sequences", "settling", "tokens"),
    )

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks, self.grain = num_blocks, context_grain(num_blocks)
        self.reported = Load(0, 0, num_blocks, 0)
        self.sent: dict[AttemptKey, _Sent] = {}
        # Prompts that some later report includes, oldest first.
        self.settling: deque[tuple[float, AttemptKey]] = deque()
        self.tokens = self.blocks = self.sequences = 0
        # Prompts that will miss their time, from when they were sent until their first output.
        self.late: dict[AttemptKey, int] = {}
        self.late_tokens = 0
        # By other routers.
        self.elsewhere = NOTHING_SENT

    def add(self, key: AttemptKey, sent: _Sent) -> None:
        self.remove(key)
        self.sent[key] = sent
        self.tokens += sent.prefill_tokens
        self.blocks += sent.blocks
        self.sequences += sent.sequences
        if sent.included_from < math.inf:
            self.settling.append((sent.included_from, key))

    def remove(self, key: AttemptKey) -> None:
        sent = self.sent.pop(key, None)
        if sent is not None:
            self.tokens -= sent.prefill_tokens
            self.blocks -= sent.blocks
            self.sequences -= sent.sequences

    def add_late(self, key: AttemptKey, tokens: int) -> None:
        self.remove_late(key)
        self.late[key] = tokens
        self.late_tokens += tokens

    def remove_late(self, key: AttemptKey) -> None:
        self.late_tokens -= self.late.pop(key, 0)

    def settle(self, now: float) -> None:
        while self.settling and self.settling[0][0] <= now:
            included_from, key = self.settling.popleft()
            sent = self.sent.get(key)
            if sent is not None and sent.included_from == included_from:
                self.remove(key)
                if sent.blocks:
                    # It takes them when it is computed, not when it is taken.
                    self.add(key, _Sent(0, sent.blocks, 0, math.inf))

    def current(self) -> Load:
        reported, elsewhere = self.reported, self.elsewhere
        tokens = self.tokens + elsewhere.prefill_tokens
        return Load(
            running=reported.running,
            waiting=reported.waiting + self.sequences + elsewhere.sequences,
            free_blocks=max(0, reported.free_blocks - self.blocks - elsewhere.blocks),
            pending_prefill_tokens=reported.pending_prefill_tokens + tokens,
        )


class LoadTable:
    """The loads of workers, by number, as this router believes them to be. Times in seconds.

    ``sequences`` (running and waiting), ``free_blocks``, ``pending_prefill_tokens``;
    ``late_tokens``: of them, those that will be late anyway; ``context_blocks``: those in use as
    `context_grain` rounds them down. int64, but float64 what times are computed of; an entry for
    each number below ``len``; nobody's does nothing and is never short of blocks.
    """

    def __init__(self) -> None:
        self._ledgers: list[_Ledger | None] = []
        self.sequences: Counts = np.zeros(0, dtype=np.int64)
        self.free_blocks: Counts = np.zeros(0, dtype=np.int64)
        self.context_blocks: Floats = np.zeros(0)
        self.late_tokens: Counts = np.zeros(0, dtype=np.int64)
        self.pending_prefill_tokens: Floats = np.zeros(0)

    def __len__(self) -> int:
        return len(self._ledgers)

    def add(self, number: int, num_blocks: int) -> None:
        """A worker that is empty as long as it reports nothing else."""
        self._grow(number + 1)
        self._ledgers[number] = _Ledger(num_blocks)
        self._note(number)

    def remove(self, number: int) -> None:
        self._ledgers[number] = None
        self._note(number)

    def sent_late(self, number: int, key: AttemptKey, tokens: int) -> None:
        """So many tokens of a prompt that this worker is to compute will be late even alone."""
        self._ledger(number).add_late(key, tokens)
        self._note(number)

    def sent_prefill(self, number: int, key: AttemptKey, tokens: int, now: float) -> None:
        """A prompt with ``tokens`` uncached tokens went to this worker."""
        self._ledger(number).add(key, _Sent(tokens, 0, 0, now + SETTLE_S))
        self._note(number)

    def sent_open(self, number: int, key: AttemptKey, blocks: int, sequences: int) -> None:
        """``sequences`` answers will be decoded here; their prompt takes ``blocks`` new ones.

        No report counts them before their first output, as a handoff may still be on its way.
        """
        self._ledger(number).add(key, _Sent(0, blocks, sequences, math.inf))
        self._note(number)

    def sent_local(
        self, number: int, key: AttemptKey, tokens: int, blocks: int, sequences: int, now: float
    ) -> None:
        """The same with ``tokens`` to be computed here, too: so reports count them from the start,
        as they do those of `sent_prefill`."""
        self._ledger(number).add(key, _Sent(tokens, blocks, sequences, now + SETTLE_S))
        self._note(number)

    def settled(self, number: int, key: AttemptKey) -> None:
        """The attempt gave its first output, or ended: from now on reports tell the truth."""
        ledger = self._ledger(number)
        if key in ledger.sent or key in ledger.late:
            ledger.remove(key)
            ledger.remove_late(key)
            self._note(number)

    def reported(self, number: int, load: Load, now: float) -> None:
        ledger = self._ledger(number)
        ledger.reported = load
        ledger.settle(now)
        self._note(number)

    def sent_here(self, number: int) -> InFlight:
        """By this router."""
        ledger = self._ledger(number)
        return InFlight(ledger.tokens, ledger.blocks, ledger.sequences, ledger.late_tokens)

    def sent_elsewhere(self, number: int, sent: InFlight) -> None:
        """By all other routers together; in the place of what they had sent before."""
        self._ledger(number).elsewhere = sent
        self._note(number)

    def current(self, number: int) -> Load:
        return self._ledger(number).current()

    def _ledger(self, number: int) -> _Ledger:
        ledger = self._ledgers[number]
        if ledger is None:
            raise KeyError(number)
        return ledger

    def _note(self, number: int) -> None:
        ledger = self._ledgers[number]
        if ledger is None:
            sequences = context = pending = late = 0
            free = _ENDLESS
        else:
            running, waiting, free, pending = ledger.reported
            elsewhere = ledger.elsewhere
            sequences = running + waiting + ledger.sequences + elsewhere.sequences
            free = max(0, free - ledger.blocks - elsewhere.blocks)
            used = ledger.num_blocks - free
            context = used - used % ledger.grain
            pending += ledger.tokens + elsewhere.prefill_tokens
            late = min(pending, ledger.late_tokens + elsewhere.late_tokens)
        self.sequences[number] = sequences
        self.context_blocks[number] = context
        self.late_tokens[number] = late
        self.free_blocks[number] = free
        self.pending_prefill_tokens[number] = pending

    def _grow(self, count: int) -> None:
        missing = count - len(self._ledgers)
        if missing > 0:
            self._ledgers += [None] * missing
            self.sequences = np.pad(self.sequences, (0, missing))
            self.free_blocks = np.pad(self.free_blocks, (0, missing), constant_values=_ENDLESS)
            self.context_blocks = np.pad(self.context_blocks, (0, missing))
            self.late_tokens = np.pad(self.late_tokens, (0, missing))
            self.pending_prefill_tokens = np.pad(self.pending_prefill_tokens, (0, missing))
