"""The gRPC target against an in-process server of inference.proto."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import grpc.aio
import numpy as np
import pytest

from core.errors import InvalidField, Unavailable
from crossdock.v1 import inference_pb2 as pb
from crossdock.v1 import token_stream_pb2
from crossdock.v1.inference_pb2_grpc import InferenceServicer, add_InferenceServicer_to_server
from crossdock.v1.token_stream_pb2_grpc import (
    TokenStreamServicer,
    add_TokenStreamServicer_to_server,
)
from tuner.load.grpc_target import GrpcTarget, grpc_address
from tuner.load.records import Usage
from tuner.load.target import AnswerLog
from wire.grpc_errors import abort

COMPLETE = pb.Complete(prompt_tokens=3, completion_tokens=4, cached_tokens=1)
PROMPT = np.array([5, 6, 7], dtype=np.int32)


class Worker(TokenStreamServicer):
    """Has all tokens of every answer but the first one."""

    async def Read(self, request, context) -> AsyncIterator[token_stream_pb2.ReadResponse]:
        chunk = pb.GenerateResponse(chunk=pb.Chunk(token_ids=[9, 10, 11], text="bcd"))
        yield token_stream_pb2.ReadResponse(responses=[chunk], position=1)


class Server(InferenceServicer):
    """Answers in pieces of two tokens; ids 1 and 2 at the start ask for trouble. ``endpoint``: of
    the worker that tokens may be read from; "": there is none."""

    def __init__(self) -> None:
        self.seen: list[pb.GenerateRequest] = []
        self.endpoint = ""

    async def GetModelInfo(self, request, context) -> pb.GetModelInfoResponse:
        return pb.GetModelInfoResponse(
            model="tiny", vocab_size=40, max_model_len=512, block_size=16, eos_token_ids=[3]
        )

    async def Generate(self, request, context) -> AsyncIterator[pb.GenerateResponse]:
        self.seen.append(request)
        if list(request.token_ids.ids[:1]) == [1]:
            await abort(context, Unavailable("no decode worker", reason="NO_WORKER"))
        if request.by_ticket and self.endpoint:
            yield pb.GenerateResponse(ticket=pb.ReadTicket(endpoint=self.endpoint, ticket=b"x"))
            yield pb.GenerateResponse(chunk=pb.Chunk(token_ids=[8], text="a"))
            yield pb.GenerateResponse(complete=COMPLETE)
            return
        yield pb.GenerateResponse(chunk=pb.Chunk(token_ids=[8, 9], text="ab"))
        if list(request.token_ids.ids[:1]) == [2]:
            return
        yield pb.GenerateResponse(chunk=pb.Chunk(token_ids=[], text="held back"))
        yield pb.GenerateResponse(chunk=pb.Chunk(token_ids=[10, 11], text="cd"))
        yield pb.GenerateResponse(complete=COMPLETE)


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, str]]:
    running = grpc.aio.server()
    servicer = Server()
    add_InferenceServicer_to_server(servicer, running)
    port = running.add_insecure_port("127.0.0.1:0")
    await running.start()
    yield servicer, f"127.0.0.1:{port}"
    await running.stop(0)


@pytest.fixture
async def target(server: tuple[Server, str]) -> AsyncIterator[GrpcTarget]:
    target = GrpcTarget(server[1])
    yield target
    await target.close()


async def test_an_answer_with_several_tokens_in_a_piece(
    server: tuple[Server, str], target: GrpcTarget
) -> None:
    answer = AnswerLog(lambda: 0.0)
    await target.send(target.prepare(PROMPT, 4), answer)
    assert answer.chunk_tokens == [2, 2]
    assert answer.usage == Usage(3, 4, 1)
    sampling = server[0].seen[0].sampling
    assert (sampling.max_tokens, sampling.min_tokens, sampling.ignore_eos) == (4, 4, True)
    assert list(server[0].seen[0].token_ids.ids) == [5, 6, 7]


async def test_tokens_are_read_from_the_worker_that_the_ticket_names(
    server: tuple[Server, str],
) -> None:
    servicer, address = server
    target = GrpcTarget(address, by_ticket=True)
    workers = grpc.aio.server()
    add_TokenStreamServicer_to_server(Worker(), workers)
    servicer.endpoint = f"127.0.0.1:{workers.add_insecure_port('127.0.0.1:0')}"
    await workers.start()
    answer = await target.check(PROMPT, 4)
    assert sorted(tokens for tokens in answer.chunk_tokens if tokens) == [1, 3]
    assert answer.usage == Usage(3, 4, 1)
    prompt = np.array([1], dtype=np.int32)
    with pytest.raises(Unavailable) as failure:
        await target.send(target.prepare(prompt, 4), AnswerLog(lambda: 0.0))
    assert failure.value.reason == "NO_WORKER"
    await target.close()
    await workers.stop(0)


async def test_a_cluster_without_tickets_is_not_measured_as_if_it_had_some(
    server: tuple[Server, str],
) -> None:
    target = GrpcTarget(server[1], by_ticket=True)
    with pytest.raises(InvalidField, match=r"--by-ticket.*token_streams\.enabled"):
        await target.check(PROMPT, 4)
    await target.close()


async def test_text_and_answers_that_may_end_early(server: tuple[Server, str]) -> None:
    target = GrpcTarget(server[1], ignore_eos=False)
    await target.check("hello", 4)
    await target.close()
    request = server[0].seen[0]
    assert request.text == "hello"
    assert not request.sampling.HasField("ignore_eos")


async def test_the_model_is_described(target: GrpcTarget) -> None:
    model = await target.describe()
    assert (model.name, model.vocab_size, model.max_model_len) == ("tiny", 40, 512)
    assert model.eos_token_ids == (3,)


@pytest.mark.parametrize(("first", "reason"), [(1, "NO_WORKER"), (2, "DISCONNECTED")])
async def test_failures_have_kinds(target: GrpcTarget, first: int, reason: str) -> None:
    prompt = np.array([first], dtype=np.int32)
    with pytest.raises(Unavailable) as failure:
        await target.send(target.prepare(prompt, 4), AnswerLog(lambda: 0.0))
    assert failure.value.reason == reason


async def test_nobody_there(unused_tcp_port: int) -> None:
    target = GrpcTarget(f"127.0.0.1:{unused_tcp_port}")
    with pytest.raises(Unavailable, match="can't connect") as failure:
        await target.describe()
    assert failure.value.reason == "CONNECT_FAILED"
    await target.close()


def test_addresses() -> None:
    assert grpc_address("--target", "grpc://127.0.0.1:50051") == "127.0.0.1:50051"
    assert grpc_address("--target", "grpc://[::1]:9/") == "[::1]:9"
    for url in ("grpc://", "grpc://host", "grpc://host:1/path", "grpc://host:x", "grpc://["):
        with pytest.raises(InvalidField, match="--target"):
            grpc_address("--target", url)
