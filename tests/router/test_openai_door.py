"""The HTTP door: OpenAI bodies, streams, refusals, health and metrics."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from fake_worker import FakeWorker

SCRIPT = ((10, "hello"), (11, " world"))
CHAT = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]


def decode(name: str = "d0", **options: Any) -> FakeWorker:
    return FakeWorker(name, "decode", **options)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def post(http: aiohttp.ClientSession, url: str, body: Any) -> tuple[int, Any]:
    async with http.post(url, json=body) as response:
        return response.status, await response.json()


async def events(http: aiohttp.ClientSession, url: str, body: Any) -> list[Any]:
    async with http.post(url, json=body) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        lines = (await response.text()).split("\n\n")
    assert lines.pop() == ""
    data = [line.removeprefix("data: ") for line in lines]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


async def test_a_completion(start_cluster: Any, http: aiohttp.ClientSession) -> None:
    cluster = await start_cluster(decode(script=SCRIPT))
    body = {"model": "tiny", "prompt": [5, 6, 7], "user": "me", "n": 1, "logprobs": None}
    status, answer = await post(http, f"{cluster.url}/v1/completions", body)
    assert status == 200
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["choices"] == [
        {"index": 0, "text": "hello world", "logprobs": None, "finish_reason": "stop"}
    ]
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 16},
    }
    assert (await cluster["d0"].got("open")).sampling.max_tokens == 16


async def test_a_chat(start_cluster: Any, http: aiohttp.ClientSession) -> None:
    cluster = await start_cluster(decode(script=SCRIPT))
    body = {
        "model": "tiny",
        "messages": [*CHAT, {"role": "user", "content": [{"type": "text", "text": "more"}]}],
        "temperature": 0,
        "stop": "END",
        "max_completion_tokens": 7,
    }
    status, answer = await post(http, f"{cluster.url}/v1/chat/completions", body)
    assert status == 200
    assert answer["object"] == "chat.completion"
    message = answer["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "hello world"}
    sampling = (await cluster["d0"].got("open")).sampling
    assert (sampling.temperature, list(sampling.stop), sampling.max_tokens) == (0.0, ["END"], 7)


async def test_a_streamed_chat_with_usage(start_cluster: Any, http: aiohttp.ClientSession) -> None:
    cluster = await start_cluster(decode(script=SCRIPT))
    body = {"messages": CHAT, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, closing = await events(http, f"{cluster.url}/v1/chat/completions", body)
    assert closing == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1])
    assert text == "hello world"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 2
    assert all(c["usage"] is None for c in chunks[:-1])
    assert len({c["id"] for c in chunks}) == 1


async def test_a_streamed_completion(start_cluster: Any, http: aiohttp.ClientSession) -> None:
    cluster = await start_cluster(decode(script=SCRIPT))
    body = {"prompt": "hi", "stream": True}
    *chunks, closing = await events(http, f"{cluster.url}/v1/completions", body)
    assert closing == "[DONE]"
    assert [c["choices"][0]["text"] for c in chunks] == ["hello", " world", ""]
    assert all("usage" not in c for c in chunks)


async def test_a_disconnected_client_cancels(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    cluster = await start_cluster(decode())
    body = {"prompt": "hi", "stream": True}
    async with asyncio.TaskGroup() as tasks:
        request = tasks.create_task(http.post(f"{cluster.url}/v1/completions", json=body))
        opened = await cluster["d0"].got("open")
        cluster["d0"].output(opened.key, [9], "hi")
        response = await request
        await response.content.readuntil(b"\n\n")
        response.close()
        assert (await cluster["d0"].got("abort")).key == opened.key


async def test_a_client_that_leaves_before_the_first_token_cancels(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    cluster = await start_cluster(decode())
    request = asyncio.create_task(http.post(f"{cluster.url}/v1/completions", json={"prompt": "hi"}))
    opened = await cluster["d0"].got("open")
    request.cancel()
    assert (await cluster["d0"].got("abort")).key == opened.key


async def test_a_cut_stream_ends_with_an_error_event(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    cluster = await start_cluster(decode())
    body = {"prompt": "hi", "stream": True}
    answer = asyncio.create_task(events(http, f"{cluster.url}/v1/completions", body))
    opened = await cluster["d0"].got("open")
    cluster["d0"].output(opened.key, [9, 10], "hi")
    cluster["d0"].fail(opened.key, "INTERNAL", "the engine stopped")
    first, last = await answer
    assert first["choices"][0]["text"] == "hi"
    assert last["error"]["code"] == "STREAM_CUT"
    assert last["error"]["metadata"]["tokens_sent"] == "2"


async def test_no_worker_is_503_with_retry_after(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    cluster = await start_cluster()
    body = {"prompt": "hi", "stream": True}
    async with http.post(f"{cluster.url}/v1/completions", json=body) as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) >= 1
        assert (await response.json())["error"]["code"] == "NO_WORKER"


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("completions", {"prompt": "hi", "model": "other"}, 404, "model"),
        ("completions", {}, 400, "prompt"),
        ("completions", {"prompt": 5}, 400, "prompt"),
        ("completions", {"prompt": "hi", "stream_options": {"x": 1}}, 400, "stream_options.x"),
        ("completions", {"prompt": ""}, 400, "prompt"),
        ("completions", {"prompt": []}, 400, "prompt"),
        ("completions", {"prompt": ["a", "b"]}, 400, "prompt"),
        ("completions", {"prompt": "hi", "max_tokens": 1000}, 400, "max_tokens"),
        ("completions", {"prompt": "hi", "temperature": "hot"}, 400, "temperature"),
        ("completions", {"prompt": "hi", "top_p": 0}, 400, "top_p"),
        ("completions", {"prompt": "hi", "n": 3}, 400, "n"),
        ("completions", {"prompt": "hi", "best_of": 2}, 400, "best_of"),
        ("completions", {"prompt": "hi", "echo": True}, 400, "echo"),
        ("completions", {"prompt": "hi", "logprobs": 1}, 400, "logprobs"),
        ("completions", {"prompt": "hi", "logit_bias": {"5": 1}}, 400, "logit_bias"),
        ("completions", {"prompt": "hi", "what_is_this": 1}, 400, "what_is_this"),
        ("completions", {"prompt": [5, 400]}, 400, "token_ids"),
        ("completions", {"prompt": [5, -1]}, 400, "token_ids"),
        ("completions", {"prompt": [5, 2**40]}, 400, "token_ids"),
        ("chat/completions", {"messages": []}, 400, "messages"),
        ("chat/completions", {"messages": [{"content": "x"}]}, 400, "messages.0.role"),
        ("chat/completions", {"messages": [{"role": "robot"}]}, 400, "messages"),
        ("chat/completions", {"messages": CHAT, "tools": [{"type": "f"}]}, 400, "tools"),
        ("chat/completions", {"messages": CHAT, "logprobs": True}, 400, "logprobs"),
        (
            "chat/completions",
            {"messages": CHAT, "response_format": {"type": "json_object"}},
            400,
            "response_format",
        ),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]},
            400,
            "messages.tool_calls",
        ),
    ],
)
async def test_bad_bodies_are_refused_by_name(
    start_cluster: Any,
    http: aiohttp.ClientSession,
    path: str,
    body: Any,
    status: int,
    param: str,
) -> None:
    cluster = await start_cluster(decode())
    got, answer = await post(http, f"{cluster.url}/v1/{path}", body)
    assert got == status
    assert answer["error"]["param"] == param
    assert answer["error"]["message"]
    assert cluster["d0"].received == []


async def test_what_is_not_json_and_unknown_paths(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    cluster = await start_cluster(decode())
    async with http.post(f"{cluster.url}/v1/completions", data=b"{nope") as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "body"
    async with http.get(f"{cluster.url}/v1/nothing") as response:
        assert response.status == 404
        assert "error" in await response.json()


async def test_models_health_and_ready(start_cluster: Any, http: aiohttp.ClientSession) -> None:
    cluster = await start_cluster(decode())
    async with http.get(f"{cluster.url}/v1/models") as response:
        [model] = (await response.json())["data"]
    assert (model["id"], model["max_model_len"]) == ("tiny", 128)
    for path in ("health", "ready"):
        async with http.get(f"{cluster.url}/{path}") as response:
            assert response.status == 200
    await cluster["d0"].kill()
    await cluster.until(lambda c: not c.usable())
    async with http.get(f"{cluster.url}/ready") as response:
        assert response.status == 503


async def test_metrics_count_what_happened(start_cluster: Any, http: aiohttp.ClientSession) -> None:
    cluster = await start_cluster(FakeWorker("p0", "prefill"), decode(script=SCRIPT))
    url = f"{cluster.url}/v1/completions"
    await post(http, url, {"prompt": [5, 6, 7]})
    await post(http, url, {"prompt": ""})
    async with http.get(f"{cluster.url}/metrics") as response:
        lines = (await response.text()).splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    expected = {
        'crossdock_requests_total{outcome="finished"}': 1,
        'crossdock_requests_total{outcome="refused"}': 1,
        'crossdock_requests_total{outcome="aborted"}': 0,
        'crossdock_workers{role="prefill"}': 1,
        'crossdock_workers{role="decode"}': 1,
        "crossdock_requests_running": 0,
        "crossdock_request_retries_total": 0,
        "crossdock_prompt_tokens_total": 3,
        "crossdock_cached_tokens_total": 16,
        "crossdock_generation_tokens_total": 2,
        "crossdock_time_to_first_token_seconds_count": 1,
        "crossdock_inter_token_latency_seconds_count": 1,
        "crossdock_e2e_request_latency_seconds_count": 1,
    }
    assert {name: float(values[name]) for name in expected} == expected
    assert 'crossdock_time_to_first_token_seconds_bucket{le="0.06"}' in values
