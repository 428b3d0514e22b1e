"""Crowds of requests and clients that go away, on two prefill and two decode workers."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from served_cluster import ServedCluster, served

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]


def random_prompt(generator: random.Random) -> list[int]:
    return [generator.randrange(1, 200) for _ in range(generator.randrange(1, 800))]


def test_sixty_four_at_once_get_what_each_gets_alone(tiny_model: Path) -> None:
    generator = random.Random(5)
    prompts = [random_prompt(generator) for _ in range(64)]
    with served(tiny_model, 2, 2) as cluster:
        together = cluster.answers(prompts, 40)
        alone = [cluster.answer(prompt, 40) for prompt in prompts[:12]]
        assert {len(tokens) for tokens in together} == {40}
        assert together[:12] == alone
        assert all(stats.prefill_tokens_computed == 0 for stats in cluster.stats("decode"))


def test_clients_that_go_away_leave_nothing_behind(tiny_model: Path) -> None:
    generator = random.Random(6)
    tasks = [
        (random_prompt(generator), generator.randrange(1, 400), generator.random() * 0.3)
        for _ in range(300)
    ]
    with served(tiny_model, 2, 2) as cluster:
        with ThreadPoolExecutor(16) as pool:
            outcomes = Counter(pool.map(lambda task: ask_and_leave(cluster, *task), tasks))
        assert set(outcomes) <= {"CANCELLED", "answered"}
        assert outcomes["CANCELLED"] > 100
        cluster.assert_nothing_is_held()
        assert len(cluster.answer(tasks[0][0], 8)) == 8


def ask_and_leave(
    cluster: ServedCluster, prompt: list[int], max_tokens: int, patience_s: float
) -> str:
    call = cluster.stream(prompt, max_tokens)
    leaving = threading.Timer(patience_s, call.cancel)  # type: ignore[attr-defined]
    leaving.start()
    try:
        for _ in call:
            pass
    except grpc.RpcError:
        return str(call.code().name)  # type: ignore[attr-defined]
    finally:
        leaving.cancel()
    return "answered"
