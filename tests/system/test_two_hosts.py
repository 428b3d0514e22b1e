"""P and D in two network namespaces: shared memory fails by itself, TCP is taken, tokens are equal.

Without Ray: worker processes and a router of their own, started in the namespaces.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from namespaces import Namespace, two_hosts, why_not
from tiny_model import LAYOUT, random_prompt

from oracle import Oracle, assert_same_tokens
from waiting import wait_until

pytestmark = [
    pytest.mark.processes,
    pytest.mark.oracle,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

HERE = Path(__file__).resolve().parent
ANSWER_TOKENS = 24


class PipedProcess:
    """A program of this folder in a namespace, spoken to by lines of JSON."""

    def __init__(self, place: Namespace, program: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            place.command(sys.executable, str(HERE / program), *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"it ended with {self._process.wait()}"
        return line

    def ask(self, question: dict[str, object]) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self.read())

    def close(self) -> None:
        """By the end of its input."""
        self._process.communicate()
        assert self._process.returncode == 0


@contextlib.contextmanager
def running(place: Namespace, program: str, *arguments: str) -> Iterator[PipedProcess]:
    process = PipedProcess(place, program, *arguments)
    try:
        yield process
    finally:
        process.close()


def settings(name: str, role: str, host: str, model: Path) -> str:
    fields = {"worker": name, "role": role, "host": host, "model_folder": str(model)}
    return json.dumps(fields | {"num_blocks": 120, "dtype": "float32"})


@pytest.fixture(scope="module")
def cluster(tiny_model: Path) -> Iterator[PipedProcess]:
    """1P:1D, each on a host of its own; the router is on P's."""
    with contextlib.ExitStack() as stack:
        here, there = stack.enter_context(two_hosts())
        prefill_settings = settings("prefill-0", "prefill", here.address, tiny_model)
        prefill = stack.enter_context(running(here, "piped_worker.py", prefill_settings))
        decode_settings = settings("decode-0", "decode", there.address, tiny_model)
        decode = stack.enter_context(running(there, "piped_worker.py", decode_settings))
        places = json.dumps([json.loads(prefill.read()), json.loads(decode.read())])
        router = running(here, "piped_router.py", str(tiny_model), places)
        asked = stack.enter_context(router)
        assert asked.read() == "ready\n"
        yield asked


def test_the_tokens_are_those_of_the_oracle(cluster: PipedProcess, tiny_oracle: Oracle) -> None:
    asked = [random_prompt(length) for length in (5, 300, 512)]
    for prompt in asked:
        tokens = cluster.ask({"prompt": prompt, "max_tokens": ANSWER_TOKENS})
        assert_same_tokens(tokens, tiny_oracle.greedy(prompt, ANSWER_TOKENS, tokens))
    decode = cluster.ask({"worker": "decode-0"})
    (edge,) = decode["edges"]
    missing = sum(LAYOUT.blocks_for(len(prompt)) for prompt in asked)
    assert edge["transport"] == "tcp"
    assert edge["detail"].startswith("shm: the memory can't be reached")
    assert int(edge["blocks"]) == missing
    assert int(edge["bytes"]) == missing * LAYOUT.block_bytes
    assert int(decode["prefill_tokens_computed"]) == 0


def test_nothing_is_held_afterwards(cluster: PipedProcess) -> None:
    cluster.ask({"prompt": random_prompt(20), "max_tokens": 2})
    for worker in ("prefill-0", "decode-0"):
        # A client has its last token before a worker has heard that nobody needs its blocks.
        wait_until(lambda name=worker: not cluster.ask({"worker": name})["leased_blocks"])
        found = cluster.ask({"worker": worker})
        assert found["quarantined_blocks"] == 0
        assert found["free_blocks"] + found["cached_blocks"] == found["total_blocks"]
