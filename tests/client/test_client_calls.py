"""Both clients against a server whose answers are written in the test."""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from scripted_server import Answer, ScriptedServer

from core import errors
from crossdock import client as light
from crossdock.client import AsyncClient, Client, RetryPolicy

BRIEF = RetryPolicy(max_tries=3, first_pause_s=0.01, longest_pause_s=0.02)
FULL = Answer(error=errors.Overloaded("full", reason="NO_ROOM", retry_after=0.02))
GOOD = Answer(["hello", " world"])

Ask = Callable[..., Awaitable[light.Answer]]


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    started = ScriptedServer()
    started.address = await started.start()  # type: ignore[attr-defined]
    yield started
    await started.server.stop(None)


@pytest.fixture(params=["blocking", "asyncio"])
def ask(request: Any, server: Any) -> Ask:
    """``answer`` of either client."""

    def blocking(*args: Any, **options: Any) -> light.Answer:
        with Client(server.address, retries=BRIEF) as client:
            return client.answer(*args, **options)

    async def either(*args: Any, **options: Any) -> light.Answer:
        if request.param == "blocking":
            return await asyncio.to_thread(blocking, *args, **options)
        async with AsyncClient(server.address, retries=BRIEF) as client:
            return await client.answer(*args, **options)

    return either


async def test_a_whole_answer(server: Any, ask: Ask) -> None:
    server.script = [GOOD]
    answer = await ask("hi", max_tokens=3, stop="END", priority=2)
    assert (answer.text, answer.token_ids) == ("hello world", [1, 1])
    assert answer.outputs[0].finish_reason == "stop"
    [request] = server.seen
    assert (request.text, request.priority) == ("hi", 2)
    assert (request.sampling.max_tokens, list(request.sampling.stop)) == (3, ["END"])
    assert answer.request_id == request.request_id != ""


async def test_a_refused_request_is_tried_again_under_another_id(server: Any, ask: Ask) -> None:
    server.script = [FULL, FULL, GOOD]
    answer = await ask("hi", request_id="mine")
    assert answer.text == "hello world"
    ids = [request.request_id for request in server.seen]
    assert ids[0] == "mine"
    assert all(later.startswith("mine~") for later in ids[1:])
    assert len(set(ids)) == 3
    assert answer.request_id == ids[2]


async def test_after_the_last_try_the_servers_error_is_told(server: Any, ask: Ask) -> None:
    server.script = [FULL] * 4
    with pytest.raises(light.Overloaded) as caught:
        await ask("hi")
    assert (caught.value.reason, caught.value.retry_after) == ("NO_ROOM", 0.02)
    assert len(server.seen) == BRIEF.max_tries


async def test_a_retry_that_would_miss_the_deadline_is_not_waited_for(
    server: Any, ask: Ask
) -> None:
    server.script = [Answer(error=errors.Overloaded("full", reason="NO_ROOM", retry_after=90.0))]
    with pytest.raises(light.Overloaded):
        await ask("hi", timeout=60.0)
    assert len(server.seen) == 1


async def test_nothing_is_tried_again_after_the_first_token(server: Any, ask: Ask) -> None:
    gone = errors.Unavailable("gone", reason="X", retry_after=0.01)
    server.script = [Answer(["hello"], error=gone), GOOD]
    with pytest.raises(light.Unavailable):
        await ask("hi")
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.InvalidField("top_p", 2, "must be at most 1"), light.InvalidArgument),
        (errors.AlreadyExists("taken", reason="REQUEST_ID_TAKEN"), light.AlreadyExists),
        (errors.NotFound("none", reason="N", metadata={"a": "b"}), light.NotFound),
        (errors.RequestAborted("cut", reason="C", retry_after=1.0), light.Aborted),
        (errors.RequestCancelled("ended", reason="E"), light.Cancelled),
        (errors.DeadlineExceeded("late", reason="L"), light.DeadlineExceeded),
        (errors.Unavailable("never", reason="PORT"), light.Unavailable),
        (errors.InternalError("bug", reason="INTERNAL"), light.ServerError),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_an_error_arrives_with_its_kind_and_all_that_it_says(
    server: Any, ask: Ask, error: errors.CrossdockError, kind: type[light.ServerError]
) -> None:
    server.script = [Answer(error=error)]
    with pytest.raises(light.ServerError) as caught:
        await ask("hi")
    told = caught.value
    assert type(told) is kind
    assert (told.message, told.reason, told.metadata) == (
        error.message,
        error.reason,
        error.metadata,
    )
    assert told.field == getattr(error, "field", "")
    assert told.retry_after == error.retry_after
    assert len(server.seen) == 1
    again = pickle.loads(pickle.dumps(told))  # noqa: S301
    assert (type(again), str(again), again.reason) == (kind, str(told), told.reason)


async def test_a_timeout_is_a_deadline_for_the_server_too(server: Any, ask: Ask) -> None:
    server.script = [Answer(["hello"], hangs=True)]
    with pytest.raises(light.DeadlineExceeded):
        await ask("hi", timeout=0.3)
    await server.cancelled.wait()


