"""The HTTP door: OpenAI-compatible endpoints, health and metrics. A shell over the intake.

A client that disconnects cancels its handler, and with it the request.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from core.errors import CrossdockError, NotFound
from router.answer_stream import AnswerStream
from router.dispatcher import Dispatcher
from router.flow_messages import Emit, Finish
from router.grpc_errors import as_crossdock_error
from router.metrics import Metrics
from router.openai_answers import AnswerWriter, ChatShape, CompletionShape, error_body, event
from router.openai_bodies import ChatBody, CompletionBody, parse, usage
from router.request_intake import Call, RequestIntake

MAX_BODY_BYTES = 16 * 1024 * 1024
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class OpenAIDoor:
    """``app()`` is the aiohttp application."""

    def __init__(self, intake: RequestIntake, dispatcher: Dispatcher, metrics: Metrics) -> None:
        self._intake = intake
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._started = int(time.time())

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_answer_errors])
        app.add_routes(
            [
                web.post("/v1/completions", self._completions),
                web.post("/v1/chat/completions", self._chat),
                web.get("/v1/models", self._models),
                web.get("/health", self._health),
                web.get("/ready", self._ready),
                web.get("/metrics", self._render_metrics),
            ]
        )
        return app

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = parse(CompletionBody, await request.read())
        call = Call(body.single_prompt(), body.sampling())
        return await self._generate(request, body, call, CompletionShape())

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = parse(ChatBody, await request.read())
        call = Call(body.chat(), body.sampling())
        return await self._generate(request, body, call, ChatShape())

    async def _generate(
        self,
        request: web.Request,
        body: CompletionBody | ChatBody,
        call: Call,
        shape: CompletionShape | ChatShape,
    ) -> web.StreamResponse:
        self._check_model(body.model)
        answer = await self._intake.submit(call)
        name = self._intake.model.name
        now = int(time.time())
        writer = AnswerWriter(shape, answer.request_id, name, now, body.include_usage)
        try:
            if body.stream:
                return await _stream(request, answer, writer)
            return await _whole(answer, writer)
        finally:
            answer.close()

    def _check_model(self, name: str | None) -> None:
        served = self._intake.model.name
        if name is not None and name != served:
            raise NotFound(
                f"model {name!r} is not served here; this is {served!r}",
                reason="MODEL_NOT_FOUND",
                metadata={"field": "model", "value": name, "served": served},
            )

    async def _models(self, request: web.Request) -> web.Response:
        model = self._intake.model
        entry = {
            "id": model.name,
            "object": "model",
            "created": self._started,
            "owned_by": "crossdock",
            "max_model_len": model.max_model_len,
        }
        return web.json_response({"object": "list", "data": [entry]})

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _ready(self, request: web.Request) -> web.Response:
        """200 only while a worker that decodes can get requests."""
        ready = self._dispatcher.pool.ready and not self._intake.draining
        status = "ready" if ready else "no decode worker, or shutting down"
        return web.json_response({"status": status}, status=200 if ready else 503)

    async def _render_metrics(self, request: web.Request) -> web.Response:
        text = self._metrics.render(self._dispatcher.pool.candidates())
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4"})


async def _whole(answer: AnswerStream, writer: AnswerWriter) -> web.Response:
    parts: list[str] = []
    async for item in answer:
        if isinstance(item, Finish):
            body = writer.whole("".join(parts), item.reason.value, _usage(answer, item))
            return web.json_response(body)
        parts.append(item.text)
    raise AssertionError("a stream ends with Finish or raises")


async def _stream(
    request: web.Request, answer: AnswerStream, writer: AnswerWriter
) -> web.StreamResponse:
    """An error before the first token still gets its own HTTP status; later it is an event."""
    items = aiter(answer)
    item = await anext(items)
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    try:
        await response.write(writer.opening() + _item(item, answer, writer))
        async for item in items:
            await response.write(_item(item, answer, writer))
    except CrossdockError as error:
        await response.write(event(error_body(error)))
    await response.write_eof()
    return response


def _item(item: Emit | Finish, answer: AnswerStream, writer: AnswerWriter) -> bytes:
    if isinstance(item, Emit):
        return writer.part(item.text) if item.text else b""
    return writer.closing(item.reason.value, _usage(answer, item))


def _usage(answer: AnswerStream, finish: Finish) -> dict[str, object]:
    return usage(answer.prompt_tokens, finish.completion_tokens, finish.cached_tokens)


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        return web.json_response(_http_error_body(error), status=error.status)
    except Exception as error:
        return _error_response(as_crossdock_error(error))


def _error_response(error: CrossdockError) -> web.Response:
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    return web.json_response(error_body(error), status=error.status.http_status, headers=headers)


def _http_error_body(error: web.HTTPException) -> dict[str, object]:
    kind = "invalid_request_error"
    return {"error": {"message": error.reason, "type": kind, "param": None, "code": None}}
