"""What a request's flow is told and what it answers: events in, commands out. Plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.errors import CrossdockError
from core.handoff import FailureCause
from core.request import FinishReason
from core.step import TokenLogprobs
from router.placement import Placement, WorkerId


@dataclass(frozen=True, slots=True)
class RouteDue:
    """The request arrived, or the pause before a new attempt is over."""


@dataclass(frozen=True, slots=True)
class Routed:
    placement: Placement


@dataclass(frozen=True, slots=True)
class Unroutable:
    """``hopeful``: a worker is listed that this router is about to reach."""

    error: CrossdockError
    hopeful: bool = False


@dataclass(frozen=True, slots=True)
class Output:
    """New tokens of one of an attempt's n answers, ``logprobs`` beside each if asked for.

    ``cached_tokens`` is set with the first output.
    """

    worker: WorkerId
    attempt: int
    token_ids: Sequence[int]
    text: str
    finish_reason: FinishReason | None
    cached_tokens: int = 0
    index: int = 0
    logprobs: Sequence[TokenLogprobs] = ()


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    worker: WorkerId
    attempt: int
    cause: FailureCause
    detail: str = ""


@dataclass(frozen=True, slots=True)
class WorkerLost:
    worker: WorkerId


@dataclass(frozen=True, slots=True)
class ClientGone:
    """The client closed its call, or asked by Abort to end the request."""

    reason: str = "CLIENT_GONE"


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    pass


@dataclass(frozen=True, slots=True)
class RouterStopping:
    """The router's drain time is over."""


FlowEvent = (
    RouteDue
    | Routed
    | Unroutable
    | Output
    | AttemptFailed
    | WorkerLost
    | ClientGone
    | DeadlinePassed
    | RouterStopping
)


@dataclass(frozen=True, slots=True)
class Route:
    """Choose workers after ``delay_s`` seconds, if possible others than ``avoid``."""

    avoid: frozenset[WorkerId]
    delay_s: float


@dataclass(frozen=True, slots=True)
class SendOpen:
    """``handoff``: a prefill worker will bring the prompt. ``deadline_s`` 0: none."""

    worker: WorkerId
    attempt: int
    handoff: bool
    deadline_s: float


@dataclass(frozen=True, slots=True)
class SendPrefill:
    worker: WorkerId
    attempt: int
    decode: WorkerId
    deadline_s: float


@dataclass(frozen=True, slots=True)
class SendAbort:
    worker: WorkerId
    attempt: int


@dataclass(frozen=True, slots=True)
class Emit:
    """New tokens of answer ``index`` for the client."""

    token_ids: Sequence[int]
    text: str
    index: int = 0
    logprobs: Sequence[TokenLogprobs] = ()


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Fail:
    """The request has ended with all its answers, complete or not."""

    error: CrossdockError


@dataclass(frozen=True, slots=True)
class ReportDefect:
    """A worker sent what makes no sense; it was left out, and nobody is hurt."""

    worker: WorkerId
    detail: str


Command = Route | SendOpen | SendPrefill | SendAbort | Emit | Finish | Fail | ReportDefect
