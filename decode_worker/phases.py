"""What a decode worker sees of each phase before the first token; see ``core.phase_clock``.

Of a handoff: waiting for blocks, from the first announced block to the last verified one, from the
commit to the start. Of a prompt that is prefilled here: waiting, and computing.
"""

from __future__ import annotations

from collections.abc import Iterable

from core.handoff import Ack, Commit, LeaseLost, NoRoom, Ticket
from core.lease_events import (
    CopyPieces,
    EnqueueReserve,
    FailAttempt,
    FromPrefill,
    LeaseCommand,
    LeaseInput,
    SendToPrefill,
    StartSequence,
)
from core.outputs import TokenOutput
from core.phase_clock import ObservePhase, Phase, PhaseClock
from core.request import AttemptKey


class LeasePhases:
    """Of handoffs. Times are monotonic, in seconds."""

    def __init__(self, observe: ObservePhase | None) -> None:
        self._clock = PhaseClock(observe)

    def heard(self, event: LeaseInput, now: float) -> None:
        if isinstance(event, FromPrefill) and isinstance(event.message, Commit):
            self._clock.begin_once(event.message.key, Phase.COMMIT, now)

    def decided(self, command: LeaseCommand, now: float) -> None:
        if not self._clock.listens:
            return
        match command:
            case EnqueueReserve(key=key):
                self._clock.begin(key, Phase.RESERVE, now)
            case SendToPrefill(_, Ticket(key)):
                self._clock.end(key, Phase.RESERVE, now)
            case CopyPieces(key):
                self._clock.begin_once(key, Phase.TRANSFER, now)
            case SendToPrefill(_, Ack(key)):
                self._clock.end(key, Phase.TRANSFER, now)
            case StartSequence(key=key):
                self._clock.end(key, Phase.COMMIT, now)
                self._clock.finish(key)
            case SendToPrefill(_, NoRoom(key) | LeaseLost(key)):
                self._clock.forget(key)


class LocalPhases:
    """Of prompts that are prefilled here. False while there are none without a token."""

    def __init__(self, observe: ObservePhase | None) -> None:
        self._clock = PhaseClock(observe)

    def __bool__(self) -> bool:
        return len(self._clock) > 0

    def submitted(self, key: AttemptKey, now: float) -> None:
        self._clock.begin(key, Phase.QUEUE, now)

    def planned(self, keys: Iterable[AttemptKey], now: float) -> None:
        """Whose slices the next step has."""
        for key in keys:
            self._clock.move(key, Phase.QUEUE, Phase.PREFILL, now)

    def computed(self, outputs: Iterable[TokenOutput | FailAttempt], now: float) -> None:
        for output in outputs:
            if isinstance(output, TokenOutput):
                self._clock.end(output.key, Phase.PREFILL, now)
                self._clock.finish(output.key)
            else:
                self._clock.forget(output.key)

    def forget(self, key: AttemptKey) -> None:
        self._clock.forget(key)
