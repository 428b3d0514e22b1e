"""Who may call the methods of a gRPC server: each call is looked at before it begins.

Covers: names in the certificates of who calls. Does not cover: the handshake, which has shown that
a certificate is of the right authority (``wire.tls_grpc``).
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from core.errors import CrossdockError, Unauthenticated
from core.tls_files import TlsFiles
from wire.grpc_errors import abort

if TYPE_CHECKING:  # The type stubs' generics are plain classes at run time.
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]
# Raises ``Unauthenticated``.
Check = Callable[["Context"], None]

_NAMES_KEY = "peer_dns"


class CheckCalls(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Refuses calls of which ``check`` raises. ``open_services``: full names of those that
    everybody may call who gets through the handshake."""

    def __init__(self, check: Check, open_services: Collection[str] = ()) -> None:
        self._check = check
        self._open = tuple(f"/{service}/" for service in open_services)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(self._open):
            return handler
        return _checked(handler, self._check)


def members_only(tls: TlsFiles | None) -> list[CheckCalls]:
    """Interceptors of a server that only members of the cluster may call."""
    return [] if tls is None else [CheckCalls(lambda context: require_name(context, {tls.name}))]


def require_name(context: Context, admitted: Collection[str]) -> None:
    """Raises ``Unauthenticated`` unless the caller's certificate carries one of these DNS names."""
    names = [name.decode() for name in context.auth_context().get(_NAMES_KEY, ())]
    if not set(names) & set(admitted):
        told = ", ".join(names) or "nobody"
        raise Unauthenticated(
            f"the certificate that was shown is for {told}; here it must be for "
            f"{' or '.join(sorted(admitted))}",
            reason="WRONG_CERTIFICATE",
        )


def _checked(handler: Any, check: Check) -> Handler:
    """The same in the same style: gRPC tells generators from other coroutines."""
    inner = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    behaviour = (_generator if inspect.isasyncgenfunction(inner) else _coroutine)(inner, check)
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return make(
        behaviour,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _coroutine(inner: Callable[..., Awaitable[Any]], check: Check) -> Callable[..., Any]:
    async def call(request: Any, context: Context) -> Any:
        await _refuse_unless(check, context)
        return await inner(request, context)

    return call


def _generator(inner: Callable[..., Any], check: Check) -> Callable[..., Any]:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        await _refuse_unless(check, context)
        async with aclosing(inner(request, context)) as responses:
            async for response in responses:
                yield response

    return call


async def _refuse_unless(check: Check, context: Context) -> None:
    try:
        check(context)
    except CrossdockError as error:
        await abort(context, error)
