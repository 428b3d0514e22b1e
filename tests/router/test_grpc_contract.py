"""What any gRPC client can rely on: refusals it can read, limits, one table for both doors."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from fake_worker import FakeWorker
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from core import errors
from core.errors import CrossdockError, InvalidField
from crossdock.v1 import inference_pb2 as pb
from crossdock.v1.inference_pb2_grpc import InferenceStub
from router.doors.grpc_limits import MAX_PENDING_S, SERVER_OPTIONS
from router.doors.http_bodies import MAX_BODY_BYTES
from wire.grpc_errors import to_rpc_status

SCRIPT = ((10, "hello"), (11, " world"))
GENERATE = "/crossdock.v1.Inference/Generate"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def decode(**options: Any) -> FakeWorker:
    return FakeWorker("d0", "decode", **options)


Channel = Callable[[Any], grpc.aio.Channel]


@pytest.fixture
async def channel() -> AsyncIterator[Channel]:
    """A channel as any program would open it, with no limit of its own on what it sends."""
    opened: list[grpc.aio.Channel] = []

    def open_channel(cluster: Any) -> grpc.aio.Channel:
        options = (("grpc.max_send_message_length", -1),)
        opened.append(grpc.aio.insecure_channel(cluster.grpc_address, options=options))
        return opened[-1]

    yield open_channel
    for one in opened:
        await one.close()


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return caught.value


async def text_of(call: Any) -> str:
    return "".join([response.chunk.text async for response in call])


def details_of(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """The google.rpc details of a status, by the names of their messages."""
    status = rpc_status.from_call(error)
    assert status is not None
    found: dict[str, Message] = {}
    for kind in (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    ):
        if any(detail.Unpack(kind) for detail in status.details if detail.Is(kind.DESCRIPTOR)):
            found[kind.DESCRIPTOR.name] = kind
    return found


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xff\xff\xff",
        b"\x0a\x7fshort",
        pb.GenerateRequest(text="good").SerializeToString().replace(b"good", b"\xff\xfe\xfd\xfc"),
    ],
    ids=["no tag", "cut off", "not UTF-8"],
)
async def test_bytes_that_are_no_request_are_the_callers_error(
    start_cluster: Any, channel: Channel, raw: bytes
) -> None:
    cluster = await start_cluster(decode(script=SCRIPT))
    connection = channel(cluster)
    error = await refused(connection.unary_stream(GENERATE)(raw))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = details_of(error)
    assert details["ErrorInfo"].reason == "UNREADABLE_REQUEST"
    assert details["BadRequest"].field_violations[0].field == "request"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await connection.unary_unary("/crossdock.v1.Inference/Abort")(b"\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await text_of(InferenceStub(connection).Generate(pb.GenerateRequest(text="x")))


@pytest.mark.thorough
async def test_a_huge_message_is_refused_and_others_are_served_meanwhile(
    start_cluster: Any, channel: Channel
) -> None:
    cluster = await start_cluster(decode(script=SCRIPT))
    connection = channel(cluster)
    generate = InferenceStub(connection).Generate
    huge = pb.GenerateRequest(text="x" * 100_000_000)
    answers = [text_of(generate(pb.GenerateRequest(text="hello"))) for _ in range(3)]
    error, *texts = await asyncio.gather(refused(generate(huge)), *answers)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(MAX_BODY_BYTES) in str(error.details())
    assert texts == ["hello world"] * 3
    assert await text_of(generate(pb.GenerateRequest(text="hello"))) == "hello world"


async def test_huge_headers_are_refused(start_cluster: Any, channel: Channel) -> None:
    cluster = await start_cluster(decode(script=SCRIPT))
    generate = InferenceStub(channel(cluster)).Generate
    request = pb.GenerateRequest(text="hello")
    error = await refused(generate(request, metadata=(("x-note", "y" * 20_000),)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await text_of(generate(request, metadata=(("x-note", "y" * 8_000),)))


@pytest.mark.processes
async def test_a_burst_of_two_thousand_calls_on_one_connection_is_served(
    start_cluster: Any, channel: Channel
) -> None:
    cluster = await start_cluster(decode(script=SCRIPT))
    generate = InferenceStub(channel(cluster)).Generate
    calls = [generate(pb.GenerateRequest(text="hello")) for _ in range(2_000)]
    assert Counter(await asyncio.gather(*map(text_of, calls))) == {"hello world": 2_000}


def stand_still(seconds: float) -> None:
    """As a busy machine does it to the router's loop: what has come waits."""
    time.sleep(seconds)