async def test_a_server_that_is_not_there_yet_is_tried_again(ask: Ask, server: Any) -> None:
    await server.server.stop(None)
    with pytest.raises(light.Unavailable) as caught:
        await ask("hi", timeout=20.0)
    assert caught.value.reason == ""


async def test_closing_the_blocking_stream_cancels_the_call(server: Any) -> None:
    server.script = [Answer(["hello"], hangs=True)]

    def use() -> None:
        with Client(server.address) as client:
            stream = client.generate("hi")
            assert next(stream).chunk.text == "hello"
            stream.close()
            assert client.model_info().model == "tiny"

    await asyncio.to_thread(use)
    await server.cancelled.wait()


async def test_closing_the_asyncio_stream_cancels_the_call(server: Any) -> None:
    server.script = [Answer(["hello"], hangs=True)]
    async with AsyncClient(server.address) as client:
        stream = client.generate("hi")
        assert (await anext(stream)).chunk.text == "hello"
        await stream.aclose()
        await server.cancelled.wait()
        assert (await client.model_info()).model == "tiny"


async def test_cancelling_the_task_that_reads_cancels_the_call(server: Any) -> None:
    server.script = [Answer(hangs=True)]
    async with AsyncClient(server.address) as client:
        reading = asyncio.create_task(client.answer("hi"))
        await server.sending.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await server.cancelled.wait()


async def test_closing_the_client_ends_what_it_runs(server: Any) -> None:
    server.script = [Answer(hangs=True), Answer(hangs=True)]
    first = AsyncClient(server.address)
    second = Client(server.address)
    readers = [
        asyncio.create_task(first.answer("hi")),
        asyncio.create_task(asyncio.to_thread(second.answer, "hi")),
    ]
    while len(server.seen) < 2:  # noqa: ASYNC110 - the server has no event for "both"
        await asyncio.sleep(0.005)
    await first.close()
    second.close()
    for reader in readers:
        with pytest.raises(light.Cancelled):
            await reader


async def test_abort_finds_a_request_that_was_retried(server: Any) -> None:
    server.script = [FULL, Answer(["hello"], hangs=True)]
    async with AsyncClient(server.address, retries=BRIEF) as client:
        stream = client.generate("hi", request_id="mine")
        await anext(stream)
        await client.abort("mine")
        await stream.aclose()
        await client.abort("mine")
    assert server.aborted == [server.seen[1].request_id, "mine"]


async def test_waiting_for_a_server_that_starts_later(server: Any) -> None:
    await server.server.stop(None)
    async with AsyncClient(server.address) as client:
        with Client(server.address) as blocking:
            assert not await client.is_ready()
            assert not await asyncio.to_thread(blocking.is_ready)
            waiting = asyncio.gather(
                client.wait_ready(60.0), asyncio.to_thread(blocking.wait_ready, 60.0)
            )
            await server.start(server.address)
            await server.set_serving(False)
            assert not await client.is_ready()
            await server.set_serving(True)
            await waiting
            assert await client.is_ready()
            assert await asyncio.to_thread(blocking.is_ready)


async def test_waiting_for_a_server_ends_with_its_timeout(server: Any) -> None:
    await server.set_serving(False)
    async with AsyncClient(server.address) as client:
        with pytest.raises(light.DeadlineExceeded):
            await client.wait_ready(0.2)
    with Client(server.address) as blocking, pytest.raises(light.DeadlineExceeded):
        await asyncio.to_thread(blocking.wait_ready, 0.2)


async def test_closed_clients_leave_neither_threads_nor_connections(server: Any) -> None:
    server.script = [GOOD, *[Answer(["hello"], hangs=True)] * 40]

    def use(leave: bool) -> None:
        with Client(server.address) as client:
            stream = client.generate("hi")
            next(stream)
            if not leave:
                list(stream)

    await asyncio.to_thread(use, False)
    before = threads(), sockets()
    for _ in range(20):
        await asyncio.to_thread(use, True)
        async with AsyncClient(server.address) as client:
            stream = client.generate("hi")
            await anext(stream)
            await stream.aclose()
    while threads() > before[0] or sockets() > before[1]:  # noqa: ASYNC110 - gRPC closes them late
        await asyncio.sleep(0.01)


def threads() -> int:
    """Threads other than those of ``to_thread``."""
    return sum(not thread.name.startswith("asyncio") for thread in threading.enumerate())


def sockets() -> int:
    """Connections that this process holds open."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            count += os.readlink(entry).startswith("socket:")
        except FileNotFoundError:
            continue
    return count


async def test_details_that_contradict_the_status_are_not_believed() -> None:
    """A proxy may change a status and leave the details of another one."""

    async def contradict(request: bytes, context: Any) -> None:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff"),))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "from a proxy")

    handler = grpc.unary_unary_rpc_method_handler(contradict)
    generic = grpc.method_handlers_generic_handler(
        "crossdock.v1.Inference", {"GetModelInfo": handler}
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((generic,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncClient(f"127.0.0.1:{port}", retries=RetryPolicy(max_tries=1)) as client:
        with pytest.raises(light.Unavailable, match="from a proxy"):
            await client.model_info()
    await server.stop(None)
