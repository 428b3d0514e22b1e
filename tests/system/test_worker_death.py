"""Workers killed or stopped under requests: before the first token somebody else answers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import grpc
import pytest
from oracle_prompts import Prompts
from ratios import at
from served_cluster import ServedCluster

from crossdock.v1 import inference_pb2
from crossdock.v1.worker_pb2 import WorkerStats
from waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]


@pytest.fixture
def pair(float32_cluster: ServedCluster) -> ServedCluster:
    """One prefill and one decode worker; each test waits until it is whole again."""
    return float32_cluster


@pytest.fixture
def two_decoders(float32_cluster: ServedCluster) -> ServedCluster:
    """One prefill and two decode workers, as above."""
    return float32_cluster


def kill(cluster: ServedCluster, role: str, index: int = 0) -> None:
    os.kill(cluster.stats(role)[index].pid, signal.SIGKILL)


def count_tokens(call: Iterator[inference_pb2.GenerateResponse], received: list[int]) -> None:
    """Appends each response's number of tokens, also of those before an error."""
    for response in call:
        received.append(len(response.chunk.token_ids))


def worker_of(cluster: ServedCluster, role: str, event: str, since: float) -> WorkerStats:
    """The worker where it happens after this moment; waits for it."""

    def happened() -> WorkerStats | None:
        for stats in cluster.stats(role):
            if any(e.name == event and e.at_s > since for e in stats.events):
                return stats
        return None

    found = wait_until(happened)
    assert found is not None
    return found


@at((1, 1))
def test_a_prefill_worker_killed_in_the_middle_of_a_prompt(
    pair: ServedCluster, prompts: Prompts
) -> None:
    prompt, other = prompts.at_once[-2], unknown(prompts, "in the middle of a prompt")
    expected, before = pair.answer(prompt, 8), pair.status().restarts
    asked = time.monotonic()
    call = pair.stream(other, 8)
    worker_of(pair, "prefill", "chunk done", asked)
    kill(pair, "prefill")
    tokens = [t for response in call for t in response.chunk.token_ids]
    assert len(tokens) == 8
    pair.wait_replaced(before + 1)
    assert pair.answer(other, 8) == tokens
    assert pair.answer(prompt, 8) == expected


@at((1, 2))
def test_a_decode_worker_killed_before_the_first_token_and_another_answers(
    two_decoders: ServedCluster, prompts: Prompts
) -> None:
    kill_before_the_first_token(two_decoders, prompts)


@at((1, 1))
def test_a_decode_worker_killed_before_the_first_token_and_its_replacement_answers(
    pair: ServedCluster, prompts: Prompts
) -> None:
    kill_before_the_first_token(pair, prompts)


def kill_before_the_first_token(cluster: ServedCluster, prompts: Prompts) -> None:
    prompt = unknown(prompts, "before the first token")
    before, asked = cluster.status().restarts, time.monotonic()
    call = cluster.stream(prompt, 8)
    os.kill(worker_of(cluster, "decode", "granted", asked).pid, signal.SIGKILL)
    tokens = [t for response in call for t in response.chunk.token_ids]
    assert len(tokens) == 8
    cluster.wait_replaced(before + 1)
    assert cluster.answer(prompt, 8) == tokens


@at((1, 1))
def test_a_decode_worker_killed_after_the_first_token(
    pair: ServedCluster, prompts: Prompts
) -> None:
    before = pair.status().restarts
    call = pair.stream(prompts.at_once[0], 400)
    received = [len(next(call).chunk.token_ids) for _ in range(3)]
    kill(pair, "decode")
    with pytest.raises(grpc.RpcError) as caught:
        count_tokens(call, received)
    error = caught.value
    assert isinstance(error, grpc.Call)
    assert error.code() is grpc.StatusCode.ABORTED
    assert f"after {sum(received)} tokens" in str(error.details())
    pair.wait_replaced(before + 1)
    assert len(pair.answer(prompts.at_once[0], 8)) == 8


@at((1, 2))
def test_a_decode_worker_that_hangs_is_left_and_comes_back_clean(
    two_decoders: ServedCluster, prompts: Prompts
) -> None:
    """Stopped, not killed: no connection breaks, only pings find out."""
    prompt = unknown(prompts, "hangs")
    before, asked = two_decoders.status().restarts, time.monotonic()
    call = two_decoders.stream(prompt, 8)
    holder = worker_of(two_decoders, "decode", "granted", asked)
    os.kill(holder.pid, signal.SIGSTOP)
    try:
        tokens = [t for response in call for t in response.chunk.token_ids]
    finally:
        os.kill(holder.pid, signal.SIGCONT)
    assert len(tokens) == 8
    two_decoders.assert_nothing_is_held()
    assert two_decoders.status().restarts == before
    assert two_decoders.answer(prompt, 8) == tokens


def unknown(prompts: Prompts, test: str) -> list[int]:
    """A long prompt of which no worker has a block."""
    return [1000 + len(test), *prompts.one_by_one[-2]]
