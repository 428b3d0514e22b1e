"""The errors that a request's flow ends with, each with what the client has received by then."""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import (
    DeadlineExceeded,
    Overloaded,
    RequestAborted,
    RequestCancelled,
    Unavailable,
)
from core.request import RequestKey


@dataclass(frozen=True, slots=True)
class Tally:
    """How far a request came: attempts made, tokens sent to the client (over all answers)."""

    key: RequestKey
    attempts: int
    tokens_sent: int

    def metadata(self, **more: str) -> dict[str, str]:
        counts = {"tokens_sent": str(self.tokens_sent), "attempts": str(self.attempts)}
        return {**counts, **more}


def cancelled(tally: Tally, reason: str) -> RequestCancelled:
    message = f"request {tally.key.request_id} was cancelled"
    return RequestCancelled(message, reason=reason, metadata=tally.metadata())


def expired(tally: Tally) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"the deadline of request {tally.key.request_id} passed after {tally.tokens_sent} tokens; "
        "allow more time or ask for fewer tokens",
        reason="DEADLINE",
        metadata=tally.metadata(),
    )


def cut(tally: Tally, why: str) -> RequestAborted:
    """The stream broke after the first output; nobody can continue it."""
    return RequestAborted(
        f"the answer was cut after {tally.tokens_sent} tokens ({why.strip()}); "
        "send the request again",
        reason="STREAM_CUT",
        metadata=tally.metadata(cause=why.strip()),
    )


def exhausted(tally: Tally, failures: int, why: str, retry_after_s: float) -> Unavailable:
    return Unavailable(
        f"{failures} attempts failed, the last by {why.strip()}; try again later",
        reason="ATTEMPTS_EXHAUSTED",
        metadata=tally.metadata(cause=why.strip()),
        retry_after=retry_after_s,
    )


def no_room(tally: Tally, waited_s: float, retry_after_s: float) -> Overloaded:
    return Overloaded(
        f"no decode worker had room for {waited_s:.0f} s; try again later",
        reason="NO_ROOM",
        metadata=tally.metadata(),
        retry_after=retry_after_s,
    )


def router_stopping(tally: Tally, retry_after_s: float) -> Unavailable:
    return Unavailable(
        "the router stops; send the request again",
        reason="ROUTER_STOPPING",
        metadata=tally.metadata(),
        retry_after=retry_after_s,
    )
