"""Errors of a server, decoded from the status and its google.rpc details."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status


class ServerError(Exception):
    """What a server, or the way to it, answered instead of tokens. Each gRPC code has a subclass.

    ``code`` is the gRPC status and ``message`` a sentence for people. ``reason`` is a stable name
    for programs, ``field`` the field of the request that was refused, ``metadata`` what was wrong
    in detail; the three are empty if the error was made on the way and not by the server.
    ``retry_after`` is in seconds, None if the server promises nothing of a retry.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        field: str = "",
        metadata: dict[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(": ".join(part for part in (f"{code.name} {reason}".strip(), message)))
        self.code = code
        self.message = message
        self.reason = reason
        self.field = field
        self.metadata = metadata or {}
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), str(self), self.__dict__.copy())


class Cancelled(ServerError):
    """Somebody ended the request: an Abort call, or this client when it was closed."""


class InvalidArgument(ServerError):
    """``field`` of the request can't be served as it is; the message says what would be."""


class DeadlineExceeded(ServerError):
    """``timeout`` passed before the answer was complete."""


class NotFound(ServerError):
    """The thing that the request names does not exist on the server."""


class AlreadyExists(ServerError):
    """A request with this ``request_id`` runs, or ended less than a minute ago."""


class Unauthenticated(ServerError):
    """The server wants an API key, or does not know this one."""


class Overloaded(ServerError):
    """Refused for load (``retry_after`` says when to come back), or a message was too large."""


class Aborted(ServerError):
    """The answer was cut; ``metadata["tokens_sent"]`` says after how many tokens."""


class Unavailable(ServerError):
    """Nobody answers at the address, or nobody there can serve the request at present."""


_KINDS: dict[grpc.StatusCode, type[ServerError]] = {
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
}


def decode(error: Any) -> ServerError:
    """``error``: a ``grpc.RpcError`` of a call that has ended, of either kind of channel."""
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in _status(error).details:
        for message in (info, bad, retry):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    helps = retry.HasField("retry_delay")
    kind = _KINDS.get(error.code(), ServerError)
    return kind(
        error.code(),
        error.details() or "",
        reason=info.reason,
        field=bad.field_violations[0].field if bad.field_violations else "",
        metadata=dict(info.metadata),
        retry_after=retry.retry_delay.ToNanoseconds() / 1e9 if helps else None,
    )


def _status(error: Any) -> status_pb2.Status:
    try:
        return rpc_status.from_call(error) or status_pb2.Status()
    except (ValueError, DecodeError):  # Made by somebody between us and the server.
        return status_pb2.Status()


def _rebuild(kind: type[ServerError], text: str, state: dict[str, Any]) -> ServerError:
    error = kind.__new__(kind, text)
    error.__dict__.update(state)
    return error
