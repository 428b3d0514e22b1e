"""What a request's flow is told and what it answers: events in, commands out. Plain values."""

from __future__ import annotations

from collections.abc import Sequence

from core.errors import CrossdockError
from core.handoff import FailureCause
from core.request import FinishReason
from core.step import TokenLogprobs
from core.values import value
from router.placement import Placement, WorkerId


@value()
class RouteDue:
    """The request arrived, or the pause before a new attempt is over."""


@value()
class Routed:
    """``readable``: clients may read tokens from this D itself."""

    placement: Placement
    readable: bool = False


@value()
class Unroutable:
    """``hopeful``: a worker is listed that this router is about to reach."""

    error: CrossdockError
    hopeful: bool = False


@value()
class Output:
    """New tokens of one of an attempt's n answers, ``logprobs`` beside each if asked for.

    ``cached_tokens`` is set with the first output. ``read_tokens``: so many were read from D
    itself; the output has none then. ``counted``: that was told of this output before.
    """

    worker: WorkerId
    attempt: int
    token_ids: Sequence[int]
    text: str
    finish_reason: FinishReason | None
    cached_tokens: int = 0
    index: int = 0
    logprobs: Sequence[TokenLogprobs] = ()
    read_tokens: int = 0
    counted: bool = False


@value()
class RelayAsked:
    """The client can't read from D and wants the rest by the router: what follows ``position``."""

    attempt: int
    position: int


@value()
class AttemptFailed:
    worker: WorkerId
    attempt: int
    cause: FailureCause
    detail: str = ""


@value()
class WorkerLost:
    worker: WorkerId


@value()
class ClientGone:
    """The client closed its call, or asked by Abort to end the request."""

    reason: str = "CLIENT_GONE"


@value()
class DeadlinePassed:
    pass


@value()
class RouterStopping:
    """The router's drain time is over."""


FlowEvent = (
    RouteDue
    | Routed
    | Unroutable
    | Output
    | RelayAsked
    | AttemptFailed
    | WorkerLost
    | ClientGone
    | DeadlinePassed
    | RouterStopping
)


@value()
class Route:
    """Choose workers after ``delay_s`` seconds, if possible others than ``avoid``."""

    avoid: frozenset[WorkerId]
    delay_s: float


@value()
class SendOpen:
    """``handoff``: a prefill worker will bring the prompt. ``deadline_s`` 0: none. ``by_ticket``:
    the client reads the tokens itself."""

    worker: WorkerId
    attempt: int
    handoff: bool
    deadline_s: float
    by_ticket: bool = False


@value()
class GiveTicket:
    """Tell the client that an attempt begins; ``worker``: where it may read, None: nowhere."""

    worker: WorkerId | None
    attempt: int


@value()
class SendRelay:
    """D is to send what follows ``position`` to the router."""

    worker: WorkerId
    attempt: int
    position: int


@value()
class SendPrefill:
    worker: WorkerId
    attempt: int
    decode: WorkerId
    deadline_s: float


@value()
class SendAbort:
    worker: WorkerId
    attempt: int


@value()
class Ticket:
    """With which the client reads an attempt's tokens at ``endpoint`` (host:port); "": nowhere."""

    attempt: int
    endpoint: str
    ticket: bytes


@value()
class Emit:
    """New tokens of answer ``index`` for the client. ``counted``: as read from D, before.
    ``ticket``: an attempt begins; there are no tokens then."""

    token_ids: Sequence[int]
    text: str
    index: int = 0
    logprobs: Sequence[TokenLogprobs] = ()
    counted: bool = False
    ticket: Ticket | None = None


@value()
class CountRead:
    """The client has read so many tokens of answer ``index`` from D itself."""

    tokens: int
    index: int


@value()
class Finish:
    """Answer ``index`` is complete; the request ends when all n are.

    Times in seconds since the request arrived.
    """

    reason: FinishReason
    completion_tokens: int
    cached_tokens: int
    queue_s: float
    ttft_s: float
    total_s: float
    placement: Placement
    attempts: int
    index: int = 0


@value()
class Fail:
    """The request has ended with all its answers, complete or not."""

    error: CrossdockError


@value()
class ReportDefect:
    """A worker sent what makes no sense; it was left out, and nobody is hurt."""

    worker: WorkerId
    detail: str


Command = (
    Route
    | SendOpen
    | SendPrefill
    | SendAbort
    | SendRelay
    | GiveTicket
    | Emit
    | CountRead
    | Finish
    | Fail
    | ReportDefect
)
