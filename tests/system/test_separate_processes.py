"""`crossdock controller` and `crossdock router` beside a Ray cluster, as the Helm chart runs them.

Two network namespaces stand for hosts: the head, the controller and the router are on one, workers
on the other and later on the first. Each pool takes a Ray resource of its own, as in the chart.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from namespaces import Namespace, two_hosts, why_not

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
    pytest.mark.timeout(300),
]

RAY = (sys.executable, "-P", "-c", "from ray.scripts.scripts import main; main()", "start")
CROSSDOCK = (sys.executable, "-P", "-m", "cluster.cli.main")
RAY_PORT = "6399"
NO_DASHBOARD = ("--include-dashboard", "false")


@dataclass
class Running:
    """A process in a namespace and the line that said it was there."""

    process: subprocess.Popen[str]
    line: str

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait()


@dataclass
class Stage:
    """Starts processes, and ends all of them at the end, the last one first."""

    here: Namespace
    there: Namespace
    environment: dict[str, str]
    stack: contextlib.ExitStack

    def start(self, place: Namespace, command: list[str], said: str) -> Running:
        process = subprocess.Popen(
            place.command(*command),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
        )
        running = Running(process, "")
        self.stack.callback(lambda: process.poll() is None and running.end())
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if said in line:
                break
        running.line = lines[-1] if lines else ""
        assert said in running.line, lines
        # A full pipe would stop it.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        return running

    def ray(self, place: Namespace, *options: str) -> Running:
        common = ["--block", "--object-store-memory", "100000000", "--node-ip-address"]
        ports = ["--min-worker-port", "0", "--max-worker-port", "0"]
        return self.start(place, [*RAY, *options, *common, place.address, *ports], "block forever")

    def ask(self, *arguments: str) -> Any:
        """What a command of the CLI prints as JSON."""
        answer = subprocess.run(
            self.here.command(*CROSSDOCK, *arguments, "--output", "json"),
            env=self.environment,
            stdout=subprocess.PIPE,
            check=True,
        )
        return json.loads(answer.stdout)

    def until_settled(self, admin: str, decode: int) -> Any:
        """The status when so many decode workers are wanted and there. The test's time limit bounds
        the wait."""
        place = self.here.command(*CROSSDOCK, "status", "--address", admin, "--output", "json")
        while True:
            asked = subprocess.run(place, env=self.environment, stdout=subprocess.PIPE)
            status = json.loads(asked.stdout)
            if status["settled"] and status["decode_wanted"] == decode:
                return status


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # As KubeRay passes it on: the token itself, from a secret.
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # Ray's workers would be nicer than all other processes of this machine.
    quick = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    with two_hosts() as (here, there):
        with contextlib.ExitStack() as stack:
            yield Stage(here, there, clean | token | quick, stack)
        # The test's time limit bounds the wait.
        while here.has_processes() or there.has_processes():
            pass


def pool(replicas: int, name: str) -> dict[str, Any]:
    return {"replicas": replicas, "resources": {f"crossdock_{name}": 1}}


def test_a_cluster_in_parts_serves_leaves_a_node_and_follows_its_config(
    stage: Stage, tiny_model: Path, tmp_path: Path
) -> None:
    config = tmp_path / "cluster.yaml"
    pools = {"prefill": pool(1, "prefill"), "decode": pool(1, "decode")}
    settings = {"model": str(tiny_model), "kv": {"num_blocks": 64}, "pools": pools}
    config.write_text(yaml.safe_dump(settings))
    head = f"{stage.here.address}:{RAY_PORT}"
    stage.ray(stage.here, "--head", "--port", RAY_PORT, "--num-cpus", "0", *NO_DASHBOARD)
    node = ["--address", head, "--num-cpus", "1", "--resources"]
    first = stage.ray(stage.there, *node, '{"crossdock_prefill": 1, "crossdock_decode": 1}')

    control = [*CROSSDOCK, "controller", "--config", str(config), "--ray-head", head]
    control += ["--registry-port", "0", "--admin-port", "0", "--node-address", stage.here.address]
    controller = stage.start(stage.here, control, "ready registry=")
    found = re.fullmatch(r"ready registry=(\S+) admin=(\S+)\n", controller.line)
    assert found is not None
    registry, admin = found.groups()
    route = [*CROSSDOCK, "router", "--config", str(config), "--registry", registry]
    route += ["--grpc-port", "0", "--http-port", "0"]
    router = stage.start(stage.here, route, "ready grpc=")
    grpc_address = router.line.split("grpc=")[1].split()[0]
    stage.ask("scale", "--decode", "1", "--address", admin)  # Returns when the router is attached.
    generate = ["generate", "Once", "--max-tokens", "4", "--address", grpc_address]
    assert len(stage.ask(*generate)["token_ids"]) == 4

    # The node goes, after another one has come.
    stage.ray(stage.here, *node, '{"crossdock_prefill": 1, "crossdock_decode": 2}')
    left = stage.ask("drain-node", stage.there.address, "--address", admin)
    assert (left["workers"], left["ended"]) == (["decode-0", "prefill-0"], True)
    first.end()
    settings["pools"]["decode"]["replicas"] = 2
    config.write_text(yaml.safe_dump(settings))
    status = stage.until_settled(admin, decode=2)
    assert {worker["worker"] for worker in status["workers"]} == {
        "prefill-1",
        "decode-1",
        "decode-2",
    }
    hosts = {worker["endpoint"].partition(":")[0] for worker in status["workers"]}
    assert hosts == {stage.here.address}
    assert len(stage.ask(*generate)["token_ids"]) == 4
    assert stage.ask("drain-node", stage.there.address, "--address", admin)["workers"] == []
    assert (router.end(), controller.end()) == (0, 0)
