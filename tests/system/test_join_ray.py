"""`crossdock serve --ray-address` on a Ray cluster that somebody else started."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from served_cluster import ServedCluster, served

from crossdock.v1 import admin_pb2

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]


@pytest.fixture
def ray_head(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A Ray head with a token of its own; its address."""
    # Ray puts Unix sockets into its folder: their paths must stay short.
    folder = tmp_path_factory.mktemp("r")
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    port = free_port()
    ray = Path(sys.executable).with_name("ray")
    head = subprocess.Popen(
        [
            *(str(ray), "start", "--head", "--block", "--node-ip-address", "127.0.0.1"),
            *("--port", str(port), "--num-cpus", "2", "--include-dashboard", "false"),
            *("--min-worker-port", "0", "--max-worker-port", "0"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ.copy(),
        process_group=0,
    )
    assert head.stdout is not None
    for line in head.stdout:
        if "block forever" in line:
            break
    yield f"127.0.0.1:{port}"
    head.send_signal(signal.SIGTERM)
    head.stdout.read()
    head.wait(60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_cluster_is_placed_on_a_ray_that_runs_already(ray_head: str, tiny_model: Path) -> None:
    # Two whole CPUs for two workers: what each takes by default on a cluster that others use too.
    for _ in range(2):
        with served(tiny_model, 1, 1, "--ray-address", ray_head) as cluster:
            assert len(cluster.answer(list(range(1, 60)), 8)) == 8
            (edge,) = cluster.stats("decode")[0].edges
            assert edge.transport == "shm"
            _assert_what_has_no_room_is_refused(cluster)


def _assert_what_has_no_room_is_refused(cluster: ServedCluster) -> None:
    with pytest.raises(grpc.RpcError, match=r"3 replicas need CPU 3 together"):
        cluster.admin.Scale(admin_pb2.ScaleRequest(decode=2), timeout=30)
    with pytest.raises(grpc.RpcError, match=r"no room for a replacement.*--no-replace"):
        cluster.admin.Drain(admin_pb2.DrainRequest(worker="decode-0"), timeout=30)
    status = cluster.status()
    assert (status.prefill_wanted, status.decode_wanted, status.settled) == (1, 1, True)
