"""Real clients of a real cluster: one that knows nothing but the address, and deadlines.

A deadline is proven on the workers themselves: the router is stopped (SIGSTOP) before it passes, so
that nobody tells them to drop the attempt.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from handoff_driver import HandoffFailed, attached
from ratios import at
from served_cluster import ServedCluster

from cluster.worker_host import WorkerPlace
from crossdock.client import Client, DeadlineExceeded, RetryPolicy, ServerError
from crossdock.v1 import worker_pb2, worker_pb2_grpc
from waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300), at((1, 1))]

LONG = 1_900
# Below the 5 s within which a worker may find out that a stopped router answers no pings, and
# drops its attempts for that.
DEADLINE_S = 4.0


@pytest.fixture
def cluster(float32_cluster: ServedCluster) -> ServedCluster:
    return float32_cluster


@pytest.fixture
def client(cluster: ServedCluster) -> Iterator[Client]:
    with Client(cluster.grpc_address, retries=RetryPolicy(max_tries=1)) as connected:
        # A router that was stopped takes its time to attach to the workers again.
        connected.wait_ready(60)
        yield connected


class Call(threading.Thread):
    """A request in a thread of its own, which must end by its deadline."""

    def __init__(self, client: Client, name: str, prompt: list[int], timeout: float) -> None:
        super().__init__()
        self.stream = client.generate(
            token_ids=prompt,
            request_id=name,
            timeout=timeout,
            max_tokens=2_048 - len(prompt) - 1,
            temperature=0,
            ignore_eos=True,
        )
        self.begun = threading.Event()
        self.error: ServerError | None = None
        self.start()

    def run(self) -> None:
        try:
            for _ in self.stream:
                self.begun.set()
        except ServerError as error:
            self.error = error
        finally:
            self.begun.set()

    def must_expire(self) -> None:
        self.join()
        assert isinstance(self.error, DeadlineExceeded), self.error


def long_prompt(seed: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(10, 40_000) for _ in range(LONG)]


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def router_pid(cluster: ServedCluster) -> int:
    children = psutil.Process(cluster.process.pid).children(recursive=True)
    [pid] = [child.pid for child in children if "router.main" in child.cmdline()]
    return pid


class Worker:
    """A worker that is asked without the controller, which would wait for a stopped one too."""

    def __init__(self, cluster: ServedCluster, role: str) -> None:
        [status] = [w for w in cluster.status().workers if w.stats.role == role]
        stats = status.stats
        self.pid = stats.pid
        self.place = WorkerPlace(status.worker, status.endpoint, stats.epoch, role, stats.pid)

    def stats(self) -> worker_pb2.WorkerStats:
        with grpc.insecure_channel(self.place.endpoint) as channel:
            stub = worker_pb2_grpc.WorkerStub(channel)
            return stub.GetStats(worker_pb2.GetStatsRequest(validate=True), timeout=60)

    def until(self, condition: Callable[[worker_pb2.WorkerStats], bool]) -> worker_pb2.WorkerStats:
        """Asks again and again; the test's timeout bounds it."""
        return wait_until(lambda: stats if condition(stats := self.stats()) else None)

    def until_it_holds_nothing(self) -> worker_pb2.WorkerStats:
        return self.until(holds_nothing)


def holds_nothing(stats: worker_pb2.WorkerStats) -> bool:
    load = stats.load
    busy = load.running + load.waiting + stats.leases
    return busy + stats.leased_blocks + stats.quarantined_blocks == 0


def events_of(stats: worker_pb2.WorkerStats, request: str) -> list[str]:
    return [event.name for event in stats.events if request in event.attempt]


@pytest.fixture
def prefill(cluster: ServedCluster) -> Worker:
    return Worker(cluster, "prefill")


@pytest.fixture
def decode(cluster: ServedCluster) -> Worker:
    return Worker(cluster, "decode")


