"""Every error that Crossdock answers with, and the one table that maps it to gRPC and HTTP.

Covers: the error root, its kinds, and their status numbers on both doors.
Does not cover: how a door writes an error to its wire (``router``).
"""

from __future__ import annotations

import reprlib
from enum import Enum
from typing import ClassVar

_bounded_repr = reprlib.Repr()
_bounded_repr.maxstring = _bounded_repr.maxlong = _bounded_repr.maxother = 200
_bounded_repr.maxlist = _bounded_repr.maxtuple = _bounded_repr.maxdict = 40


class Status(Enum):
    """A canonical gRPC status: (gRPC number, HTTP status, OpenAI error type)."""

    CANCELLED = (1, 499, "request_cancelled")
    INVALID_ARGUMENT = (3, 400, "invalid_request_error")
    DEADLINE_EXCEEDED = (4, 504, "timeout_error")
    NOT_FOUND = (5, 404, "not_found_error")
    ALREADY_EXISTS = (6, 409, "conflict_error")
    RESOURCE_EXHAUSTED = (8, 429, "rate_limit_error")
    FAILED_PRECONDITION = (9, 400, "invalid_request_error")
    ABORTED = (10, 503, "aborted_error")
    INTERNAL = (13, 500, "server_error")
    UNAVAILABLE = (14, 503, "service_unavailable_error")
    UNAUTHENTICATED = (16, 401, "authentication_error")

    @property
    def grpc_number(self) -> int:
        return self.value[0]

    @property
    def http_status(self) -> int:
        return self.value[1]

    @property
    def openai_type(self) -> str:
        return self.value[2]


class CrossdockError(Exception):
    """Root of all errors that a user may see.

    ``reason`` is a stable UPPER_SNAKE name for programs, ``message`` a sentence for people,
    ``metadata`` what was wrong in detail (all strings), ``retry_after`` seconds or None.
    """

    status: ClassVar[Status] = Status.INTERNAL

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        metadata: dict[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.metadata = metadata or {}
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[object, ...]:
        """Errors pass through process boundaries (Ray) with all they know."""
        return _rebuild, (type(self), self.__dict__.copy())


class InvalidField(CrossdockError):
    """A field of a request or a config holds what can't be served. Names field, value and fix."""

    status = Status.INVALID_ARGUMENT

    def __init__(
        self, field: str, value: object, fix: str, *, reason: str = "INVALID_FIELD"
    ) -> None:
        shown = _shown(value)
        super().__init__(
            f"{field} = {shown}: {fix}",
            reason=reason,
            metadata={"field": field, "value": shown, "fix": fix},
        )
        self.field = field
        self.fix = fix


class NotFound(CrossdockError):
    """A thing that the caller named does not exist here."""

    status = Status.NOT_FOUND


class AlreadyExists(CrossdockError):
    """A request with this id runs, or ended less than a minute ago."""

    status = Status.ALREADY_EXISTS


class Unauthenticated(CrossdockError):
    """Nobody whom we know asks: there is no API key, or it is wrong."""

    status = Status.UNAUTHENTICATED


class Overloaded(CrossdockError):
    """Refused at the door; ``retry_after`` says when to come back."""

    status = Status.RESOURCE_EXHAUSTED


class RequestAborted(CrossdockError):
    """The stream was cut after tokens had been delivered; metadata says how many."""

    status = Status.ABORTED


class RequestCancelled(CrossdockError):
    """The client, or an Abort call, ended the request."""

    status = Status.CANCELLED


class DeadlineExceeded(CrossdockError):
    """The client's deadline passed before the answer was complete."""

    status = Status.DEADLINE_EXCEEDED


class Unavailable(CrossdockError):
    """No worker can serve the request at present."""

    status = Status.UNAVAILABLE


class Incompatible(CrossdockError):
    """Two sides, or a model and this engine, can't work together. Says in what they differ."""

    status = Status.FAILED_PRECONDITION


class PreconditionFailed(CrossdockError):
    """What was asked for can't be done as things are; says what has to change first."""

    status = Status.FAILED_PRECONDITION


class InternalError(CrossdockError):
    """A defect of ours. The request fails; nobody else is hurt."""

    status = Status.INTERNAL


def _rebuild(kind: type[CrossdockError], state: dict[str, object]) -> CrossdockError:
    error = kind.__new__(kind, state["message"])
    error.__dict__.update(state)
    return error


def _shown(value: object) -> str:
    """``repr``, but of megabytes or of a thousand levels it reads only the start."""
    return _shorten(_bounded_repr.repr(value))


def _shorten(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
