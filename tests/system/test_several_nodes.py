"""`crossdock serve` on a Ray cluster of two nodes that share no host, as far as sockets can tell.

Two network namespaces with a Ray node of one CPU each: the prefill worker finds room on one of
them, the decode worker on the other.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from namespaces import Namespace, two_hosts, why_not

from oracle import Oracle, assert_same_tokens
from text.tokenizer import Tokenizer
from waiting import wait_until

pytestmark = [
    pytest.mark.processes,
    pytest.mark.oracle,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

RAY = (sys.executable, "-P", "-c", "from ray.scripts.scripts import main; main()", "start")
CROSSDOCK = (sys.executable, "-P", "-m", "cluster.cli.main")
RAY_PORT = "6399"
PROMPT = "Once upon a time there were two hosts and a cable between them"


@contextlib.contextmanager
def running(
    place: Namespace, command: list[str], environment: Mapping[str, str], last_words: str
) -> Iterator[list[str]]:
    """A program that runs until the end; yields its lines up to that with ``last_words``."""
    process = subprocess.Popen(
        place.command(*command),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    try:
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if last_words in line:
                break
        assert last_words in "".join(lines[-1:]), lines
        yield lines
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


@contextlib.contextmanager
def ray_nodes(here: Namespace, there: Namespace, environment: dict[str, str]) -> Iterator[str]:
    """Two nodes of one CPU each; the address to join them at."""
    common = ["--block", "--num-cpus", "1", "--object-store-memory", "100000000"]
    common += ["--min-worker-port", "0", "--max-worker-port", "0"]
    head = [*RAY, "--head", "--port", RAY_PORT, "--include-dashboard", "false", *common]
    head += ["--node-ip-address", here.address]
    address = f"{here.address}:{RAY_PORT}"
    node = [*RAY, "--address", address, "--node-ip-address", there.address, *common]
    with (
        running(here, head, environment, "block forever"),
        running(there, node, environment, "block forever"),
    ):
        yield address


@dataclass(frozen=True)
class Serving:
    """A cluster in a namespace, and what it said when it started."""

    place: Namespace
    environment: Mapping[str, str]
    said: list[str]

    def ask(self, *arguments: str) -> Any:
        """What a command of the CLI prints as JSON."""
        answer = subprocess.run(
            self.place.command(*CROSSDOCK, *arguments, "--output", "json"),
            env=self.environment,
            stdout=subprocess.PIPE,
            check=True,
        )
        return json.loads(answer.stdout)


@pytest.fixture
def serving(tiny_model: Path, tmp_path: Path) -> Iterator[Serving]:
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    # A test before may have started a Ray of its own, which is told to keep to one node.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = clean | ray | {"RAY_USAGE_STATS_ENABLED": "0"}
    with two_hosts() as (here, there):
        with ray_nodes(here, there, environment) as address:
            config = tmp_path / "cluster.yaml"
            config.write_text("router: {disaggregation: prefer}\n")
            serve = [*CROSSDOCK, "serve", "--config", str(config), "--model", str(tiny_model)]
            serve += ["--ray-address", address]
            with running(here, serve, environment, "ready grpc=") as said:
                yield Serving(here, environment, said)
        # The test's time limit bounds the wait.
        wait_until(lambda: not (here.has_processes() or there.has_processes()))


def test_workers_on_two_nodes_hand_blocks_over_by_tcp(serving: Serving, tiny_model: Path) -> None:
    assert any("nobody has to authenticate" in line for line in serving.said)
    answer = serving.ask("generate", PROMPT, "--max-tokens", "8")
    prompt = [int(token) for token in Tokenizer.load(tiny_model).encode(PROMPT)]
    tokens = answer["token_ids"]
    assert_same_tokens(tokens, Oracle(tiny_model).greedy(prompt, 8, tokens))

    workers = serving.ask("status", "--validate")["workers"]
    hosts = {worker["endpoint"].rpartition(":")[0] for worker in workers}
    assert hosts == {"10.77.0.1", "10.77.0.2"}
    edges = [edge for worker in workers for edge in worker["stats"]["edges"]]
    assert [edge["transport"] for edge in edges] == ["tcp"]
    assert edges[0]["detail"].startswith("shm: the memory can't be reached")
    assert edges[0]["blocks"] == -(-len(prompt) // 16)
