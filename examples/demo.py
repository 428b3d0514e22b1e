"""A whole cluster for one question: starts it, streams the answer, says what moved, stops it.

    python examples/demo.py ["Your question"] [options of `crossdock serve`]

Numbers are taken here, at the client: TTFT from sending the request to the first text, TPOT as
the mean time between tokens after the first.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from cluster.cli.chat import post_events
from cluster.cli.output import plain
from cluster.cli.status import fetch_status
from core.errors import CrossdockError

QUESTION = "What is a cross-dock warehouse? Answer in two sentences."
MAX_TOKENS = 96
STOP_TIMEOUT_S = 60.0


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
    with running_cluster(arguments) as addresses:
        print(f"\n> {question}\n")
        status = plain(fetch_status(addresses.admin))
        answer = ask(f"http://{addresses.http}", status["model"], question)
        report(answer, plain(fetch_status(addresses.admin)))


@contextmanager
def running_cluster(arguments: list[str]) -> Iterator[Addresses]:
    """`crossdock serve` in a process of its own, drained and ended on the way out."""
    ports = ["--grpc-port", "0", "--http-port", "0", "--admin-port", "0"]
    pools = ["--prefill", "1", "--decode", "1"]
    command = [sys.executable, "-P", "-m", "cluster.cli.main", "serve", *pools, *ports, *arguments]
    # A group of its own: Ctrl-C reaches us, and we tell it to stop, once.
    serve = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    try:
        yield wait_ready(serve)
    finally:
        serve.send_signal(signal.SIGTERM)
        try:
            serve.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            serve.kill()
            raise


def wait_ready(serve: subprocess.Popen[str]) -> Addresses:
    """Blocks until it can answer; passes on what it says about itself."""
    assert serve.stdout is not None
    assert serve.stderr is not None
    notes: list[str] = []
    threading.Thread(target=relay, args=(serve.stderr, notes), daemon=True).start()
    print("starting a cluster: Ray, workers, router (some seconds) …", file=sys.stderr, flush=True)
    ready = re.search(r"ready grpc=\S+ http=(\S+)", serve.stdout.readline())
    if ready is None:
        raise SystemExit("the cluster did not start; what it said is above")
    admin = next(note.partition("=")[2] for note in notes if note.startswith("admin="))
    return Addresses(ready[1], admin)


def relay(stream: IO[str], notes: list[str]) -> None:
    for line in stream:
        notes.append(line.strip())
        if not line.startswith("admin="):
            print(line, end="", file=sys.stderr, flush=True)


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
    for event in post_events(url, "/v1/chat/completions", body):
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
