"""Clients that ask all the time, by each of the ways, and compare what they get with what is right.

Right is what the same cluster answered when nothing else happened. A request may fail as it may in
production: refused, cut off, or its router's connection lost. It may neither be answered wrongly
nor be left without an end.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import aiohttp
import grpc

from crossdock.client import AsyncClient, Client, RetryPolicy, ServerError

LENGTHS = (4, 64)
# Far longer than any answer takes, whatever dies.
LOST_S = 120.0
_ONCE = RetryPolicy(max_tries=1)
_MAY_FAIL = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_MAY_REFUSE = (429, 503)


@dataclass(frozen=True)
class Question:
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: tuple[tuple[str, Any], ...]

    def options(self) -> dict[str, Any]:
        return {"max_tokens": self.max_tokens, "ignore_eos": True, **dict(self.sampling)}


@dataclass(frozen=True)
class Right:
    tokens: Sequence[int]
    text: str


def questions(random: Random) -> list[Question]:
    """Some prompts begin as others do; greedy and seeded answers."""
    prompts = [some_bytes(random, random.choice([3, 17, 40, 130, 400, 900])) for _ in range(8)]
    prompts += [random.choice(prompts) + some_bytes(random, 60) for _ in range(4)]
    greedy, seeded = (("temperature", 0.0),), (("temperature", 0.8), ("seed", 7))
    return [Question(p, n, how) for p in prompts for n in LENGTHS for how in (greedy, seeded)]


def some_bytes(random: Random, count: int) -> tuple[int, ...]:
    return tuple(random.randrange(256) for _ in range(count))


def right_answers(address: str, asked: Sequence[Question]) -> dict[Question, Right]:
    with Client(address) as client:
        client.wait_ready(timeout=60)
        return {question: _right(client, question) for question in asked}


def _right(client: Client, question: Question) -> Right:
    answer = client.answer(token_ids=question.prompt, timeout=LOST_S, **question.options())
    return Right(answer.token_ids, answer.text)


@dataclass
class CheckedClients:
    """``doors``: gRPC and HTTP addresses of the routers that there are now."""

    right: dict[Question, Right]
    doors: Callable[[], Sequence[tuple[str, str]]]
    random: Random
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _channels: dict[str, AsyncClient] = field(default_factory=dict)

    async def ask_until(self, over: Callable[[], bool], clients: int) -> None:
        async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._ask_until(over, http))
        for channel in self._channels.values():
            await channel.close()

    async def _ask_until(self, over: Callable[[], bool], http: aiohttp.ClientSession) -> None:
        while not over():
            question = self.random.choice(list(self.right))
            by_grpc, by_http = self.random.choice(self.doors())
            way = self.random.choice(["grpc", "ticket", "leave", "http"])
            if way == "http":
                outcome = await self._by_http(http, by_http, question)
            else:
                outcome = await self._by_grpc(by_grpc, question, way)
            self.outcomes[f"{way}: {outcome}"] += 1

    async def _by_grpc(self, address: str, question: Question, way: str) -> str:
        got: list[int] = []
        try:
            await self._read(address, question, way, got)
        except ServerError as error:
            if error.code not in _MAY_FAIL:
                self._is_wrong(question, way, repr(error))
            outcome = f"{error.code.name} {error.reason or ''} {'later' if got else 'at once'}"
        else:
            outcome = "left" if way == "leave" else "answered"
        right = list(self.right[question].tokens)
        if got != (right if outcome == "answered" else right[: len(got)]):
            self._is_wrong(question, way, f"{got}, not {right}")
        return outcome

    async def _read(self, address: str, question: Question, way: str, got: list[int]) -> None:
        client = self._channels.setdefault(address, AsyncClient(address, retries=_ONCE))
        stream = client.generate(
            token_ids=question.prompt,
            timeout=LOST_S,
            by_ticket=way == "ticket",
            **question.options(),
        )
        async for response in stream:
            got += response.chunk.token_ids
            if way == "leave" and len(got) >= question.max_tokens // 2:
                await stream.aclose()
                return

    async def _by_http(self, http: aiohttp.ClientSession, address: str, question: Question) -> str:
        body = {"prompt": list(question.prompt), "stream": True, **question.options()}
        url, timeout = f"http://{address}/v1/completions", aiohttp.ClientTimeout(total=LOST_S)
        try:
            async with http.post(url, json=body, timeout=timeout) as response:
                if response.status != 200:
                    return self._refused(question, response.status, await response.text())
                lines = [line async for line in response.content if line.startswith(b"data: ")]
        except TimeoutError:
            self._is_wrong(question, "http", "no end")
            return "lost"
        except aiohttp.ClientError as error:
            return type(error).__name__
        return self._check_events(question, [line.removeprefix(b"data: ") for line in lines])

    def _refused(self, question: Question, status: int, text: str) -> str:
        if status not in _MAY_REFUSE:
            self._is_wrong(question, "http", text)
        return str(status)

    def _check_events(self, question: Question, events: Sequence[bytes]) -> str:
        """An answer that does not end with [DONE] has to say why."""
        *told, last = [json.loads(event) if b"[DONE]" not in event else None for event in events]
        if last is not None:
            if "error" not in last:
                self._is_wrong(question, "http", "it ends without an end")
            return "cut"
        text = "".join(event["choices"][0]["text"] for event in told)
        if text != self.right[question].text:
            self._is_wrong(question, "http", f"{text!r}, not {self.right[question].text!r}")
        return "answered"

    def _is_wrong(self, question: Question, way: str, why: str) -> None:
        self.wrong.append(f"{way}, {len(question.prompt)} tokens, {question.options()}: {why}")
