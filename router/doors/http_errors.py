"""Errors of the HTTP door: every answer that is no success has OpenAI's error body."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from core.errors import CrossdockError, InvalidField, NotFound, Unauthenticated
from router.doors.grpc_errors import as_crossdock_error
from router.doors.http_bodies import UnsupportedEncoding

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever a handler raises becomes an answer, unless nobody is there to read it."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        allowed = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return error_response(_of_http(request, error), error.status, allowed)
    except UnsupportedEncoding as error:
        return error_response(error, web.HTTPUnsupportedMediaType.status_code)
    except ConnectionError:
        raise
    except Exception as error:
        return error_response(as_crossdock_error(error))


def error_response(
    error: CrossdockError, status: int | None = None, headers: dict[str, str] | None = None
) -> web.Response:
    """``status`` defaults to that of the error's kind."""
    sent = dict(headers or {})
    if error.retry_after is not None:
        sent["Retry-After"] = str(math.ceil(error.retry_after))
    status = error.status.http_status if status is None else status
    if status == web.HTTPUnauthorized.status_code:
        sent["WWW-Authenticate"] = "Bearer"
    return web.json_response(error_body(error), status=status, headers=sent)


def certificate_missing(message: str) -> web.Response:
    return error_response(Unauthenticated(message, reason="CERTIFICATE_MISSING"))


def error_body(error: CrossdockError) -> dict[str, Any]:
    return {
        "error": {
            "message": error.message,
            "type": error.status.openai_type,
            "param": error.metadata.get("field"),
            "code": error.reason,
            "metadata": error.metadata,
        }
    }


def body_too_large(size: int | None, limit: int) -> InvalidField:
    """``size`` None: it was not told, and reading stopped at the limit."""
    shown = f"more than {limit} bytes" if size is None else f"{size} bytes"
    return InvalidField("body", shown, f"at most {limit} bytes", reason="BODY_TOO_LARGE")


def _of_http(request: web.Request, error: web.HTTPException) -> CrossdockError:
    """What aiohttp itself refuses, in our words."""
    path = request.path
    match error:
        case web.HTTPNotFound():
            metadata = {"field": "path", "value": path}
            return NotFound(f"there is no {path} here", reason="PATH_NOT_FOUND", metadata=metadata)
        case web.HTTPMethodNotAllowed():
            allowed = " or ".join(sorted(error.allowed_methods))
            fix = f"{path} takes {allowed}"
            return InvalidField("method", request.method, fix, reason="METHOD_NOT_ALLOWED")
        case web.HTTPRequestEntityTooLarge():
            return body_too_large(request.content_length, request.client_max_size)
        case web.HTTPUnsupportedMediaType():
            fix = "must be application/json"
            reason = "UNSUPPORTED_MEDIA_TYPE"
            return InvalidField("Content-Type", request.content_type, fix, reason=reason)
    return InvalidField("request", path, error.reason, reason="HTTP_ERROR")