def test_a_client_built_from_reflection_gets_tokens(cluster: ServedCluster) -> None:
    """No generated code of ours: names, messages and methods are what the server tells."""
    with grpc.insecure_channel(cluster.grpc_address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {"crossdock.v1.Inference", "grpc.health.v1.Health"} <= set(database.get_services())
        pool = DescriptorPool(database)
        health = one_answer(channel, pool, "grpc.health.v1.Health.Check", {})
        statuses = health.DESCRIPTOR.fields_by_name["status"].enum_type
        assert statuses.values_by_number[health.status].name == "SERVING"
        info = one_answer(channel, pool, "crossdock.v1.Inference.GetModelInfo", {})
        request = {
            "token_ids": {"ids": [5, 6, 7, 8]},
            "sampling": {"max_tokens": 12, "temperature": 0.0, "ignore_eos": True},
        }
        method, ask = callable_of(channel.unary_stream, pool, "crossdock.v1.Inference.Generate")
        *chunks, end = ask(GetMessageClass(method.input_type)(**request), timeout=60)
    tokens = [token for response in chunks for token in response.chunk.token_ids]
    assert tokens == cluster.answer([5, 6, 7, 8], 12)
    assert all(token < info.vocab_size for token in tokens)
    assert (end.complete.finish_reason, end.complete.completion_tokens) == ("length", 12)


def one_answer(channel: grpc.Channel, pool: DescriptorPool, name: str, fields: Any) -> Any:
    method, ask = callable_of(channel.unary_unary, pool, name)
    return ask(GetMessageClass(method.input_type)(**fields), timeout=60)


def callable_of(kind: Any, pool: DescriptorPool, name: str) -> tuple[Any, Any]:
    """A method's descriptor, and what calls it over ``kind`` of a channel."""
    service, _, short = name.rpartition(".")
    method = pool.FindServiceByName(service).FindMethodByName(short)
    ask = kind(
        f"/{service}/{short}",
        request_serializer=GetMessageClass(method.input_type).SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    return method, ask


async def test_a_deadline_ends_prompts_that_wait_for_prefill(
    cluster: ServedCluster, client: Client, prefill: Worker, decode: Worker
) -> None:
    """Asked as by a router that then hangs: the workers are told of the deadline and no more."""
    async with attached([prefill.place, decode.place]) as router:

        async def begin(prompt: list[int], deadline_s: float = 0.0) -> str:
            names = (prefill.place.worker, decode.place.worker)
            return await router.begin(*names, prompt, 8, deadline_s)

        for number in range(4):
            await begin(long_prompt(number))
        # The longest one lets all others pass, and its time is over before one of them is computed.
        waiting = await begin([*long_prompt(4), *range(100)], deadline_s=0.001)
        queued = Call(client, "queued", long_prompt(5), timeout=0.5)
        with pytest.raises(HandoffFailed, match="the deadline of the request passed"):
            await router.collect(waiting)
        # Who notices first tells the other, which has nothing left then whose time could pass.
        noticed = [events_of(worker.stats(), f"{waiting}#") for worker in (prefill, decode)]
        assert any("deadline passed" in events for events in noticed), noticed
        queued.must_expire()
    decode.until_it_holds_nothing()
    after = prefill.until_it_holds_nothing()
    assert "chunk started" not in events_of(after, f"{waiting}#")


def call_in_transfer(client: Client, decode: Worker, prefix: str) -> tuple[Call, str]:
    """A call whose blocks are on their way. On a busy machine one may expire before it gets there,
    then the next one is tried."""
    for number in range(10):
        name = f"{prefix}-{number}."
        call = Call(client, name, long_prompt(len(prefix) + 100 * number), DEADLINE_S)
        while call.is_alive():
            if "granted" in events_of(decode.stats(), name):
                return call, name
    raise AssertionError("ten requests expired before their transfer began")


def call_that_has_begun(client: Client) -> tuple[Call, str]:
    """It has its first token. On a busy machine one may expire before, then the next is tried."""
    for number in range(10):
        name = f"decoding-{number}."
        call = Call(client, name, [5, 6, 7], DEADLINE_S)
        call.begun.wait()
        if call.error is None:
            return call, name
    raise AssertionError("ten requests expired before their first token")


@pytest.mark.parametrize("frozen_role", ["prefill", "decode"])
def test_a_deadline_ends_a_transfer_on_either_side_even_if_the_other_hangs(
    cluster: ServedCluster, client: Client, prefill: Worker, decode: Worker, frozen_role: str
) -> None:
    frozen, other = (prefill, decode) if frozen_role == "prefill" else (decode, prefill)
    call, name = call_in_transfer(client, decode, f"moving-{frozen_role}")
    with stopped(router_pid(cluster)):
        with stopped(frozen.pid):
            assert "deadline passed" in events_of(other.until_it_holds_nothing(), name)
        assert "deadline passed" in events_of(frozen.until_it_holds_nothing(), name)
    assert "committed" not in events_of(decode.stats(), name)
    call.must_expire()


def test_a_deadline_ends_an_answer_that_is_being_decoded(
    cluster: ServedCluster, client: Client, prefill: Worker, decode: Worker
) -> None:
    call, name = call_that_has_begun(client)
    with stopped(router_pid(cluster)):
        after = decode.until_it_holds_nothing()
        assert {"committed", "deadline passed"} <= set(events_of(after, name))
        prefill.until_it_holds_nothing()
    call.must_expire()
    assert len(cluster.answer([5, 6, 7], 8)) == 8
