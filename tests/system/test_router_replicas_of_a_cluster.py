"""One real cluster, its router and two more with a real Redis between them, and what happens when
parts of that die."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from router_commands import RouterCommand
from served_cluster import ServedCluster, served

from core.api_keys import api_key_sha256, new_api_key
from crossdock.client import Client, RetryPolicy, ServerError
from redis_server import RedisServer, needs_redis, redis_server
from waiting import wait_until

pytestmark = [needs_redis, pytest.mark.processes, pytest.mark.timeout(300)]

KEY = new_api_key()
PROMPT = list(range(10, 60))
# Long enough to still run while something else is tried.
LONG = {"max_tokens": 400, "ignore_eos": True}


@dataclass
class Router:
    """`crossdock router` beside the cluster, or the cluster's own."""

    grpc_address: str
    command: RouterCommand | None = None

    def __post_init__(self) -> None:
        self.client = Client(self.grpc_address, api_key=KEY, retries=RetryPolicy(max_tries=1))

    def ask(self, **options: Any) -> Any:
        return self.client.answer(token_ids=PROMPT, temperature=0.0, **options)

    def refusal(self, **options: Any) -> tuple[grpc.StatusCode, str | None]:
        with pytest.raises(ServerError) as caught:
            self.ask(**options)
        return caught.value.code, caught.value.reason

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self.command is not None
        return self.command.end(how)


@dataclass
class Setup:
    cluster: ServedCluster
    redis: RedisServer
    config: Path
    threads: ThreadPoolExecutor
    routers: list[Router] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.registry = self.cluster.status().registry_address

    def add_router(self) -> Router:
        command = RouterCommand(self.config, self.registry)
        router = Router(command.grpc_address, command)
        self.routers.append(router)
        return router

    def begin(self, router: Router, **options: Any) -> Future[Any]:
        """A long answer that is under way when this returns."""
        before = self.running()
        answer = self.threads.submit(router.ask, **{**LONG, **options})
        wait_until(lambda: answer.done() or self.running() > before)
        return answer

    def running(self) -> int:
        return sum(w.stats.load.running + w.stats.load.waiting for w in self.decode_workers())

    def decode_workers(self) -> list[Any]:
        workers = self.cluster.status().workers
        return [worker for worker in workers if worker.worker.startswith("decode")]

    def reports(self) -> list[Any]:
        """Of each router that is there, as the controller has them."""
        told = {router.grpc_address: router for router in self.cluster.status().routers}
        return [told.get(router.grpc_address) for router in self.routers]

    def degraded(self) -> list[bool]:
        return [report is not None and bool(report.degraded) for report in self.reports()]


@pytest.fixture(scope="module")
def setup(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    folder = tmp_path_factory.mktemp("replicas")
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(redis_server(folder, "--requirepass", "secret"))
        limits = {"concurrent_sequences": 2}
        tenants = {"team": {"api_key_sha256": [api_key_sha256(KEY)], "limits": limits}}
        settings = {
            "model": str(tiny_model),
            "store": redis.url,
            "tenants": tenants,
            "router": {"disaggregation": "prefer"},
            "kv": {"num_blocks": 256},
        }
        config = folder / "cluster.yaml"
        config.write_text(yaml.safe_dump(settings))
        stack.enter_context(pytest.MonkeyPatch.context()).setenv(
            "CROSSDOCK_STORE_PASSWORD", "secret"
        )
        redis.environment["REDISCLI_AUTH"] = "secret"
        cluster = stack.enter_context(served(tiny_model, 1, 1, "--config", str(config)))
        threads = stack.enter_context(ThreadPoolExecutor(16))
        setup = Setup(cluster, redis, config, threads, [Router(cluster.grpc_address)])
        setup.add_router()
        setup.add_router()
        yield setup
        for router in setup.routers:
            router.client.close()
            if router.command is not None and router.command.process.poll() is None:
                router.end()


@pytest.fixture
def shared(setup: Setup) -> Setup:
    """All routers share, and know of each other."""

    others = len(setup.routers) - 1
    wait_until(lambda: all(r and not r.degraded and r.peers == others for r in setup.reports()))
    return setup


def test_ids_and_limits_are_those_of_the_cluster(shared: Setup) -> None:
    first, second, third = shared.routers
    running = [shared.begin(first, request_id="one"), shared.begin(second, request_id="two")]
    assert third.refusal(request_id="one") == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_TAKEN")
    # The tenant's third answer waits at the door, whichever that is, until one has ended.
    waiting = shared.threads.submit(third.ask, max_tokens=1)
    while not waiting.done():
        assert shared.running() <= 2
    answers = [future.result() for future in (*running, waiting)]
    assert [len(answer.token_ids) for answer in answers] == [400, 400, 1]
    assert answers[0].token_ids == answers[1].token_ids, "the same text from every router"


def test_the_status_tells_of_each_router_and_no_password(shared: Setup) -> None:
    status = shared.cluster.status()
    addresses = {router.grpc_address for router in status.routers}
    assert addresses == {router.grpc_address for router in shared.routers}
    assert "secret" not in str(status)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_serving_goes_on_without_redis_and_what_is_shared_comes_back(
    shared: Setup, how: signal.Signals
) -> None:
    first, second, _ = shared.routers
    running = shared.begin(first, request_id=f"before-{how.name}")
    shared.redis.kill() if how is signal.SIGKILL else shared.redis.stop()
    # Whatever is asked meanwhile is answered.
    assert len(second.ask(request_id=f"during-{how.name}", max_tokens=2).token_ids) == 2
    wait_until(lambda: shared.degraded() == [True] * 3)
    assert len(second.ask(max_tokens=2).token_ids) == 2
    assert len(running.result().token_ids) == 400
    again = shared.begin(first, request_id=f"after-{how.name}")
    shared.redis.start() if how is signal.SIGKILL else shared.redis.go_on()
    wait_until(lambda: shared.degraded() == [False] * 3)
    assert second.refusal(request_id=f"after-{how.name}")[1] == "REQUEST_ID_TAKEN"
    again.result()


def test_a_router_that_dies_takes_nothing_with_it(shared: Setup) -> None:
    dying = shared.add_router()
    shared.begin(dying)
    dying.end(signal.SIGKILL)
    shared.routers.remove(dying)
    dying.client.close()
    # Its answers are no longer the tenant's: two others run beside each other.
    wait_until(lambda: shared.running() == 0)
    first, second, _ = shared.routers
    answers = [shared.begin(first), shared.begin(second)]
    assert [len(answer.result().token_ids) for answer in answers] == [400, 400]


def test_a_router_comes_and_serves_while_the_controller_does_not_answer(shared: Setup) -> None:
    """Last: the cluster's own router is told to end with its parent, not when that stands still."""
    pid = shared.cluster.process.pid
    wait_until(lambda: "decode-0" in _leases(shared.redis))
    os.kill(pid, signal.SIGSTOP)
    try:
        late = shared.add_router()
        wait_until(lambda: _answers(late))
    finally:
        os.kill(pid, signal.SIGCONT)
    assert late.end() == 0


def _leases(redis: RedisServer) -> str:
    return redis.ask("HKEYS", redis.ask("--scan", "--pattern", "*:workers"))


def _answers(router: Router) -> bool:
    try:
        return len(router.ask(max_tokens=3).token_ids) == 3
    except ServerError as error:
        if error.code is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False
