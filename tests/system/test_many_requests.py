"""Crowds of requests and clients that go away, on two prefill and two decode workers."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psutil
import pytest
from served_cluster import ServedCluster, served

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster(tiny_model: Path) -> Iterator[ServedCluster]:
    with served(tiny_model, 2, 2) as running:
        yield running


def random_prompt(generator: random.Random) -> list[int]:
    return [generator.randrange(1, 200) for _ in range(generator.randrange(1, 800))]


def test_sixty_four_at_once_get_what_each_gets_alone(cluster: ServedCluster) -> None:
    generator = random.Random(5)
    prompts = [random_prompt(generator) for _ in range(64)]
    together = cluster.answers(prompts, 40)
    alone = [cluster.answer(prompt, 40) for prompt in prompts[:12]]
    assert {len(tokens) for tokens in together} == {40}
    assert together[:12] == alone
    assert all(stats.prefill_tokens_computed == 0 for stats in cluster.stats("decode"))


def test_a_thousand_clients_that_go_away_leave_nothing_behind(cluster: ServedCluster) -> None:
    generator = random.Random(6)
    leave_early(cluster, 300, generator)
    before = resident_bytes(cluster)
    outcomes = leave_early(cluster, 1000, generator)
    assert set(outcomes) <= {"CANCELLED", "answered"}
    assert outcomes["CANCELLED"] > 400
    cluster.assert_nothing_is_held()
    assert len(cluster.answer(random_prompt(generator), 8)) == 8
    grown = resident_bytes(cluster) - before
    # All processes together; a leak of one prompt's objects each time would be more.
    assert grown < 64 * 2**20, f"{grown / 2**20:.1f} MiB more after 1,000 cancelled requests"


def leave_early(cluster: ServedCluster, count: int, generator: random.Random) -> Counter[str]:
    """Clients that leave at random moments: while queued, in transfer, while tokens come."""
    tasks = [
        (
            random_prompt(generator),
            generator.randrange(1, 400),
            generator.choice([1, 1, 3]),
            generator.random() * 0.3,
        )
        for _ in range(count)
    ]
    with ThreadPoolExecutor(16) as pool:
        return Counter(pool.map(lambda task: ask_and_leave(cluster, *task), tasks))


def resident_bytes(cluster: ServedCluster) -> int:
    """Of `serve`, the router and all workers, each one's own."""
    workers = [worker.stats.pid for worker in cluster.status().workers]
    router = [
        child.pid
        for child in psutil.Process(cluster.process.pid).children(recursive=True)
        if "router.main" in child.cmdline()
    ]
    assert len(router) == 1
    pids = {cluster.process.pid, *router, *workers}
    # Without what is shared: of the KV pools as much is there as was ever used.
    memory = [psutil.Process(pid).memory_info() for pid in pids]
    return sum(info.rss - info.shared for info in memory)


def ask_and_leave(
    cluster: ServedCluster, prompt: list[int], max_tokens: int, n: int, patience_s: float
) -> str:
    call = cluster.stream(prompt, max_tokens, n)
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
