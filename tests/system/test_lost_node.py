"""Nodes of Ray that are lost under load, without Kubernetes: who still answers, and who comes back.

Each node has a loopback address of its own, and so have the workers on it.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import psutil
import pytest
import yaml
from served_cluster import ServedCluster, served
from steady_load import MAX_TOKENS, PROMPTS, SteadyLoad

from crossdock.v1 import admin_pb2

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

RAY = (sys.executable, "-P", "-c", "from ray.scripts.scripts import main; main()", "start")
# Not 127.0.0.1: Ray would replace it by the address of a network card.
HEAD, PREFILLS, DECODES = "127.0.0.2", "127.0.0.3", "127.0.0.4"
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A node that nobody reaches is taken for dead after three seconds, a slow one is not.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "30000",
    "RAY_health_check_failure_threshold": "3",
}
POOLS = {
    pool: {"replicas": 2, "resources": {f"crossdock_{pool}": 1}} for pool in ("prefill", "decode")
}


class RayNodes:
    """Nodes of one Ray cluster on this machine, with room for so many ranks of each pool."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._nodes: dict[str, subprocess.Popen[str]] = {}
        self.address = ""

    def start(self, host: str, prefill: int, decode: int) -> None:
        """The first one is the head."""
        room = json.dumps({"crossdock_prefill": prefill, "crossdock_decode": decode})
        options = ["--block", "--node-ip-address", host, "--num-cpus", "1", "--resources", room]
        options += ["--min-worker-port", "0", "--max-worker-port", "0"]
        options += ["--object-store-memory", "100000000"]
        if self.address:
            options += ["--address", self.address]
        else:
            self.address = f"{host}:{free_port()}"
            port = self.address.rpartition(":")[2]
            options += ["--head", "--port", port, "--include-dashboard", "false"]
        node = subprocess.Popen(
            [*RAY, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._stack.callback(end, node)
        self._nodes[host] = node
        assert node.stdout is not None
        said = []
        for line in node.stdout:
            said.append(line)
            if "block forever" in line:
                break
        else:
            raise AssertionError(said)
        # A full pipe would stop it.
        threading.Thread(target=node.stdout.read, daemon=True).start()

    def lose(self, host: str) -> None:
        """Kills the raylet: what it had started ends with it."""
        node = self._nodes.pop(host)
        [raylet] = [c for c in psutil.Process(node.pid).children() if c.name() == "raylet"]
        raylet.kill()
        node.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HEAD, 0))
        return int(probe.getsockname()[1])


def end(node: subprocess.Popen[str]) -> None:
    if node.poll() is None:
        node.send_signal(signal.SIGTERM)
        try:
            node.wait(60)
        finally:
            node.kill()


@pytest.fixture
def nodes(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RayNodes]:
    token = tmp_path_factory.mktemp("r") / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    for name, value in (ENVIRONMENT | {"RAY_AUTH_TOKEN_PATH": str(token)}).items():
        monkeypatch.setenv(name, value)
    with ExitStack() as stack:
        yield RayNodes(stack)


def host_of(worker: admin_pb2.WorkerStatus) -> str:
    return worker.endpoint.rpartition(":")[0]


def hosts(cluster: ServedCluster, pool: str) -> set[str]:
    return {host_of(w) for w in cluster.status().workers if w.worker.startswith(pool)}


def wait_until_missed(cluster: ServedCluster, pool: str) -> admin_pb2.WorkerStatus:
    """Until the controller has noticed that there is no room any more for one of the pool."""
    while True:
        for worker in cluster.status().workers:
            missing = worker.state != "ready" and f"need crossdock_{pool}" in worker.detail
            if worker.worker.startswith(pool) and missing:
                return worker


def wait_until_it_decodes(cluster: ServedCluster, host: str) -> None:
    while not any(
        worker.stats.load.running and host_of(worker) == host for worker in cluster.status().workers
    ):
        pass


def assert_cut(error: grpc.RpcError, received: list[int], expected: list[int]) -> None:
    """It had begun, and the client knows how far it came."""
    assert isinstance(error, grpc.Call)
    assert error.code() is grpc.StatusCode.ABORTED, error
    assert f"after {len(received)} tokens" in str(error.details())
    assert received
    assert received == expected[: len(received)]


class Streams:
    """Answers one after the other, by so many clients, until they are told to end."""

    def __init__(self, cluster: ServedCluster, clients: int = 4) -> None:
        self._cluster = cluster
        self._expected = cluster.answers(PROMPTS, MAX_TOKENS)
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(clients)
        self._clients = [self._pool.submit(self._ask, number) for number in range(clients)]

    def end(self) -> tuple[int, int]:
        """How many were answered, and how many cut. Raises what else happened."""
        self._ended.set()
        told = [client.result() for client in self._clients]
        self._pool.shutdown()
        return sum(answered for answered, _ in told), sum(cut for _, cut in told)

    def _ask(self, turn: int) -> tuple[int, int]:
        answered = cut = 0
        while not self._ended.is_set():
            index = turn % len(PROMPTS)
            received: list[int] = []
            try:
                for response in self._cluster.stream(PROMPTS[index], MAX_TOKENS):
                    received += response.chunk.token_ids
            except grpc.RpcError as error:
                assert_cut(error, received, self._expected[index])
                cut += 1
            else:
                assert received == self._expected[index]
                answered += 1
            turn += 1
        return answered, cut


def test_nodes_that_are_lost_take_only_the_streams_with_them_that_had_begun_there(
    nodes: RayNodes, tiny_model: Path, tmp_path: Path
) -> None:
    config = tmp_path / "cluster.yaml"
    config.write_text(yaml.safe_dump({"pools": POOLS, "kv": {"num_blocks": 256}}))
    nodes.start(HEAD, prefill=1, decode=1)
    nodes.start(PREFILLS, prefill=1, decode=0)
    late = ThreadPoolExecutor(1).submit(nodes.start, DECODES, prefill=0, decode=1)
    options = ("--config", str(config), "--ray-address", nodes.address, "--patience", "120")
    options += ("--served-model-name", "tiny")
    with served(tiny_model, 2, 2, *options) as cluster:
        late.result()
        assert hosts(cluster, "prefill") == {HEAD, PREFILLS}
        assert hosts(cluster, "decode") == {HEAD, DECODES}

        with SteadyLoad(cluster) as load:
            load.answered(5)
            nodes.lose(PREFILLS)
            missed = wait_until_missed(cluster, "prefill")
            assert "need crossdock_prefill 2 together" in missed.detail
            load.answered(5)

        streams = Streams(cluster)
        wait_until_it_decodes(cluster, DECODES)
        nodes.lose(DECODES)
        wait_until_missed(cluster, "decode")
        answered, cut = streams.end()
        assert answered > cut

        nodes.start(PREFILLS, prefill=1, decode=1)
        assert cluster.wait_settled().restarts >= 2
        assert hosts(cluster, "prefill") == hosts(cluster, "decode") == {HEAD, PREFILLS}
        with SteadyLoad(cluster) as load:
            load.answered(5)
