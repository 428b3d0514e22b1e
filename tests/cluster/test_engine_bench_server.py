"""`crossdock bench engine --against`: real servers in this process, some of which are picky."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from aiohttp import web
from aiohttp.test_utils import TestServer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from cluster.engine_bench.cases import Cases
from cluster.engine_bench.results import ServerResult
from cluster.engine_bench.server_runs import check_reachable, measure_server
from core.errors import Unavailable

CASES = Cases(prompts=(20,), batches=(1, 3), contexts=(24,), runs=2, steps=5)
Body = dict[str, Any]


class Door:
    """Answers completions token by token. ``refuses``: says what it dislikes in a body, if at all;
    ``hidden``: whether tokens have no text; ``max_model_len``: what it says of itself."""

    def __init__(
        self,
        refuses: Callable[[Body], str] = lambda body: "",
        hidden: bool = False,
        max_model_len: int = 512,
    ) -> None:
        self.bodies: list[Body] = []
        self.running = self.most_running = 0
        self._refuses = refuses
        self._hidden = hidden
        self._max_model_len = max_model_len

    async def models(self, request: web.Request) -> web.Response:
        entry = {"id": "tiny", "max_model_len": self._max_model_len}
        return web.json_response({"data": [entry]})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if told := self._refuses(body):
            return web.json_response({"error": {"message": told}}, status=400)
        self.bodies.append(body)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self._answer(body, response)
        finally:
            self.running -= 1
        return response

    async def _answer(self, body: Body, response: web.StreamResponse) -> None:
        prompt = body["prompt"]
        length = len(prompt.split()) if isinstance(prompt, str) else len(prompt)
        counts = body["stream_options"].get("continuous_usage_stats", False)
        text = "" if self._hidden else "x"
        for i in range(1, body["max_tokens"] + 1):
            event: Body = {"choices": [{"index": 0, "text": text}]}
            if counts:
                event["usage"] = {"prompt_tokens": length, "completion_tokens": i}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
            await asyncio.sleep(0)
        usage = {"prompt_tokens": length, "completion_tokens": body["max_tokens"]}
        last = json.dumps({"choices": [], "usage": usage})
        await response.write(f"data: {last}\n\ndata: [DONE]\n\n".encode())


@pytest.fixture
async def open_door() -> AsyncIterator[Callable[[Door], Awaitable[str]]]:
    servers: list[TestServer] = []

    async def start(door: Door) -> str:
        app = web.Application()
        app.router.add_get("/v1/models", door.models)
        app.router.add_post("/v1/completions", door.complete)
        servers.append(TestServer(app))
        await servers[-1].start_server()
        return str(servers[-1].make_url("")).rstrip("/")

    yield start
    for server in servers:
        await server.close()


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """Each word is one token."""
    backend = tokenizers.Tokenizer(WordLevel({f"w{i}": i for i in range(100)}, unk_token="w0"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


async def measure(url: str, folder: Path, cases: Cases = CASES) -> ServerResult:
    return await measure_server(url, None, folder, cases, lambda text: None)


async def test_the_same_load_on_a_server(open_door, tokenizer) -> None:
    door = Door()
    result = await measure(await open_door(door), tokenizer)
    assert result.model == "tiny"
    assert result.sent == "token ids; ignore_eos; token counts by usage"
    assert not result.warnings
    [prefill] = result.prefill
    assert prefill.timing is not None
    assert prefill.timing.count == CASES.runs
    for case, batch in zip(result.decode, CASES.batches, strict=True):
        assert case.timing is not None, case.failure
        assert case.timing.count >= batch * CASES.steps
        assert case.mean_context > 24
    assert door.most_running == 3
    prompts = [tuple(body["prompt"]) for body in door.bodies]
    assert len(set(prompts)) == len(prompts)
    assert {len(body["prompt"]) for body in door.bodies if body["max_tokens"] == 1} == {20}


async def test_tokens_without_text_are_seen_where_the_server_counts_them(
    open_door, tokenizer
) -> None:
    result = await measure(await open_door(Door(hidden=True)), tokenizer)
    assert result.prefill[0].timing is not None
    assert all(case.timing is not None for case in result.decode)


def takes_text_only(body: Body) -> str:
    return "" if isinstance(body["prompt"], str) else "no token ids"


def knows_openai_only(body: Body) -> str:
    unknown = {"ignore_eos", "min_tokens"} & body.keys()
    unknown |= {"continuous_usage_stats"} & body["stream_options"].keys()
    return f"unknown {sorted(unknown)}" if unknown else ""


@pytest.mark.parametrize(
    ("refuses", "sent"),
    [
        (takes_text_only, "text; ignore_eos; token counts by usage"),
        (
            knows_openai_only,
            "token ids; answers may end early; a piece counts as one token",
        ),
        (
            lambda body: takes_text_only(body) or knows_openai_only(body),
            "text; answers may end early; a piece counts as one token",
        ),
    ],
)
async def test_a_picky_server_is_asked_as_it_likes(
    refuses: Callable[[Body], str], sent: str, open_door, tokenizer
) -> None:
    result = await measure(await open_door(Door(refuses)), tokenizer)
    assert result.sent == sent
    assert result.prefill[0].timing is not None
    assert all(case.timing is not None for case in result.decode)


async def test_a_server_that_refuses_everything_keeps_its_words(open_door, tokenizer) -> None:
    with pytest.raises(Unavailable, match="closed today"):
        await measure(await open_door(Door(lambda body: "closed today")), tokenizer)


async def test_a_case_that_the_server_can_not_take_is_no_end_of_the_others(
    open_door, tokenizer
) -> None:
    too_long = Cases(prompts=(20,), batches=(1,), contexts=(24, 100), runs=1, steps=5)
    result = await measure(await open_door(Door(max_model_len=64)), tokenizer, too_long)
    short, long = result.decode
    assert short.timing is not None
    assert (long.timing, long.failure) == (None, "the server ends sequences at 64 tokens")


async def test_nobody_there(unused_tcp_port: int) -> None:
    with pytest.raises(Unavailable, match="can't connect"):
        await check_reachable(f"http://127.0.0.1:{unused_tcp_port}", None)
