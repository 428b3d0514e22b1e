"""The HTTP target against servers that answer well, badly, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from openai_events import StartServer, answer_well, sse, start_events, text_event

from core.errors import CrossdockError, Incompatible, InvalidField, Unavailable
from tuner.load.openai_target import Endpoint, OpenAIOptions, OpenAITarget, check_url
from tuner.load.records import Usage
from tuner.load.target import AnswerLog

PROMPT = np.array([5, 6, 7], dtype=np.int32)


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[OpenAITarget]:
    target = OpenAITarget(OpenAIOptions(url, **options))
    try:
        await target.describe()
        yield target
    finally:
        await target.close()


async def failure(url: str) -> CrossdockError:
    async with opened(url) as target:
        with pytest.raises(CrossdockError) as caught:
            await target.send(target.prepare(PROMPT, 4), AnswerLog(lambda: 0.0))
    return caught.value


async def test_a_completion_of_token_ids(openai_server: StartServer) -> None:
    bodies = []

    async def keep_body(request: web.Request) -> web.StreamResponse:
        bodies.append((await request.json(), request.headers["Authorization"]))
        return await answer_well(request)

    url = await openai_server(keep_body)
    async with opened(f"{url}/v1", api_key="secret") as target:
        answer = AnswerLog(lambda: 0.0)
        await target.send(target.prepare(PROMPT, 4), answer)
    assert len(answer.chunk_times) == 4
    assert answer.usage == Usage(3, 4)
    assert bodies == [
        (
            {
                "model": "tiny",
                "prompt": [5, 6, 7],
                "max_tokens": 4,
                "min_tokens": 4,
                "ignore_eos": True,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            },
            "Bearer secret",
        )
    ]


async def test_a_chat_without_fields_that_only_some_servers_know(
    openai_server: StartServer,
) -> None:
    bodies = []

    async def chat(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        response = await start_events(request)
        part = {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]}
        await response.write(sse(part, "[DONE]"))
        return response

    url = await openai_server(chat)
    async with opened(url, endpoint=Endpoint.CHAT, model="mine", ignore_eos=False) as target:
        answer = AnswerLog(lambda: 0.0)
        await target.send(target.prepare("say hi", 4), answer)
    assert bodies[0]["messages"] == [{"role": "user", "content": "say hi"}]
    assert bodies[0]["model"] == "mine"
    assert not {"ignore_eos", "min_tokens", "prompt"} & bodies[0].keys()
    assert len(answer.chunk_times) == 1


async def test_the_model_is_found_with_its_length(openai_server: StartServer) -> None:
    target = OpenAITarget(OpenAIOptions(await openai_server(answer_well)))
    model = await target.describe()
    assert (model.name, model.max_model_len) == ("tiny", 512)
    await target.close()


@pytest.mark.parametrize("status", [400, 429, 503])
async def test_a_refusal_is_counted_by_its_status(status: int, openai_server: StartServer) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "come later"}}, status=status)

    refused = await failure(await openai_server(refuse))
    assert (refused.reason, refused.message) == (f"HTTP_{status}", "come later")


@pytest.mark.parametrize(
    ("status", "page", "words"),
    [
        (502, "<html>\n<p>bad gateway\n</html>", "answers 502 Bad Gateway"),
        (404, " <!DOCTYPE html>\n", "answers 404 Not Found: is it an OpenAI-compatible server?"),
        (404, "", "answers 404 Not Found: is it an OpenAI-compatible server?"),
        (429, "too many\n  requests\n", "answers 429 Too Many Requests: too many requests"),
    ],
)
async def test_an_error_page_that_is_no_json_becomes_one_line(
    status: int, page: str, words: str, openai_server: StartServer
) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.Response(text=page, status=status)

    base = await openai_server(refuse)
    refused = await failure(base)
    assert (refused.reason, refused.message) == (
        f"HTTP_{status}",
        f"{base}/v1/completions {words}",
    )


async def test_a_connection_that_breaks_mid_stream(openai_server: StartServer) -> None:
    async def break_off(request: web.Request) -> web.StreamResponse:
        response = await start_events(request)
        await response.write(sse(text_event("a")))
        assert request.transport is not None
        request.transport.abort()
        return response

    assert (await failure(await openai_server(break_off))).reason == "DISCONNECTED"


async def test_a_stream_that_ends_too_early(openai_server: StartServer) -> None:
    async def stop_early(request: web.Request) -> web.StreamResponse:
        response = await start_events(request)
        await response.write(sse(text_event("a")))
        return response

    assert (await failure(await openai_server(stop_early))).reason == "DISCONNECTED"


async def test_an_answer_that_is_no_stream(openai_server: StartServer) -> None:
    async def whole(request: web.Request) -> web.Response:
        return web.json_response({"choices": [{"text": "a"}]})

    refused = await failure(await openai_server(whole))
    assert refused.reason == "MALFORMED_STREAM"
    assert "application/json" in refused.message


async def test_a_malformed_stream(openai_server: StartServer) -> None:
    async def babble(request: web.Request) -> web.StreamResponse:
        response = await start_events(request)
        await response.write(sse("{never json"))
        return response

    assert (await failure(await openai_server(babble))).reason == "MALFORMED_STREAM"


async def test_nobody_there(unused_tcp_port: int) -> None:
    target = OpenAITarget(OpenAIOptions(f"http://127.0.0.1:{unused_tcp_port}"))
    with pytest.raises(Unavailable, match="can't connect") as refused:
        await target.describe()
    assert refused.value.reason == "CONNECT_FAILED"
    await target.close()


async def test_a_server_that_refuses_ignore_eos_is_told_apart(openai_server: StartServer) -> None:
    async def strict(request: web.Request) -> web.StreamResponse:
        if "ignore_eos" in await request.json():
            return web.json_response({"error": {"message": "unknown ignore_eos"}}, status=400)
        return await answer_well(request)

    url = await openai_server(strict)
    async with opened(url) as target:
        with pytest.raises(Incompatible, match="--no-ignore-eos"):
            await target.check(PROMPT, 2)
    async with opened(url, ignore_eos=False) as target:
        assert (await target.check(PROMPT, 2)).usage == Usage(3, 2)


async def test_a_server_that_refuses_everything_keeps_its_words(openai_server: StartServer) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "no such model"}}, status=400)

    async with opened(await openai_server(refuse)) as target:
        with pytest.raises(Unavailable, match="no such model"):
            await target.check(PROMPT, 2)


async def test_a_cancelled_request_closes_its_connection(openai_server: StartServer) -> None:
    reached, gone = asyncio.Event(), asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse:
        response = await start_events(request)
        reached.set()
        try:
            while True:
                await response.write(sse(text_event("a")))
                await asyncio.sleep(0)
        finally:
            gone.set()

    async with opened(await openai_server(hang)) as target:
        call = target.send(target.prepare(PROMPT, 2), AnswerLog(lambda: 0.0))
        task = asyncio.create_task(call)
        await reached.wait()
        task.cancel()
        await asyncio.wait({task})
        await gone.wait()
    assert task.cancelled()


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://x", "http://", "http://h:99999", "http://h:0", "http://["]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(InvalidField, match="--target"):
        check_url("--target", url)


def test_addresses_that_are_some() -> None:
    for url in ("http://127.0.0.1:8000", "https://example.org/v1", "http://[::1]:80/"):
        check_url("--target", url)
