"""Tokens that workers name by the numbers of their answers."""

import asyncio
from collections.abc import Sequence
from typing import Any

import aiohttp
from fake_worker import FakeWorker, sequence_output
from http_client import events, post

from crossdock.v1 import worker_pb2 as pb


def further(worker: FakeWorker, *tokens: tuple[int, int, str]) -> None:
    numbers, token_ids, texts = zip(*tokens, strict=True)
    say(worker, numbers, token_ids, texts)


def say(
    worker: FakeWorker, numbers: Sequence[int], token_ids: Sequence[int], texts: Sequence[str]
) -> None:
    columns = pb.FurtherTokens(answers=numbers, token_ids=token_ids, texts=texts)
    worker.say(pb.WorkerMessage(step=pb.Step(further=columns)))


async def test_each_answer_gets_its_own(start_cluster: Any, http: aiohttp.ClientSession) -> None:
    cluster = await start_cluster(worker := FakeWorker("d0", "decode"))
    options = {"include_usage": True}
    body = {"prompt": [5, 6], "n": 2, "stream": True, "stream_options": options}
    answer = asyncio.create_task(events(http, f"{cluster.url}/v1/completions", body))
    opened = await worker.got("open")
    first = opened.first_answer
    worker.step(sequence_output(opened.key, [1], f"{index}", index=index) for index in (0, 1))
    further(worker, (first + 1, 2, "b"), (first, 3, "a"))
    further(worker, (first, 4, "A"), (first + 1, 5, "B"))
    worker.step(sequence_output(opened.key, [6], "!", "stop", index=index) for index in (0, 1))
    *chunks, usage, _ = await answer
    texts = ["", ""]
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == ["0aA!", "1bB!"]
    assert usage["usage"]["completion_tokens"] == 8


async def test_a_token_may_be_the_first_that_comes(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    cluster = await start_cluster(worker := FakeWorker("d0", "decode"))
    url = f"{cluster.url}/v1/completions"
    answer = asyncio.create_task(post(http, url, {"prompt": [5, 6]}))
    opened = await worker.got("open")
    further(worker, (opened.first_answer, 1, "a"))
    further(worker, (opened.first_answer, 2, "b"))
    worker.output(opened.key, [3], "c", "stop")
    _, body = await answer
    assert body["choices"][0]["text"] == "abc"


async def test_what_comes_of_an_earlier_attempt_is_nobodys(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    cluster = await start_cluster(worker := FakeWorker("d0", "decode"))
    url = f"{cluster.url}/v1/completions"
    answer = asyncio.create_task(post(http, url, {"prompt": [5, 6]}))
    lost = await worker.got("open")
    worker.fail(lost.key, "INTERNAL")
    opened = await worker.got("open", 2)
    worker.output(opened.key, [1], "a")
    further(worker, (lost.first_answer, 2, "late"), (opened.first_answer, 3, "b"))
    worker.output(opened.key, [4], "c", "stop")
    _, body = await answer
    assert body["choices"][0]["text"] == "abc"


async def test_nothing_is_kept_of_requests_that_have_ended(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    script = ((1, "a"), (2, "b"))
    cluster = await start_cluster(FakeWorker("d0", "decode", script=script))
    await post(http, f"{cluster.url}/v1/completions", {"prompt": [5, 6], "n": 3})
    assert not cluster.router.dispatcher._numbers._known


async def test_columns_that_do_not_fit_end_the_stream(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    cluster = await start_cluster(worker := FakeWorker("d0", "decode"))
    url = f"{cluster.url}/v1/completions"
    answer = asyncio.create_task(post(http, url, {"prompt": [5, 6]}))
    opened = await worker.got("open")
    worker.output(opened.key, [1], "a")
    say(worker, [opened.first_answer, opened.first_answer], [3], ["a", "b"])
    _, body = await answer
    assert "lost worker d0" in body["error"]["message"]
