"""The HTTP door: OpenAI-compatible endpoints. A shell over the intake.

A client that disconnects cancels its handler, and with it all its requests.
Does not cover: tokenizing (``router.doors.tokenize_door``), health and metrics
(``router.doors.status_door``).
"""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial

from aiohttp import web

from router.doors.event_stream import EventStream
from router.doors.grpc_errors import as_crossdock_error
from router.doors.http_access import tenant_of
from router.doors.http_bodies import read_body
from router.doors.http_errors import error_body
from router.doors.openai_answers import (
    AnswerHead,
    AnswerShape,
    AnswerWriter,
    ChatShape,
    CompletionShape,
    sse_event,
)
from router.doors.openai_bodies import ChatBody, CompletionBody, parse
from router.intake.request_intake import Call, RequestIntake
from router.requests.answer_stream import AnswerStream
from text.token_bytes import TokenBytes

_COMPLETION, _CHAT = CompletionShape(), ChatShape()


class OpenAIDoor:
    """``system_fingerprint`` tells clients when the server changed."""

    def __init__(self, intake: RequestIntake, tokens: TokenBytes, version: str) -> None:
        self._intake = intake
        self._tokens = tokens
        self._fingerprint = f"crossdock-{version}"
        self._started = int(time.time())

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/completions", partial(self._serve, CompletionBody, _COMPLETION)),
            web.post("/v1/chat/completions", partial(self._serve, ChatBody, _CHAT)),
            web.get("/v1/models", self._list_models),
            web.get("/v1/models/{model:.+}", self._get_model),
        ]

    async def _serve(
        self, kind: type[CompletionBody | ChatBody], shape: AnswerShape, request: web.Request
    ) -> web.StreamResponse:
        tenant = tenant_of(request)
        try:
            body = parse(kind, await read_body(request))
            answer = await self._intake.submit(self._calls(body, tenant))
        except Exception as error:
            # What is refused in here counts, too, as its tenant's.
            self._intake.refused(tenant, error)
            raise
        return await self._answer(request, body, answer, shape)

    def _calls(self, body: CompletionBody | ChatBody, tenant: str) -> list[Call]:
        """One for each prompt; raises InvalidField and what `ModelInfo.check_name` does."""
        body.check()
        sampling = body.sampling()
        prompts = body.prompts()
        if body.model is not None:
            self._intake.model.check_name(body.model)
        return [
            Call(prompt, sampling, prompt_field=field, tenant=tenant)
            for field, prompt in prompts.items()
        ]

    async def _answer(
        self,
        request: web.Request,
        body: CompletionBody | ChatBody,
        answer: AnswerStream,
        shape: AnswerShape,
    ) -> web.StreamResponse:
        name = self._intake.model.name
        writer = AnswerWriter(
            shape,
            AnswerHead(answer.request_id, name, int(time.time()), self._fingerprint),
            answer,
            self._tokens,
            include_usage=body.include_usage,
            continuous_usage=body.continuous_usage,
        )
        try:
            if body.stream:
                return await _stream(request, answer, writer)
            return web.json_response(writer.whole([item async for item in answer]))
        finally:
            answer.close()

    async def _list_models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._model()]})

    async def _get_model(self, request: web.Request) -> web.Response:
        self._intake.model.check_name(request.match_info["model"])
        return web.json_response(self._model())

    def _model(self) -> dict[str, object]:
        model = self._intake.model
        return {
            "id": model.name,
            "object": "model",
            "created": self._started,
            "owned_by": "crossdock",
            "max_model_len": model.max_model_len,
        }


class _EventResponse(web.StreamResponse):
    # The head goes with the first chunk; without this attribute of aiohttp's it goes before.
    _send_headers_immediately = False


async def _stream(
    request: web.Request, answer: AnswerStream, writer: AnswerWriter
) -> web.StreamResponse:
    """An error before the first token still gets its own HTTP status; later it is an event."""
    batch = await answer.batch()
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    response = _EventResponse(headers=headers)
    # A client that has gone in the meantime misses nothing.
    with suppress(ConnectionError):
        await response.prepare(request)
        begun = writer.opening() + writer.parts(batch)
        if answer.goes_on:
            await response.write(begun)
            begun = b""
        rest = await _rest(answer, EventStream(request, answer, writer), writer)
        await response.write_eof(begun + rest)
    return response


async def _rest(answer: AnswerStream, stream: EventStream, writer: AnswerWriter) -> bytes:
    """Lets ``stream`` write until the answer ends. Gives the end of the body, in one piece."""
    try:
        await answer.feed(stream)
    except Exception as error:
        return stream.last + sse_event(error_body(as_crossdock_error(error)))
    return stream.last + writer.closing()
