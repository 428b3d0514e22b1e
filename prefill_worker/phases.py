"""What a prefill worker sees of each phase before the first token; see ``core.phase_clock``.

The reserve runs beside queue and prefill. Transfer is what is left of it when all is computed and
has a ticket; the commit goes out with the last announcement and is answered after the last ack.
"""

from __future__ import annotations

from core.handoff import Ack, Committed, Ticket, ToPrefill
from core.phase_clock import ObservePhase, Phase, PhaseClock
from core.push import PushState
from core.request import AttemptKey


class HandoffPhases:
    """Told of each step of an attempt at monotonic time ``now`` (seconds)."""

    def __init__(self, observe: ObservePhase | None) -> None:
        self._clock = PhaseClock(observe)

    def submitted(self, key: AttemptKey, now: float) -> None:
        self._clock.begin(key, Phase.QUEUE, now)

    def asked(self, key: AttemptKey, now: float) -> None:
        """For room on D."""
        self._clock.begin(key, Phase.RESERVE, now)

    def chunk_started(self, key: AttemptKey, now: float) -> None:
        self._clock.move(key, Phase.QUEUE, Phase.PREFILL, now)

    def computed(self, key: AttemptKey, now: float) -> None:
        """The first tokens are drawn."""
        self._clock.end(key, Phase.PREFILL, now)

    def transfer_begins(self, key: AttemptKey, now: float) -> None:
        """Without an ack from now on nothing was left to copy."""
        self._clock.begin(key, Phase.TRANSFER, now)
        self._clock.end(key, Phase.TRANSFER, now)
        self._clock.begin(key, Phase.COMMIT, now)

    def heard(self, message: ToPrefill, state: PushState, now: float) -> None:
        """``state``: of the push, with D's message taken in."""
        if not self._clock.listens:
            return
        key = message.key
        match message:
            case Ticket():
                self._clock.end(key, Phase.RESERVE, now)
                if state is PushState.COMMITTING:
                    self.transfer_begins(key, now)
            case Ack() if state is PushState.COMMITTING:
                self._clock.end(key, Phase.TRANSFER, now)
                self._clock.begin(key, Phase.COMMIT, now)
            case Committed() if state is PushState.RELEASED:
                self._clock.end(key, Phase.COMMIT, now)
                self._clock.finish(key)

    def answered_alone(self, key: AttemptKey) -> None:
        """The first tokens end all answers: there is no handoff."""
        self._clock.finish(key)

    def forget(self, key: AttemptKey) -> None:
        self._clock.forget(key)
