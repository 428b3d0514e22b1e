"""Our errors as gRPC statuses with google.rpc details."""

from __future__ import annotations

from typing import NoReturn

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from core.errors import CrossdockError, InvalidField

DOMAIN = "crossdock"
_DETAILS_KEY = "grpc-status-details-bin"
_CODES = {code.value[0]: code for code in grpc.StatusCode}
# A status travels in HTTP/2 trailers, of which clients take 8 KiB; a longer one reaches nobody.
# The message is in there up to three times, percent-encoded and in base64.
MAX_MESSAGE_BYTES = 640
MAX_VALUE_BYTES = 320


async def abort(context: grpc.aio.ServicerContext, error: CrossdockError) -> NoReturn:  # type: ignore[type-arg]
    """End the call with ``error``: status, ErrorInfo, BadRequest and RetryInfo where they apply."""
    status = to_rpc_status(error)
    details = status.SerializeToString()
    await context.abort(_CODES[status.code], status.message, ((_DETAILS_KEY, details),))


def to_rpc_status(error: CrossdockError) -> status_pb2.Status:
    message = _fitting(error.message, MAX_MESSAGE_BYTES)
    status = status_pb2.Status(code=error.status.grpc_number, message=message)
    for detail in _details(error):
        status.details.add().Pack(detail)
    return status


def _details(error: CrossdockError) -> list[Message]:
    metadata = {key: _fitting(value, MAX_VALUE_BYTES) for key, value in error.metadata.items()}
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    details: list[Message] = [info]
    if isinstance(error, InvalidField):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=_fitting(error.message, MAX_MESSAGE_BYTES)
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return details


def _fitting(text: str, limit: int) -> str:
    """Cut to ``limit`` bytes of UTF-8. What UTF-8 can't say (lone surrogates) becomes "?"."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit:
        return raw.decode()
    return f"{raw[: limit - 3].decode('utf-8', 'ignore')}…"
