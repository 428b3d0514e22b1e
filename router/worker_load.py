"""How busy a worker is now: what it last reported and what was sent to it since."""

from __future__ import annotations

import math
from dataclasses import dataclass

from core.outputs import Load
from core.request import AttemptKey

# A report that comes this long (seconds) after a message was sent is taken to include it.
SETTLE_S = 0.02


@dataclass(frozen=True, slots=True)
class _Sent:
    prefill_tokens: int
    blocks: int
    sequences: int
    included_from: float


class LoadLedger:
    """The load of one worker as this router believes it to be. Times in seconds, passed in."""

    def __init__(self, num_blocks: int) -> None:
        self._reported = Load(0, 0, num_blocks, 0)
        self._sent: dict[AttemptKey, _Sent] = {}

    def sent_prefill(self, key: AttemptKey, tokens: int, now: float) -> None:
        """A prompt with ``tokens`` uncached tokens went to this worker."""
        self._sent[key] = _Sent(tokens, 0, 0, now + SETTLE_S)

    def sent_open(self, key: AttemptKey, prefill_tokens: int, blocks: int, sequences: int) -> None:
        """``sequences`` answers will be decoded here; their prompt takes ``blocks`` new ones.

        No report counts them before their first output, as a handoff may still be on its way.
        """
        self._sent[key] = _Sent(prefill_tokens, blocks, sequences, math.inf)

    def settled(self, key: AttemptKey) -> None:
        """The attempt gave its first output, or ended: from now on reports tell the truth."""
        self._sent.pop(key, None)

    def reported(self, load: Load, now: float) -> None:
        self._reported = load
        included = [key for key, sent in self._sent.items() if sent.included_from <= now]
        for key in included:
            del self._sent[key]

    def current(self) -> Load:
        sent = self._sent.values()
        return Load(
            running=self._reported.running,
            waiting=self._reported.waiting + sum(s.sequences for s in sent),
            free_blocks=max(0, self._reported.free_blocks - sum(s.blocks for s in sent)),
            pending_prefill_tokens=self._reported.pending_prefill_tokens
            + sum(s.prefill_tokens for s in sent),
        )