@pytest.mark.thorough
@pytest.mark.parametrize(("seconds", "cancelled"), [(1, True), (MAX_PENDING_S, False)])
async def test_a_call_waits_for_its_handler_as_long_as_is_set(
    start_cluster: Any,
    channel: Channel,
    monkeypatch: pytest.MonkeyPatch,
    seconds: int,
    cancelled: bool,
) -> None:
    options = dict(SERVER_OPTIONS) | {"grpc.server_max_unrequested_time_in_server": seconds}
    monkeypatch.setattr("router.server.SERVER_OPTIONS", tuple(options.items()))
    cluster = await start_cluster(decode(script=SCRIPT))
    health = health_pb2_grpc.HealthStub(channel(cluster))
    calls = [health.Check(health_pb2.HealthCheckRequest()) for _ in range(20)]
    await asyncio.sleep(0)
    stand_still(1.5)
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert any(isinstance(a, asyncio.CancelledError | Exception) for a in answers) == cancelled


@pytest.mark.parametrize(
    ("token_ids", "shown"),
    [([5, 2**32 - 1], "4294967295"), ([2**31], "2147483648"), ([300], "300")],
)
async def test_a_wrong_token_id_is_shown_as_it_came(
    start_cluster: Any, channel: Channel, token_ids: list[int], shown: str
) -> None:
    cluster = await start_cluster(decode())
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=token_ids))
    error = await refused(InferenceStub(channel(cluster)).Generate(request))
    assert details_of(error)["ErrorInfo"].metadata["value"] == shown


def every_kind() -> list[CrossdockError]:
    """One error of each kind with a time to retry, where it can have one, and one without."""
    kinds = [CrossdockError, *CrossdockError.__subclasses__()]
    made: list[CrossdockError] = [InvalidField("top_p", 2, "must be at most 1")]
    for kind in kinds:
        if kind is not InvalidField:
            made += [kind("no", reason="A"), kind("no", reason="B", retry_after=1.5)]
    return made


def test_every_kind_of_error_is_tried() -> None:
    defined = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, CrossdockError)
    }
    assert {type(error) for error in every_kind()} == defined


@pytest.mark.parametrize(
    "error", every_kind(), ids=lambda error: f"{type(error).__name__}-{error.retry_after}"
)
async def test_both_doors_tell_an_error_from_one_table(
    start_cluster: Any, channel: Channel, monkeypatch: pytest.MonkeyPatch, error: CrossdockError
) -> None:
    cluster = await start_cluster()

    async def refuse(call: Any) -> None:
        raise error

    monkeypatch.setattr(cluster.router._intake, "submit", refuse)
    await over_grpc(channel(cluster), error)
    await over_http(cluster.url, error)


async def over_grpc(connection: grpc.aio.Channel, error: CrossdockError) -> None:
    answer = await refused(InferenceStub(connection).Generate(pb.GenerateRequest(text="x")))
    assert (answer.code().value[0], answer.code().name) == (
        error.status.grpc_number,
        error.status.name,
    )
    details = details_of(answer)
    info = details["ErrorInfo"]
    assert (info.domain, info.reason) == ("crossdock", error.reason)
    assert dict(info.metadata) == error.metadata
    assert ("BadRequest" in details) == isinstance(error, InvalidField)
    assert ("RetryInfo" in details) == (error.retry_after is not None)
    if error.retry_after is not None:
        assert details["RetryInfo"].retry_delay.ToMilliseconds() == 1_500


async def over_http(url: str, error: CrossdockError) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/completions", json={"prompt": "x"}) as response,
    ):
        assert response.status == error.status.http_status
        body = (await response.json())["error"]
        assert (body["type"], body["code"]) == (error.status.openai_type, error.reason)
        assert body["message"] == error.message
        # Whole seconds, never too early.
        expected = None if error.retry_after is None else "2"
        assert response.headers.get("Retry-After") == expected


@pytest.mark.parametrize("letter", ["x", "é", "語", "\ud800"])
def test_a_long_error_still_fits_into_the_trailers(letter: str) -> None:
    long = letter * 50_000
    error = errors.RequestAborted(long, reason="STREAM_CUT", metadata={"cause": long, "a": long})
    status = to_rpc_status(error)
    percent_encoded = 3 * len(status.message.encode())
    base64 = len(status.SerializeToString()) * 4 / 3
    assert percent_encoded + base64 < 8 * 1024 - 512


@pytest.mark.thorough
async def test_health_answers_check_and_watch_for_the_server_and_the_service(
    start_cluster: Any, channel: Channel
) -> None:
    cluster = await start_cluster(decode())
    health = health_pb2_grpc.HealthStub(channel(cluster))
    requests = [
        health_pb2.HealthCheckRequest(service=name) for name in ("", "crossdock.v1.Inference")
    ]
    watches = [aiter(health.Watch(request)) for request in requests]
    for watch in watches:
        while (await anext(watch)).status != SERVING:
            pass
    assert [(await health.Check(request)).status for request in requests] == [SERVING] * 2

    answer = asyncio.create_task(text_of(cluster.client.generate("hello")))
    opened = await cluster["d0"].got("open")
    stopping = asyncio.create_task(cluster.router.stop())
    assert [(await anext(watch)).status for watch in watches] == [NOT_SERVING] * 2
    assert [(await health.Check(request)).status for request in requests] == [NOT_SERVING] * 2
    cluster["d0"].output(opened.key, [9], "done", "stop")
    assert await answer == "done"
    await stopping
