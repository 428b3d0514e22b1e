"""Workers killed or stopped under requests: before the first token somebody else answers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from oracle_prompts import Prompts
from served_cluster import ServedCluster, served

from crossdock.v1 import inference_pb2
from waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]


def kill(cluster: ServedCluster, role: str, index: int = 0) -> None:
    os.kill(cluster.stats(role)[index].pid, signal.SIGKILL)


def count_tokens(call: Iterator[inference_pb2.GenerateResponse], received: list[int]) -> None:
    """Appends each response's number of tokens, also of those before an error."""
    for response in call:
        received.append(len(response.chunk.token_ids))


def wait_for_event(cluster: ServedCluster, role: str, name: str) -> None:
    wait_until(lambda: any(e.name == name for w in cluster.stats(role) for e in w.events))


def test_a_prefill_worker_killed_in_the_middle_of_a_prompt(smollm2: Path, prompts: Prompts) -> None:
    prompt = prompts.at_once[-2]
    with served(smollm2, 1, 1, "--dtype", "float32") as cluster:
        expected = cluster.answer(prompt, 8)
        other = prompts.one_by_one[-2]
        call = cluster.stream(other, 8)
        wait_for_event(cluster, "prefill", "chunk done")
        kill(cluster, "prefill")
        tokens = [t for response in call for t in response.chunk.token_ids]
        assert len(tokens) == 8
        cluster.wait_replaced(1)
        assert cluster.answer(other, 8) == tokens
        assert cluster.answer(prompt, 8) == expected


@pytest.mark.parametrize("decode_workers", [2, 1], ids=["another answers", "its replacement does"])
def test_a_decode_worker_killed_before_the_first_token(
    smollm2: Path, prompts: Prompts, decode_workers: int
) -> None:
    prompt = prompts.one_by_one[-2]
    with served(smollm2, 1, decode_workers, "--dtype", "float32") as cluster:
        call = cluster.stream(prompt, 8)
        wait_for_event(cluster, "decode", "granted")
        holder = next(
            stats
            for stats in cluster.stats("decode")
            if any(event.name == "granted" for event in stats.events)
        )
        os.kill(holder.pid, signal.SIGKILL)
        tokens = [t for response in call for t in response.chunk.token_ids]
        assert len(tokens) == 8
        cluster.wait_replaced(1)
        assert cluster.answer(prompt, 8) == tokens


def test_a_decode_worker_killed_after_the_first_token(smollm2: Path, prompts: Prompts) -> None:
    with served(smollm2, 1, 1, "--dtype", "float32") as cluster:
        call = cluster.stream(prompts.at_once[0], 400)
        received = [len(next(call).chunk.token_ids) for _ in range(3)]
        kill(cluster, "decode")
        with pytest.raises(grpc.RpcError) as caught:
            count_tokens(call, received)
        error = caught.value
        assert isinstance(error, grpc.Call)
        assert error.code() is grpc.StatusCode.ABORTED
        assert f"after {sum(received)} tokens" in str(error.details())
        cluster.wait_replaced(1)
        assert len(cluster.answer(prompts.at_once[0], 8)) == 8


def test_a_decode_worker_that_hangs_is_left_and_comes_back_clean(
    smollm2: Path, prompts: Prompts
) -> None:
    """Stopped, not killed: no connection breaks, only pings find out."""
    prompt = prompts.one_by_one[-2]
    with served(smollm2, 1, 2, "--dtype", "float32") as cluster:
        call = cluster.stream(prompt, 8)
        wait_for_event(cluster, "decode", "granted")
        holder = next(
            stats
            for stats in cluster.stats("decode")
            if any(event.name == "granted" for event in stats.events)
        )
        os.kill(holder.pid, signal.SIGSTOP)
        try:
            tokens = [t for response in call for t in response.chunk.token_ids]
        finally:
            os.kill(holder.pid, signal.SIGCONT)
        assert len(tokens) == 8
        cluster.assert_nothing_is_held()
        assert cluster.status().restarts == 0
        assert cluster.answer(prompt, 8) == tokens
