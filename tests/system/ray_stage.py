"""Ray, `crossdock controller` and `crossdock router` on two hosts, as the Helm chart runs them.

Two network namespaces stand for the hosts. Each pool takes a Ray resource of its own, as in the
chart.
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from namespaces import Namespace, two_hosts

from waiting import wait_until

RAY = (sys.executable, "-P", "-c", "from ray.scripts.scripts import main; main()", "start")
CROSSDOCK = (sys.executable, "-P", "-m", "cluster.cli.main")
RAY_PORT = "6399"
# Ray looks for others among the processes that it sees; those of a pod see only themselves.
POD = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


@dataclass
class Running:
    """A process in a namespace and the line that said it was there."""

    process: subprocess.Popen[str]
    line: str
    in_a_pod: bool = False

    def end(self) -> int:
        # `unshare` passes no other signal on.
        self.process.send_signal(signal.SIGKILL if self.in_a_pod else signal.SIGTERM)
        return self.process.wait()


@dataclass
class Stage:
    """Starts processes, and ends all of them at the end, the last one first."""

    here: Namespace
    there: Namespace
    environment: dict[str, str]
    stack: contextlib.ExitStack

    def start(
        self,
        place: Namespace,
        command: list[str],
        said: str,
        environment: Mapping[str, str] | None = None,
    ) -> Running:
        process = subprocess.Popen(
            place.command(*command),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment | dict(environment or {}),
        )
        running = Running(process, "", in_a_pod=command[0] == POD[0])
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

    @property
    def head_address(self) -> str:
        return f"{self.here.address}:{RAY_PORT}"

    def head(self, *wrapped: str, **environment: str) -> Running:
        """``wrapped``: what it is started by; ``environment``: its own."""
        options = ["--head", "--port", RAY_PORT, "--num-cpus", "0", "--include-dashboard", "false"]
        return self.ray(self.here, *options, wrapped=wrapped, environment=environment)

    def node(self, place: Namespace, prefill: int, decode: int) -> Running:
        """A node with room for so many ranks of each pool."""
        room = json.dumps({"crossdock_prefill": prefill, "crossdock_decode": decode})
        options = ["--address", self.head_address, "--num-cpus", "1", "--resources", room]
        return self.ray(place, *options)

    def controller(self, config: Path, place: Namespace) -> tuple[Running, str, str]:
        """Also the addresses of its registry and its operators' door."""
        command = [*CROSSDOCK, "controller", "--config", str(config), "--registry-port", "0"]
        command += ["--ray-head", self.head_address, "--node-address", place.address]
        command += ["--host", place.address]
        running = self.start(place, [*command, "--admin-port", "0"], "ready registry=")
        found = re.fullmatch(r"ready registry=(\S+) admin=(\S+)\n", running.line)
        assert found is not None
        return running, found[1], found[2]

    def router(self, config: Path, registry: str) -> tuple[Running, str]:
        """Also its gRPC address."""
        command = [*CROSSDOCK, "router", "--config", str(config), "--registry", registry]
        command += ["--grpc-port", "0", "--http-port", "0"]
        command += ["--host", self.there.address]
        running = self.start(self.there, command, "ready grpc=")
        return running, running.line.split("grpc=")[1].split()[0]

    def ray(
        self,
        place: Namespace,
        *options: str,
        wrapped: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Running:
        common = ["--block", "--object-store-memory", "100000000", "--node-ip-address"]
        ports = ["--min-worker-port", "0", "--max-worker-port", "0"]
        command = [*wrapped, *RAY, *options, *common, place.address, *ports]
        return self.start(place, command, "block forever", environment)

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


@contextlib.contextmanager
def ray_stage(*, without_head: bool = False) -> Iterator[Stage]:
    """Nothing of it is left at the end. ``without_head``: nodes end after their head, and Ray
    leaves agents behind then."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # As KubeRay passes it on: the token itself, from a secret.
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # Ray's workers would be nicer than all other processes of this machine.
    quick = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    with two_hosts() as (here, there):
        with contextlib.ExitStack() as stack:
            yield Stage(here, there, clean | token | quick, stack)
        wait_until(lambda: _have_ended((here, there), agents_too=without_head))


def _have_ended(places: tuple[Namespace, Namespace], *, agents_too: bool) -> bool:
    if agents_too:
        for place in places:
            place.kill_agents()
    return not any(place.has_processes() for place in places)


def write_config(
    config: Path, model: Path, decode: int, tls: Mapping[str, Any] | None = None
) -> None:
    """One prefill worker, and so many decode workers."""
    pools = {"prefill": _pool(1, "prefill"), "decode": _pool(decode, "decode")}
    router = {"disaggregation": "prefer"}
    kv = {"num_blocks": 64}
    settings = {"model": str(model), "kv": kv, "pools": pools, "router": router}
    settings |= {} if tls is None else {"tls": dict(tls)}
    config.write_text(yaml.safe_dump(settings))


def _pool(replicas: int, name: str) -> dict[str, Any]:
    return {"replicas": replicas, "resources": {f"crossdock_{name}": 1}}
