"""What an OpenAI server writes, for tests that play one."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web


def sse(*events: object) -> bytes:
    """Events as an OpenAI server writes them; a string is written as it is."""
    texts = (event if isinstance(event, str) else json.dumps(event) for event in events)
    return b"".join(f"data: {text}\n\n".encode() for text in texts)


def text_event(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish}]}


def usage_event(prompt: int, completion: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}


async def start_events(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    return response


async def answer_well(request: web.Request) -> web.StreamResponse:
    """As many tokens as asked for, one by one, with usage."""
    body = await request.json()
    response = await start_events(request)
    for _ in range(body["max_tokens"]):
        await response.write(sse(text_event("x")))
    usage = usage_event(len(body["prompt"]), body["max_tokens"])
    await response.write(sse(text_event("", "length"), usage, "[DONE]"))
    return response


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
StartServer = Callable[[Handler], Awaitable[str]]
