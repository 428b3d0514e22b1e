"""The official OpenAI client, unchanged, against the router."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from fake_worker import FakeWorker, sequence_output
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from router.flow.retries import RetryLimits

SCRIPT = ((10, "hello"), (11, " world"))
CHAT: list[Any] = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def cluster(start_cluster: Any) -> Any:
    d0 = FakeWorker("d0", "decode", script=SCRIPT)
    return await start_cluster(
        d0, limits=RetryLimits(attach_patience_s=0.2, replacement_patience_s=0.2)
    )


@pytest.fixture
async def silent(start_cluster: Any) -> Any:
    """Its worker says only what a test makes it say."""
    return await start_cluster(FakeWorker("d0", "decode"))


@pytest.fixture
async def client() -> AsyncIterator[Any]:
    """Call it with a cluster."""
    made: list[openai.AsyncOpenAI] = []

    def make(cluster: Any) -> openai.AsyncOpenAI:
        made.append(openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0))
        return made[-1]

    yield make
    for one in made:
        await one.close()


def strictly(answer: Any) -> Any:
    """The client takes anything; its own types say what an answer must look like."""
    return type(answer).model_validate(answer.model_dump(mode="json"))


async def test_chat(cluster: Any, client: Any) -> None:
    answer: ChatCompletion = await client(cluster).chat.completions.create(
        model="tiny",
        messages=CHAT,
        n=2,
        seed=3,
        stop=["END"],
        logprobs=True,
        top_logprobs=2,
        logit_bias={"5": -100},
        max_completion_tokens=9,
    )
    strictly(answer)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert {choice.message.content for choice in answer.choices} == {"hello world"}
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    assert answer.choices[1].logprobs is not None
    assert answer.choices[1].logprobs.content is not None
    first = answer.choices[1].logprobs.content[0]
    assert first.bytes is not None
    assert (bytes(first.bytes).decode(), len(first.top_logprobs)) == (first.token, 2)
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.system_fingerprint is None) == (4, False)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 16
    sampling = (await cluster["d0"].got("open")).sampling
    assert (sampling.n, sampling.seed, list(sampling.stop)) == (2, 3, ["END"])
    assert (sampling.max_tokens, sampling.logprobs) == (9, 2)


async def test_streamed_chat(cluster: Any, client: Any) -> None:
    stream = await client(cluster).chat.completions.create(
        model="tiny", messages=CHAT, n=2, stream=True, stream_options={"include_usage": True}
    )
    texts = ["", ""]
    ends = []
    usage = None
    async for chunk in stream:
        assert isinstance(chunk, ChatCompletionChunk)
        strictly(chunk)
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends += [choice.index] if choice.finish_reason else []
    assert texts == ["hello world"] * 2
    assert sorted(ends) == [0, 1]
    assert usage is not None
    assert usage.completion_tokens == 4


async def test_the_streaming_helper_gathers_logprobs(cluster: Any, client: Any) -> None:
    calls = client(cluster).chat.completions
    async with calls.stream(model="tiny", messages=CHAT, logprobs=True) as stream:
        answer = await stream.get_final_completion()
    [choice] = answer.choices
    assert choice.message.content == "hello world"
    assert len(choice.logprobs.content) == 2


async def test_completions(cluster: Any, client: Any) -> None:
    answer: Completion = await client(cluster).completions.create(
        model="tiny", prompt=["hi", "you"], n=2, logprobs=1, best_of=2
    )
    strictly(answer)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    logprobs = answer.choices[3].logprobs
    assert logprobs is not None
    assert logprobs.text_offset is not None
    assert logprobs.tokens is not None
    assert logprobs.text_offset == [0, len(logprobs.tokens[0])]


async def test_streamed_completions(cluster: Any, client: Any) -> None:
    stream = await client(cluster).completions.create(model="tiny", prompt=[5, 6], stream=True)
    # The type has no place for the null that OpenAI, too, sends in all chunks but the last.
    choices = [chunk.choices[0] async for chunk in stream]
    assert [choice.text for choice in choices] == ["hello", " world", ""]
    assert choices[-1].finish_reason == "stop"


async def test_models(cluster: Any, client: Any) -> None:
    models = [model async for model in client(cluster).models.list()]
    assert [model.id for model in models] == ["tiny"]
    assert isinstance(strictly(await client(cluster).models.retrieve("tiny")), Model)


async def test_errors_have_the_clients_types(cluster: Any, client: Any) -> None:
    chats = client(cluster).chat.completions
    with pytest.raises(openai.BadRequestError) as caught:
        await chats.create(model="tiny", messages=CHAT, temperature=3.0)
    assert (caught.value.param, caught.value.code) == ("temperature", "INVALID_FIELD")
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError, match="not served here"):
        await chats.create(model="gpt-4o", messages=CHAT)
    with pytest.raises(openai.NotFoundError):
        await client(cluster).models.retrieve("gpt-4o")
    with pytest.raises(openai.BadRequestError, match="echo"):
        await client(cluster).completions.create(model="tiny", prompt="hi", echo=True)
    await cluster["d0"].kill()
    with pytest.raises(openai.InternalServerError) as unavailable:
        await chats.create(model="tiny", messages=CHAT)
    assert unavailable.value.status_code == 503


async def test_a_cut_stream_is_an_error(silent: Any, client: Any) -> None:
    creating = asyncio.create_task(
        client(silent).completions.create(model="tiny", prompt="hi", n=2, stream=True)
    )
    opened = await silent["d0"].got("open")
    silent["d0"].step([sequence_output(opened.key, [9], "hi", index=1)])
    stream = await creating
    assert (await anext(stream)).choices[0].text == "hi"
    silent["d0"].fail(opened.key, "INTERNAL", "the engine stopped")
    with pytest.raises(openai.APIError, match="cut after 1 tokens"):
        await anext(stream)


async def test_closing_a_stream_cancels_all_choices(silent: Any, client: Any) -> None:
    creating = asyncio.create_task(
        client(silent).chat.completions.create(model="tiny", messages=CHAT, n=3, stream=True)
    )
    opened = await silent["d0"].got("open")
    silent["d0"].output(opened.key, [9], "hi", index=2)
    stream = await creating
    await stream.close()
    assert (await silent["d0"].got("abort")).key == opened.key
    await silent.router.dispatcher.idle.wait()
