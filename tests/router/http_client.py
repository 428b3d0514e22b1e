"""The few HTTP calls that tests of the door make."""

from __future__ import annotations

import json
from typing import Any

import aiohttp


async def post(http: aiohttp.ClientSession, url: str, body: Any) -> tuple[int, Any]:
    async with http.post(url, json=body) as response:
        return response.status, await response.json()


async def post_raw(
    http: aiohttp.ClientSession, url: str, body: Any, content_type: str = "application/json"
) -> tuple[int, Any]:
    async with http.post(url, data=body, headers={"Content-Type": content_type}) as response:
        return response.status, await response.json()


async def get(http: aiohttp.ClientSession, url: str) -> tuple[int, Any]:
    async with http.get(url) as response:
        return response.status, await response.json()


async def events(http: aiohttp.ClientSession, url: str, body: Any) -> list[Any]:
    """The data of each server-sent event, parsed unless it is ``[DONE]``."""
    async with http.post(url, json=body) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        lines = (await response.text()).split("\n\n")
    assert lines.pop() == ""
    data = [line.removeprefix("data: ") for line in lines]
    return [item if item == "[DONE]" else json.loads(item) for item in data]
