"""Real clients read from real decode workers by ticket, and whatever breaks on the way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import make_authority, make_worker
from replica_processes import RunningReplica, start_replica
from routed_workers import RunningRouter, registry_of, start_router

from core.request import Role
from core.tls_files import ServerFiles
from core.worker_settings import WorkerSettings
from crossdock import client as light
from crossdock.client import AsyncClient, Client, RetryPolicy, Tls, sync_tickets
from crossdock.v1 import inference_pb2 as pb
from crossdock.v1 import token_stream_pb2, worker_pb2
from crossdock.v1.inference_pb2_grpc import InferenceStub
from crossdock.v1.token_stream_pb2_grpc import TokenStreamStub
from crossdock.v1.worker_pb2_grpc import WorkerStub
from waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

SHORTER: dict[str, Any] = {"max_tokens": 300, "temperature": 0, "ignore_eos": True}
ONCE = RetryPolicy(max_tries=1)
PROMPT = "Tell me of ships, and of the harbours that they left"
LONG: dict[str, Any] = {"max_tokens": 1_500, "temperature": 0, "ignore_eos": True}


@dataclass
class Cluster:
    """One of each kind."""

    model: Path
    registry: str
    router: RunningRouter
    workers: dict[str, RunningReplica]

    def metric(self, name: str) -> float:
        return metric(self.router, name)

    def stats(self, worker: str) -> worker_pb2.WorkerStats:
        with grpc.insecure_channel(self.workers[worker].place.endpoint) as channel:
            return WorkerStub(channel).GetStats(worker_pb2.GetStatsRequest(validate=True))

    def wait_idle(self, *names: str) -> None:
        wait_until(lambda: all(_idle(self.stats(name)) for name in names))


def metric(router: RunningRouter, name: str) -> float:
    """Of all tenants."""
    lines = router.get("/metrics").splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"crossdock_{name}"))


def _idle(stats: worker_pb2.WorkerStats) -> bool:
    return not (stats.load.running or stats.load.waiting or stats.leases or stats.leased_blocks)


def worker(model: Path, name: str, role: Role, **how: Any) -> WorkerSettings:
    return WorkerSettings(
        worker=name,
        role=role,
        model_folder=str(model),
        num_blocks=512,
        **{"token_stream_port": 0, **how},
    )


@pytest.fixture(scope="module")
def cluster(tiny_model: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(start_replica(worker(tiny_model, name, role)))
            for name, role in (("prefill-0", Role.PREFILL), ("decode-0", Role.DECODE))
        }
        registry = stack.enter_context(registry_of(*(w.place for w in workers.values())))
        router = stack.enter_context(start_router(tiny_model, registry))
        yield Cluster(tiny_model, registry, router, workers)


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster.router.grpc_address, retries=ONCE) as connected:
        yield connected


SHAPES: list[dict[str, Any]] = [
    {"max_tokens": 80, "temperature": 0},
    {"max_tokens": 40, "temperature": 0.9, "seed": 7, "n": 4, "logprobs": 3, "ignore_eos": True},
    {"max_tokens": 60, "temperature": 0.7, "seed": 3, "stop": ["e", "a"], "n": 2},
    {"max_tokens": 1, "temperature": 0},
]


def told(answer: light.Answer) -> list[Any]:
    """All but the times and what was cached, which differ from one request to the next."""
    return [
        (o.index, o.text, o.chunk, o.finish_reason, o.complete.completion_tokens)
        for o in answer.outputs
    ]


@pytest.mark.parametrize("shape", SHAPES, ids=["greedy", "sampled", "stopped", "one-token"])
async def test_an_answer_is_the_same_on_both_ways(cluster: Cluster, shape: dict[str, Any]) -> None:
    async with AsyncClient(cluster.router.grpc_address, retries=ONCE) as asyncio_client:
        with Client(cluster.router.grpc_address, retries=ONCE) as client:
            expected = client.answer(PROMPT, **shape)
            blocking = client.answer(PROMPT, by_ticket=True, timeout=60, **shape)
        read = await asyncio_client.answer(PROMPT, by_ticket=True, timeout=60, **shape)
    assert told(blocking) == told(read) == told(expected)
    timings = read.outputs[0].complete.timings
    assert (timings.decode_worker, timings.attempts) == ("decode-0", 1)
    assert timings.total_s > 0


def test_the_router_counts_what_others_read(cluster: Cluster, client: Client) -> None:
    read, generated = cluster.metric("tokens_read_total"), cluster.metric("generation_tokens_total")
    relayed = cluster.metric("read_tickets_relayed_total")
    client.answer(PROMPT, by_ticket=True, **LONG | {"max_tokens": 300})
    assert cluster.metric("tokens_read_total") == read + 300
    assert cluster.metric("generation_tokens_total") == generated + 300
    assert cluster.metric("read_tickets_relayed_total") == relayed


def test_a_worker_out_of_reach_costs_nothing_but_the_way(
    cluster: Cluster, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sync_tickets, "open_channel", lambda *_: grpc.insecure_channel("127.0.0.1:1")
    )
    relayed = cluster.metric("read_tickets_relayed_total")
    with Client(cluster.router.grpc_address, retries=ONCE) as far:
        for _ in range(2):
            answer = far.answer(PROMPT, by_ticket=True, **LONG | {"max_tokens": 100})
            assert told(answer) == told(client.answer(PROMPT, **LONG | {"max_tokens": 100}))
    assert cluster.metric("read_tickets_relayed_total") == relayed + 2


class RawCall:
    """Generate without the client library, which would read by itself."""

    def __init__(self, cluster: Cluster, **sampling: Any) -> None:
        self.channel = grpc.insecure_channel(cluster.router.grpc_address)
        request = pb.GenerateRequest(
            text=PROMPT, by_ticket=True, sampling=pb.SamplingParams(**sampling)
        )
        self.call = InferenceStub(self.channel).Generate(request)
        self.ticket = next(self.call).ticket

    def read(self, position: int = 0, ticket: bytes | None = None) -> Any:
        self.worker = grpc.insecure_channel(self.ticket.endpoint)
        request = token_stream_pb2.ReadRequest(
            ticket=self.ticket.ticket if ticket is None else ticket, position=position
        )
        return TokenStreamStub(self.worker).Read(request)

    def refusal(self, **asked: Any) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as caught:
            list(self.read(**asked))
        code: grpc.StatusCode = caught.value.code()  # type: ignore[attr-defined]
        return code


def tokens_of(responses: Any) -> list[int]:
    return [
        t for response in responses for part in response.responses for t in part.chunk.token_ids
    ]


def test_a_second_reader_goes_on_where_the_first_was(cluster: Cluster, client: Client) -> None:
    expected = client.answer(PROMPT, **SHORTER)
    raw = RawCall(cluster, **SHORTER)
    first = raw.read()
    next(first)
    begun = next(first)
    rest = list(raw.read(position=begun.position))
    assert tokens_of([begun, *rest]) == expected.token_ids
    with pytest.raises(grpc.RpcError) as caught:
        list(first)
    assert caught.value.code() is grpc.StatusCode.ABORTED  # type: ignore[attr-defined]
    # All of it is kept for a moment, should this reader have broken off, too.
    assert tokens_of(raw.read()) == expected.token_ids
    [complete] = [response.complete for response in raw.call]
    assert complete.completion_tokens == len(expected.token_ids)


def test_tickets_open_nothing_but_what_they_are_for_and_tokens_that_nobody_reads_come_anyway(
    cluster: Cluster, client: Client
) -> None:
    """By the router, after the ticket has run out."""
    short = LONG | {"max_tokens": 20}
    unread, raw = RawCall(cluster, **short), RawCall(cluster, **LONG)
    ticket = raw.ticket.ticket
    forged = bytes([ticket[0] ^ 1]) + ticket[1:]
    claims = token_stream_pb2.TicketClaims.FromString(ticket[32:])
    claims.key.tenant = "other"
    for wrong in (b"", b"x" * 100, forged, ticket[:32] + claims.SerializeToString()):
        assert raw.refusal(ticket=wrong) is grpc.StatusCode.UNAUTHENTICATED
    assert raw.refusal(position=10**6) is grpc.StatusCode.INVALID_ARGUMENT
    raw.call.cancel()
    assert raw.refusal() is grpc.StatusCode.NOT_FOUND
    responses = list(unread.call)
    ids = [t for response in responses for t in response.chunk.token_ids]
    assert ids == client.answer(PROMPT, **short).token_ids
    assert responses[-1].complete.completion_tokens == 20


def test_a_client_or_a_reader_that_goes_ends_the_request(cluster: Cluster, client: Client) -> None:
    responses = client.generate(PROMPT, by_ticket=True, **LONG)
    next(responses)
    responses.close()
    cluster.wait_idle("prefill-0", "decode-0")
    raw = RawCall(cluster, **LONG)
    reading = raw.read()
    while not tokens_of([next(reading)]):
        pass
    reading.cancel()
    with pytest.raises(grpc.RpcError) as caught:
        list(raw.call)
    assert caught.value.code() is grpc.StatusCode.ABORTED  # type: ignore[attr-defined]
    cluster.wait_idle("prefill-0", "decode-0")


def first_tokens(responses: Iterator[pb.GenerateResponse]) -> list[int]:
    return list(next(responses).chunk.token_ids)


def rest_of(responses: Iterator[pb.GenerateResponse]) -> tuple[list[int], pb.Complete]:
    *chunks, end = responses
    return [t for response in chunks for t in response.chunk.token_ids], end.complete


def test_a_router_that_is_killed_leaves_the_reader_its_answer(
    cluster: Cluster, client: Client
) -> None:
    expected = client.answer(PROMPT, **LONG)
    with (
        start_router(cluster.model, cluster.registry) as doomed,
        Client(doomed.grpc_address, retries=ONCE) as reader,
    ):
        responses = reader.generate(PROMPT, by_ticket=True, **LONG)
        begun = first_tokens(responses)
        doomed.process.kill()
        rest, complete = rest_of(responses)
    assert begun + rest == expected.token_ids
    assert (complete.finish_reason, complete.completion_tokens) == ("length", LONG["max_tokens"])
    assert complete.prompt_tokens == expected.prompt_tokens
    cluster.wait_idle("prefill-0", "decode-0")


def test_over_tls_workers_show_what_the_router_shows(cluster: Cluster, tmp_path: Path) -> None:
    make_authority(tmp_path)
    files = make_worker(tmp_path, "doors", tmp_path, dns="api.example")
    doors = ServerFiles(files.cert, files.key)
    trusting = Tls(ca=files.ca, server_name="api.example")
    with ExitStack() as stack:
        settings = worker(cluster.model, "mixed-3", Role.MIXED, doors=doors)
        place = stack.enter_context(start_replica(settings)).place
        registry = stack.enter_context(registry_of(place))
        router = stack.enter_context(start_router(cluster.model, registry, doors=doors))
        client = stack.enter_context(Client(router.grpc_address, tls=trusting, retries=ONCE))
        answer = client.answer(PROMPT, by_ticket=True, **SHORTER)
        assert len(answer.token_ids) == SHORTER["max_tokens"]
        assert metric(router, "tokens_read_total") == SHORTER["max_tokens"]


def test_a_worker_that_dies_cuts_the_answer_and_one_that_drains_does_not(cluster: Cluster) -> None:
    with ExitStack() as stack:
        decode = stack.enter_context(start_replica(worker(cluster.model, "mixed-1", Role.MIXED)))
        registry = stack.enter_context(registry_of(decode.place))
        router = stack.enter_context(start_router(cluster.model, registry))
        client = stack.enter_context(Client(router.grpc_address, retries=ONCE))
        responses = client.generate(PROMPT, by_ticket=True, **LONG)
        first_tokens(responses)
        # From when the router knows of them there is no way back.
        wait_until(lambda: metric(router, "tokens_read_total"))
        decode.processes[0].kill()
        with pytest.raises(light.Aborted) as caught:
            list(responses)
        assert caught.value.reason == "STREAM_CUT"
        assert int(caught.value.metadata["tokens_sent"]) >= 1

    with ExitStack() as stack, ExitStack() as worker_alone:
        draining = start_replica(worker(cluster.model, "mixed-2", Role.MIXED))
        place = worker_alone.enter_context(draining).place
        registry = stack.enter_context(registry_of(place))
        router = stack.enter_context(start_router(cluster.model, registry))
        client = stack.enter_context(Client(router.grpc_address, retries=ONCE))
        responses = client.generate(PROMPT, by_ticket=True, **LONG)
        begun = first_tokens(responses)
        leaving = threading.Thread(target=worker_alone.close)
        leaving.start()
        rest, _ = rest_of(responses)
        leaving.join()
        assert len(begun + rest) == LONG["max_tokens"]
