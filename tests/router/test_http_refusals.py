"""Bad input over HTTP: typed errors with OpenAI bodies, and a server that goes on."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fake_worker import FakeWorker
from http_client import get, post, post_raw

from router.doors.http_bodies import MAX_BODY_BYTES

SCRIPT = ((10, "hello"), (11, " world"))
CHAT = [{"role": "user", "content": "hi"}]
MEGABYTE = 1024 * 1024


@pytest.fixture
async def cluster(start_cluster: Any) -> AsyncIterator[Any]:
    """After each refusal the server still answers."""
    running = await start_cluster(FakeWorker("d0", "decode", script=SCRIPT))
    yield running
    async with aiohttp.ClientSession() as session:
        status, _ = await post(session, f"{running.url}/v1/completions", {"prompt": "hi"})
        assert status == 200
    assert len(running["d0"].received) == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("completions", {"prompt": "hi", "model": "other"}, 404, "model"),
        ("completions", {}, 400, "prompt"),
        ("completions", {"prompt": ""}, 400, "prompt"),
        ("completions", {"prompt": []}, 400, "prompt"),
        ("completions", {"prompt": ["a", ""]}, 400, "prompt.1"),
        ("completions", {"prompt": "x" * MEGABYTE}, 400, "prompt"),
        ("completions", {"prompt": "hi", "max_tokens": 1000}, 400, "max_tokens"),
        ("completions", {"prompt": "hi", "max_tokens": 0}, 400, "max_tokens"),
        ("completions", {"prompt": "hi", "temperature": -0.1}, 400, "temperature"),
        ("completions", {"prompt": "hi", "top_p": 0}, 400, "top_p"),
        ("completions", {"prompt": "hi", "n": 0}, 400, "n"),
        ("completions", {"prompt": "hi", "n": 17}, 400, "n"),
        ("completions", {"prompt": "hi", "n": 10**40}, 400, "n"),
        ("completions", {"prompt": "hi", "seed": -1}, 400, "seed"),
        ("completions", {"prompt": "hi", "stop": ["x"] * 10_000}, 400, "stop"),
        ("completions", {"prompt": "hi", "stop": "x" * 257}, 400, "stop"),
        ("completions", {"prompt": "hi", "logprobs": 21}, 400, "logprobs"),
        ("completions", {"prompt": "hi", "logit_bias": {"300": 1}}, 400, "logit_bias"),
        ("completions", {"prompt": "hi", "logit_bias": {"5": 101}}, 400, "logit_bias"),
        ("completions", {"prompt": [5, 400]}, 400, "prompt"),
        ("completions", {"prompt": [5, -1]}, 400, "prompt"),
        ("completions", {"prompt": [5, 2**70]}, 400, "prompt"),
        ("completions", {"prompt": [[5], [400]]}, 400, "prompt.1"),
        ("completions", {"prompt": ["a", "x" * MEGABYTE]}, 400, "prompt.1"),
        ("completions", {"prompt": [[5], [5] * 128]}, 400, "prompt.1"),
        ("chat/completions", {"messages": [{"role": "robot"}]}, 400, "messages"),
    ],
)
async def test_bad_bodies_are_refused_by_name(
    cluster: Any, http: aiohttp.ClientSession, path: str, body: Any, status: int, param: str
) -> None:
    got, answer = await post(http, f"{cluster.url}/v1/{path}", body)
    error = answer["error"]
    assert (got, error["param"]) == (status, param)
    assert set(error) >= {"message", "type", "param", "code"}
    assert param in error["message"]


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (b"", "body"),
        (b"{nope", "body"),
        (b'{"prompt": "\xff"}', "body"),
        (b'{"prompt": "\\ud800"}', "prompt"),
        (b'{"prompt": "hi", "stop": ["a", "\\udfff"]}', "stop.1"),
        (b'{"prompt": "hi", "temperature": NaN}', "body"),
        (b'{"prompt": "hi", "temperature": 1e400}', "temperature"),
        (b'{"prompt": "hi", "n": 1, "n": 2}', "n"),
        (b'{"prompt": "hi", "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "body"),
        (b'{"prompt": "hi", "x": ' + b"[" * 900 + b"]" * 900 + b"}", "x"),
    ],
)
async def test_bad_json_is_refused_by_name(
    cluster: Any, http: aiohttp.ClientSession, raw: bytes, param: str
) -> None:
    status, answer = await post_raw(http, f"{cluster.url}/v1/completions", raw)
    assert (status, answer["error"]["param"]) == (400, param)


async def test_surrogates_in_messages_are_named(cluster: Any, http: aiohttp.ClientSession) -> None:
    raw = b'{"messages": [{"role": "user", "content": "x\\ud800"}]}'
    status, answer = await post_raw(http, f"{cluster.url}/v1/chat/completions", raw)
    assert (status, answer["error"]["param"]) == (400, "messages.0.content")


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_of_100_mb_is_refused_and_not_kept(
    cluster: Any, http: aiohttp.ClientSession, chunked: bool
) -> None:
    async def megabytes() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * MEGABYTE

    # Not the process's memory: other tests' threads and caches come and go in it.
    tracemalloc.start()
    length = {} if chunked else {"Content-Length": str(100 * MEGABYTE)}
    headers = {"Content-Type": "application/json", **length}
    url = f"{cluster.url}/v1/completions"
    async with http.post(url, data=megabytes(), headers=headers) as response:
        answer = await response.json()
    error = answer["error"]
    assert (response.status, error["code"], error["param"]) == (413, "BODY_TOO_LARGE", "body")
    assert str(MAX_BODY_BYTES) in error["message"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"at most {peak / MEGABYTE:.0f} MiB at a time")
    assert peak < 90 * MEGABYTE, "it was kept"


async def test_a_wrong_method_path_or_content_type(
    cluster: Any, http: aiohttp.ClientSession
) -> None:
    async with http.get(f"{cluster.url}/v1/completions") as response:
        error = (await response.json())["error"]
        assert (response.status, error["param"]) == (405, "method")
        assert response.headers["Allow"] == "POST"
        assert "takes POST" in error["message"]
    status, answer = await get(http, f"{cluster.url}/v1/nothing")
    assert (status, answer["error"]["code"]) == (404, "PATH_NOT_FOUND")
    form = "application/x-www-form-urlencoded"
    status, answer = await post_raw(http, f"{cluster.url}/v1/completions", b"{}", form)
    assert (status, answer["error"]["param"]) == (415, "Content-Type")
    assert "application/json" in answer["error"]["message"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "x-none", "identity, gzip"])
@pytest.mark.parametrize("path", ["v1/completions", "v1/chat/completions", "tokenize"])
async def test_compressed_bodies_are_refused_by_name(
    cluster: Any, http: aiohttp.ClientSession, path: str, encoding: str
) -> None:
    """Whether they are what the header says or not."""
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    for body in (b'{"prompt": "hi"}', gzip.compress(b'{"prompt": "hi"}')):
        async with http.post(f"{cluster.url}/{path}", data=body, headers=headers) as response:
            error = (await response.json())["error"]
        assert (response.status, error["type"]) == (415, "invalid_request_error")
        assert (error["param"], error["code"]) == ("Content-Encoding", "UNSUPPORTED_ENCODING")
        assert encoding in error["message"]
        assert "uncompressed" in error["message"]


async def test_a_body_may_say_that_it_is_not_compressed(
    cluster: Any, http: aiohttp.ClientSession
) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "Identity"}
    url = f"{cluster.url}/tokenize"
    async with http.post(url, data=b'{"prompt": "hi"}', headers=headers) as response:
        assert response.status == 200


async def test_no_worker_is_503_with_retry_after(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    empty = await start_cluster()
    body = {"prompt": "hi", "stream": True}
    async with http.post(f"{empty.url}/v1/completions", json=body) as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) >= 1
        assert (await response.json())["error"]["code"] == "NO_WORKER"


@pytest.mark.parametrize(
    "template",
    [
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
    ],
)
async def test_a_template_without_end_fails_by_itself(
    start_cluster: Any,
    http: aiohttp.ClientSession,
    model_folder: Path,
    tmp_path: Path,
    template: str,
) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((model_folder / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    cluster = await start_cluster(FakeWorker("d0", "decode", script=SCRIPT), model=tmp_path)
    (status, answer), (other, _) = await asyncio.gather(
        post(http, f"{cluster.url}/v1/chat/completions", {"messages": CHAT}),
        post(http, f"{cluster.url}/v1/completions", {"prompt": "hi"}),
    )
    assert (status, answer["error"]["param"], other) == (400, "messages", 200)
    assert "chat template" in answer["error"]["message"]
