"""The HTTP door: OpenAI answers whole and streamed, several prompts, log-probabilities, metrics."""

import asyncio
import gc
import socket
from typing import Any

import aiohttp
from fake_worker import FakeWorker, sequence_output, some_logprobs
from http_client import events, get, post

from router.requests.answer_stream import AnswerStream
from router.requests.running_request import RunningRequest

SCRIPT = ((10, "hello"), (11, " world"))
CHAT = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]


def decode(name: str = "d0", **options: Any) -> FakeWorker:
    return FakeWorker(name, "decode", **options)


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
    assert message == {"role": "assistant", "content": "hello world", "refusal": None}
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


async def test_continuous_usage_counts_along(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    cluster = await start_cluster(decode(script=SCRIPT))
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": [5, 6], "stream": True, "stream_options": options}
    *chunks, _ = await events(http, f"{cluster.url}/v1/completions", body)
    assert [c["usage"]["completion_tokens"] for c in chunks] == [1, 2, 2, 2]
    assert "prompt_tokens_details" in chunks[-1]["usage"]


async def test_choices_of_several_prompts_are_numbered_through(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    cluster = await start_cluster(decode())
    body = {"prompt": [[5, 6], [7], [8, 9, 10]], "n": 2}
    url = f"{cluster.url}/v1/completions"
    asking = asyncio.create_task(post(http, url, body))
    opened = [await cluster["d0"].got("open", count) for count in (1, 2, 3)]
    by_length = sorted(opened, key=lambda message: len(message.token_ids))
    in_order = [by_length[1], by_length[0], by_length[2]]
    for number, message in reversed(list(enumerate(in_order))):
        cluster["d0"].step(
            sequence_output(message.key, [9], f"p{number} a{index}", "stop", 1 + number, index)
            for index in (1, 0)
        )
    status, answer = await asking
    assert status == 200
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [
        (0, "p0 a0"),
        (1, "p0 a1"),
        (2, "p1 a0"),
        (3, "p1 a1"),
        (4, "p2 a0"),
        (5, "p2 a1"),
    ]
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (6, 6)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 6}


async def test_streams_of_several_prompts_are_merged(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    cluster = await start_cluster(decode(script=SCRIPT))
    body = {"prompt": ["hi", "you"], "n": 2, "stream": True}
    *chunks, closing = await events(http, f"{cluster.url}/v1/completions", body)
    assert closing == "[DONE]"
    for index in range(4):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert [choice["text"] for choice in mine] == ["hello", " world", ""]
        assert [choice["finish_reason"] for choice in mine] == [None, None, "stop"]


async def test_one_bad_prompt_starts_none_of_them(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    cluster = await start_cluster(decode())
    body = {"prompt": [[5], [6], [5000]]}
    status, answer = await post(http, f"{cluster.url}/v1/completions", body)
    assert (status, answer["error"]["param"]) == (400, "prompt.2")
    assert cluster["d0"].received == []


async def test_one_prompt_that_fails_ends_the_others(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    cluster = await start_cluster(decode())
    body = {"prompt": [[5], [6], [7]]}
    asking = asyncio.create_task(post(http, f"{cluster.url}/v1/completions", body))
    opened = [await cluster["d0"].got("open", count) for count in (1, 2, 3)]
    cluster["d0"].output(opened[1].key, [9], "hi")
    cluster["d0"].fail(opened[1].key, "INTERNAL", "the engine stopped")
    status, answer = await asking
    assert (status, answer["error"]["code"]) == (503, "STREAM_CUT")
    aborted = [(await cluster["d0"].got("abort", count)).key for count in (1, 2)]
    assert {key.request_id for key in aborted} == {
        opened[0].key.request_id,
        opened[2].key.request_id,
    }
    assert cluster.router.dispatcher.idle.is_set()


async def test_a_client_that_leaves_cancels_all_prompts(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    cluster = await start_cluster(decode())
    body = {"prompt": [[5], [6], [7]], "n": 3, "stream": True}
    async with asyncio.TaskGroup() as tasks:
        request = tasks.create_task(http.post(f"{cluster.url}/v1/completions", json=body))
        opened = [await cluster["d0"].got("open", count) for count in (1, 2, 3)]
        cluster["d0"].output(opened[0].key, [9], "hi", "stop", index=2)
        response = await request
        await response.content.readuntil(b"\n\n")
        response.close()
        aborted = [(await cluster["d0"].got("abort", count)).key for count in (1, 2, 3)]
    assert {key.request_id for key in aborted} == {m.key.request_id for m in opened}
    await cluster.router.dispatcher.idle.wait()


async def test_completion_logprobs(start_cluster: Any, http: aiohttp.ClientSession) -> None:
    cluster = await start_cluster(decode())
    encode = cluster.router._tokenizer.encode
    face, world = encode("é").tolist(), encode(" world").tolist()
    asking = asyncio.create_task(
        post(http, f"{cluster.url}/v1/completions", {"prompt": "hi", "logprobs": 2})
    )
    opened = await cluster["d0"].got("open")
    assert opened.sampling.logprobs == 2
    ids = [*face, *world, 1]
    logprobs = [some_logprobs(token, 2) for token in ids]
    cluster["d0"].step(
        [sequence_output(opened.key, ids[:1], "", logprobs=logprobs[:1])],
    )
    cluster["d0"].step(
        [sequence_output(opened.key, ids[1:], "é world", "stop", logprobs=logprobs[1:])]
    )
    got = (await asking)[1]["choices"][0]["logprobs"]
    assert got["tokens"][:2] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert "".join(got["tokens"][2:]) == " world<|im_end|>"
    assert got["token_logprobs"] == [-0.5] * len(ids)
    assert got["text_offset"][:3] == [0, 0, 1]
    assert got["text_offset"][-1] == len("é world")
    assert got["top_logprobs"][0]["bytes:\\xc3"] == -0.5
    assert [len(top) for top in got["top_logprobs"]] == [2] * len(ids)


async def test_chat_logprobs(start_cluster: Any, http: aiohttp.ClientSession) -> None:
    cluster = await start_cluster(decode())
    token = int(cluster.router._tokenizer.encode("é")[0])
    url = f"{cluster.url}/v1/chat/completions"
    body = {"messages": CHAT, "logprobs": True, "top_logprobs": 1, "stream": True}
    asking = asyncio.create_task(events(http, url, body))
    opened = await cluster["d0"].got("open")
    output = sequence_output(opened.key, [token], "", "stop", logprobs=[some_logprobs(token, 1)])
    cluster["d0"].step([output])
    _, chunk, *_ = await asking
    entry = {"token": "\ufffd", "logprob": -0.5, "bytes": [0xC3]}
    assert chunk["choices"][0]["delta"] == {}
    assert chunk["choices"][0]["logprobs"] == {
        "content": [{**entry, "top_logprobs": [entry]}],
        "refusal": None,
    }


async def test_a_chat_may_ask_for_the_chosen_tokens_only(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    cluster = await start_cluster(decode(script=SCRIPT))
    body = {"messages": CHAT, "logprobs": True, "n": 2}
    _, answer = await post(http, f"{cluster.url}/v1/chat/completions", body)
    for choice in answer["choices"]:
        content = choice["logprobs"]["content"]
        assert [entry["top_logprobs"] for entry in content] == [[], []]
    assert (await cluster["d0"].got("open")).sampling.logprobs == 0


async def test_sampling_fields_reach_the_worker(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    cluster = await start_cluster(decode(script=SCRIPT))
    body = {
        "prompt": "hi",
        "logit_bias": {"5": -100, "7": 1.5},
        "presence_penalty": 1,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.25,
        "seed": 7,
        "stop": ["a", "b"],
        "n": 3,
        "best_of": 3,
        "echo": False,
    }
    status, _ = await post(http, f"{cluster.url}/v1/completions", body)
    sampling = (await cluster["d0"].got("open")).sampling
    assert status == 200
    assert dict(sampling.logit_bias) == {5: -100.0, 7: 1.5}
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1.0, -0.5)
    assert (sampling.repetition_penalty, sampling.seed, sampling.n) == (1.25, 7, 3)
    assert list(sampling.stop) == ["a", "b"]


async def test_tokens_are_sent_at_once(start_cluster: Any, http: aiohttp.ClientSession) -> None:
    """Nagle's algorithm would hold a token back until the one before it is acknowledged."""
    cluster = await start_cluster(decode())
    await get(http, f"{cluster.url}/health")
    [connection] = cluster.router._http.server.connections
    raw = connection.transport.get_extra_info("socket")
    assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_nothing_of_a_request_is_left_to_the_garbage_collector(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    cluster = await start_cluster(decode(script=SCRIPT))
    url = f"{cluster.url}/v1/completions"
    # What other tests left is not this one's.
    gc.collect()
    gc.disable()
    try:
        await post(http, url, {"prompt": "hi", "n": 2})
        await events(http, url, {"prompt": "hi", "stream": True})
        # Answered after the ones before have ended.
        await get(http, f"{cluster.url}/health")
        left = [o for o in gc.get_objects() if isinstance(o, AnswerStream | RunningRequest)]
    finally:
        gc.enable()
    assert not left


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


async def test_models_health_and_ready(start_cluster: Any, http: aiohttp.ClientSession) -> None:
    cluster = await start_cluster(decode())
    async with http.get(f"{cluster.url}/v1/models") as response:
        [model] = (await response.json())["data"]
    assert (model["id"], model["max_model_len"]) == ("tiny", 128)
    assert await get(http, f"{cluster.url}/v1/models/tiny") == (200, model)
    status, answer = await get(http, f"{cluster.url}/v1/models/some/other")
    assert (status, answer["error"]["code"]) == (404, "MODEL_NOT_FOUND")
    status, answer = await get(http, f"{cluster.url}/version")
    assert (status, list(answer)) == (200, ["version"])
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
    whose = 'slo_class="default",tenant="default"'
    expected = {
        f'crossdock_requests_total{{outcome="finished",{whose}}}': 1,
        f'crossdock_requests_total{{outcome="refused",{whose}}}': 1,
        f'crossdock_requests_total{{outcome="aborted",{whose}}}': 0,
        'crossdock_workers{role="prefill"}': 1,
        'crossdock_workers{role="decode"}': 1,
        "crossdock_requests_running": 0,
        "crossdock_request_retries_total": 0,
        'crossdock_prompt_tokens_total{tenant="default"}': 3,
        'crossdock_cached_tokens_total{tenant="default"}': 16,
        'crossdock_generation_tokens_total{tenant="default"}': 2,
        "crossdock_time_to_first_token_seconds_count": 1,
        "crossdock_inter_token_latency_seconds_count": 1,
        "crossdock_e2e_request_latency_seconds_count": 1,
    }
    assert {name: float(values[name]) for name in expected} == expected
    assert 'crossdock_time_to_first_token_seconds_bucket{le="0.06"}' in values
