"""Our errors as gRPC statuses with google.rpc details."""

from __future__ import annotations

import logging
from typing import NoReturn

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from core.errors import CrossdockError, InternalError, InvalidField

log = logging.getLogger(__name__)

DOMAIN = "crossdock"
_DETAILS_KEY = "grpc-status-details-bin"
_CODES = {code.value[0]: code for code in grpc.StatusCode}


async def abort(context: grpc.aio.ServicerContext, error: CrossdockError) -> NoReturn:  # type: ignore[type-arg]
    """End the call with ``error``: status, ErrorInfo, BadRequest and RetryInfo where they apply."""
    details = to_rpc_status(error).SerializeToString()
    code = _CODES[error.status.grpc_number]
    await context.abort(code, error.message, ((_DETAILS_KEY, details),))


def to_rpc_status(error: CrossdockError) -> status_pb2.Status:
    status = status_pb2.Status(code=error.status.grpc_number, message=error.message)
    for detail in _details(error):
        status.details.add().Pack(detail)
    return status


def as_crossdock_error(error: Exception) -> CrossdockError:
    """What a client is told of ``error``; what we did not foresee is logged, not told."""
    if isinstance(error, CrossdockError):
        return error
    log.error("unforeseen error in a request", exc_info=error)
    return InternalError("an error inside the router; its log tells more", reason="INTERNAL")


def _details(error: CrossdockError) -> list[Message]:
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    details: list[Message] = [info]
    if isinstance(error, InvalidField):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.message
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return details
