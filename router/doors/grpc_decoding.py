"""Requests that don't parse are the caller's error, not an unknown one.

Covers: turning bytes into request messages for one of our services. Left to itself gRPC answers
UNKNOWN when a deserializer raises. Does not cover: what a parsed request may hold, and streams of
requests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from core.errors import InvalidField
from wire.grpc_errors import abort

if TYPE_CHECKING:  # The type stubs' generics are plain classes at run time.
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]
_FIX = "can't be read as the request message of this method; note that strings must be UTF-8"


class RefuseUnreadable(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Answers INVALID_ARGUMENT to bytes that are no message of the method they were sent to.

    ``service``: full name of the service whose methods are watched.
    """

    def __init__(self, service: str) -> None:
        self._prefix = f"/{service}/"

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(self._prefix):
            return handler
        return _parsing_stream(handler) if handler.response_streaming else _parsing_unary(handler)


def _parsing_unary(handler: Any) -> Handler:
    async def answer(raw: bytes, context: Context) -> Any:
        return await handler.unary_unary(await _parse(handler, raw, context), context)

    return grpc.unary_unary_rpc_method_handler(
        answer, response_serializer=handler.response_serializer
    )


def _parsing_stream(handler: Any) -> Handler:
    """For a method that writes its responses by itself."""

    async def answer(raw: bytes, context: Context) -> None:
        await handler.unary_stream(await _parse(handler, raw, context), context)

    return grpc.unary_stream_rpc_method_handler(
        answer, response_serializer=handler.response_serializer
    )


async def _parse(handler: Any, raw: bytes, context: Context) -> Any:
    try:
        return handler.request_deserializer(raw)
    except DecodeError:
        reason = "UNREADABLE_REQUEST"
        await abort(context, InvalidField("request", f"{len(raw)} bytes", _FIX, reason=reason))
