"""What the life of the workers is told and what it answers: members, events, commands.

Plain values; the decisions are in ``cluster.pool_state``, their execution in
``cluster.controller``. Times are seconds on the caller's monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from cluster.plan import Slot

# How long a worker may take to finish what it has, if nobody says otherwise. Answers of thousands
# of tokens take minutes; what is left after that is cut.
DRAIN_LIMIT_S = 600.0


class MemberState(Enum):
    """``WAITING``: for the worker whose place it takes over (a flip). ``LOST``: dead, and its next
    start is due later. ``DRAINING``: finishes what it has, and ends."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    LOST = "lost"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Member:
    """One worker.

    ``since`` is when ``state`` began; ``deaths`` counts those in quick succession. ``attached``:
    every router reaches it. ``retiring``: it serves until it can be spared, then drains for at most
    ``drain_limit_s``; one that is ``evicted`` is not asked whether it can be. ``successor`` takes
    its place over when it has ended. ``beside`` is the worker that this one replaces. ``busy`` is
    the number of requests that it had when it was last asked; ``missed`` how many questions in a
    row it has not answered, since ``missed_since``.
    """

    slot: Slot
    state: MemberState
    since: float
    endpoint: str = ""
    epoch: int = 0
    pid: int = 0
    deaths: int = 0
    was_ready: bool = False
    detail: str = ""
    attached: bool = False
    retiring: bool = False
    evicted: bool = False
    successor: Slot | None = None
    beside: Slot | None = None
    drain_limit_s: float = DRAIN_LIMIT_S
    busy: int = 0
    missed: int = 0
    missed_since: float = 0.0

    @property
    def active(self) -> bool:
        """It counts towards the wanted number."""
        return not self.retiring and self.state is not MemberState.DRAINING

    @property
    def serving(self) -> bool:
        """Every router sends it new requests."""
        return self.state is MemberState.READY and self.attached


# Events: what happened to workers.
@dataclass(frozen=True, slots=True)
class Started:
    """``slot``'s worker serves at ``endpoint`` (host:port)."""

    slot: Slot
    endpoint: str
    epoch: int
    pid: int


@dataclass(frozen=True, slots=True)
class Lost:
    """``slot``'s worker died, or could not start."""

    slot: Slot
    reason: str


@dataclass(frozen=True, slots=True)
class RestartDue:
    """The delay before the next start of ``slot`` is over."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class Drained:
    """``slot``'s worker has ended after ``BeginDrain``."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class Answered:
    """A worker in the life ``epoch`` told how many requests it has, and whether all routers are
    attached to it."""

    slot: Slot
    epoch: int
    busy: int
    attached: bool


@dataclass(frozen=True, slots=True)
class NotAnswered:
    slot: Slot
    epoch: int


# Events: what an operator wants.
@dataclass(frozen=True, slots=True)
class ScaleTo:
    """So many workers of each pool. None: as many as now."""

    prefill: int | None = None
    decode: int | None = None


@dataclass(frozen=True, slots=True)
class DrainWorker:
    """Let a worker finish what it has, and end it. ``replace``: start another one first."""

    name: str
    replace: bool = True
    limit_s: float = DRAIN_LIMIT_S


@dataclass(frozen=True, slots=True)
class EvictWorker:
    """A worker's place goes away: let it finish what it has from now on, and start another one as
    soon as there is room."""

    name: str
    limit_s: float = DRAIN_LIMIT_S


@dataclass(frozen=True, slots=True)
class FlipWorker:
    """Drain a worker and start one of the other role in its place."""

    name: str


Event = (
    Started
    | Lost
    | RestartDue
    | Drained
    | Answered
    | NotAnswered
    | ScaleTo
    | DrainWorker
    | EvictWorker
    | FlipWorker
)


@dataclass(frozen=True, slots=True)
class StartWorker:
    """``beside``: the worker that it replaces, whose cores it may share meanwhile."""

    slot: Slot
    beside: Slot | None = None


@dataclass(frozen=True, slots=True)
class RestartLater:
    slot: Slot
    delay_s: float


@dataclass(frozen=True, slots=True)
class PublishWorkers:
    """Routers must learn of these: the ready ones, and those that drain."""

    workers: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class BeginDrain:
    """Let the worker finish what it has within the limit, then end it; answer with ``Drained``."""

    slot: Slot
    limit_s: float


@dataclass(frozen=True, slots=True)
class KillWorker:
    """The worker hangs: end its process. Its place is kept for the next start."""

    slot: Slot
    reason: str


@dataclass(frozen=True, slots=True)
class EndWorker:
    """Nobody wants this worker any more: end its process if there is one, and give its place to
    ``heir``, or back."""

    slot: Slot
    heir: Slot | None = None


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The cluster can't start."""

    slot: Slot
    reason: str


Command = StartWorker | RestartLater | PublishWorkers | BeginDrain | KillWorker | EndWorker | GiveUp
