"""Errors of a server, decoded from the status and its google.rpc details."""

from __future__ import annotations

from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

_DETAILS_KEY = "grpc-status-details-bin"


class ServerError(Exception):
    """``code`` is the gRPC status, ``reason`` a stable name, ``metadata`` what was wrong.

    ``retry_after`` is in seconds, None if a retry doesn't help.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        metadata: dict[str, str],
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{code.name} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata = metadata
        self.retry_after = retry_after


def decode(error: grpc.RpcError) -> ServerError:
    """Errors that the transport made itself (no connection, deadline) have the reason ""."""
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    for detail in _details(error):
        for message in (info, retry):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    helps = retry.HasField("retry_delay")
    retry_after = retry.retry_delay.ToNanoseconds() / 1e9 if helps else None
    text = error.details() or ""
    return ServerError(error.code(), info.reason, text, dict(info.metadata), retry_after)


def _details(error: Any) -> list[Any]:
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY:
            return list(status_pb2.Status.FromString(value).details)
    return []
