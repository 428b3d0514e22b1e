"""A whole cluster for one question: starts it, streams the answer, says what moved, stops it.

    python examples/demo.py ["Your question"] [options of `crossdock serve`]

An idle decode worker would answer so short a prompt alone, and sooner; unless a config of yours
says otherwise every prompt is handed off here, to show how. Numbers are taken here, at the client:
TTFT from sending the request to the first text, TPOT as the mean time between tokens after the
first.
"""

from __future__ import annotations

import ctypes
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import NamedTemporaryFile
from typing import Any

from cluster.cli.admin_call import fetch_status
from cluster.cli.chat import Server, post_events
from cluster.cli.output import plain
from core.errors import CrossdockError

QUESTION = "What is a cross-dock warehouse? Answer in two sentences."
MAX_TOKENS = 96
STOP_TIMEOUT_S = 60.0
PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>


@dataclass(frozen=True)
class Addresses:
    http: str
    admin: str


@dataclass(frozen=True)
class Answer:
    """Times in seconds; ``tokens`` counts the answer's."""

    ttft: float
    tpot: float
    prompt_tokens: int
    tokens: int


def main() -> None:
    # A closed terminal or a time limit must stop the cluster, too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    arguments = sys.argv[1:]
    question = QUESTION
    if arguments and not arguments[0].startswith("-"):
        question = arguments.pop(0)
    with handing_off(arguments), running_cluster(arguments) as addresses:
        print(f"\n> {question}\n")
        status = plain(fetch_status(addresses.admin))
        answer = ask(f"http://{addresses.http}", status["model"], question)
        report(answer, plain(fetch_status(addresses.admin)))


@contextmanager
def handing_off(arguments: list[str]) -> Iterator[None]:
    """A config is added to ``arguments`` that have none."""
    if {"--config", "-f"} & {argument.partition("=")[0] for argument in arguments}:
        yield
        return
    with NamedTemporaryFile("w", suffix=".yaml") as config:
        config.write("router: {disaggregation: prefer}\n")
        config.flush()
        arguments += ["--config", config.name]
        yield


@contextmanager
def running_cluster(arguments: list[str]) -> Iterator[Addresses]:
    """`crossdock serve` in a process of its own, drained and ended on the way out."""
    admin_port = free_port()
    ports = ["--grpc-port", "0", "--http-port", "0", "--admin-port", str(admin_port)]
    pools = ["--prefill", "1", "--decode", "1"]
    command = [sys.executable, "-P", "-m", "cluster.cli.main", "serve", *pools, *ports, *arguments]
    # A group of its own: Ctrl-C reaches us, and we tell it to stop, once.
    serve = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, process_group=0, preexec_fn=stop_with_parent
    )
    try:
        yield Addresses(wait_ready(serve), f"127.0.0.1:{admin_port}")
    finally:
        serve.send_signal(signal.SIGTERM)
        try:
            serve.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            serve.kill()
            raise


def stop_with_parent() -> None:
    """Runs in the new process: the kernel sends it SIGTERM when we die, however that happens."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_ready(serve: subprocess.Popen[str]) -> str:
    """Blocks until it can answer; its HTTP address. It says on stderr what it does meanwhile."""
    assert serve.stdout is not None
    print("starting a cluster: Ray, workers, router (some seconds) …", file=sys.stderr, flush=True)
    line = serve.stdout.readline()
    ready = re.search(r"ready grpc=\S+ http=(\S+)", line)
    if ready is None:
        print(line + serve.stdout.read(), end="")
        raise SystemExit("the cluster did not start; what it said is above")
    return ready[1]


def ask(url: str, model: str, question: str) -> Answer:
    """Streams the answer to stdout; the chat template is applied by the server."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    sent = time.perf_counter()
    first = last = 0.0
    usage: dict[str, Any] = {}
    for event in post_events(Server(url), "/v1/chat/completions", body):
        usage = event.get("usage") or usage
        for choice in event.get("choices", []):
            if text := choice.get("delta", {}).get("content"):
                last = time.perf_counter()
                first = first or last
                print(text, end="", flush=True)
    print("\n")
    tokens = usage["completion_tokens"]
    return Answer(first - sent, (last - first) / max(1, tokens - 1), usage["prompt_tokens"], tokens)


def report(answer: Answer, status: dict[str, Any]) -> None:
    edges = [edge for worker in status["workers"] for edge in worker["stats"]["edges"]]
    transports = sorted({edge["transport"] for edge in edges}) or ["none (colocated)"]
    rows = [
        ("model", status["model"]),
        ("ratio", f"{status['prefill_wanted']} prefill : {status['decode_wanted']} decode"),
        ("tokens", f"{answer.prompt_tokens} in, {answer.tokens} out"),
        ("TTFT", f"{answer.ttft * 1000:.0f} ms"),
        ("TPOT", f"{answer.tpot * 1000:.1f} ms"),
        ("transport", ", ".join(transports)),
        ("KV shipped", f"{sum(edge['bytes'] for edge in edges):,} bytes "
                       f"in {sum(edge['blocks'] for edge in edges)} blocks"),
    ]  # fmt: skip
    for name, value in rows:
        print(f"{name:<11} {value}")


if __name__ == "__main__":
    try:
        main()
    except CrossdockError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(1)
