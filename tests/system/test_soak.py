"""A cluster that is never left in peace, and clients that check each answer.

Two prefill and two decode workers, three routers that share a Redis; every few seconds one part
dies, hangs or is taken away. Forty seconds of it by default; the environment says otherwise:

    CROSSDOCK_SOAK_S=480 CROSSDOCK_SOAK_SEED=1 ./scripts/test tests/system/test_soak.py -s
"""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
import yaml
from chaos import Chaos
from checked_clients import CheckedClients, questions, right_answers
from router_commands import RouterCommand
from served_cluster import ServedCluster, served

from redis_server import needs_redis, redis_server

SECONDS = float(os.environ.get("CROSSDOCK_SOAK_S", "40"))
SEED = int(os.environ.get("CROSSDOCK_SOAK_SEED", "0"))
# Between two strikes: some come while the last one's damage is being mended.
PAUSE_S = (1.0, 5.0)
CLIENTS = 8

pytestmark = [needs_redis, pytest.mark.processes, pytest.mark.timeout(300 + 2 * SECONDS)]


def test_no_answer_is_wrong_or_lost_whatever_dies(tiny_model: Path, tmp_path: Path) -> None:
    random = Random(SEED)
    with redis_server(tmp_path) as redis:
        config = tmp_path / "cluster.yaml"
        config.write_text(yaml.safe_dump(settings(tiny_model, redis.url)))
        with served(tiny_model, 2, 2, "--config", str(config)) as cluster:
            registry = cluster.status().registry_address
            chaos = Chaos(cluster, redis, lambda: RouterCommand(config, registry), random)
            try:
                soak(cluster, chaos, random)
            finally:
                assert [router.end() for router in chaos.routers] == [0, 0]


def settings(model: Path, store: str) -> dict[str, object]:
    return {
        "model": str(model),
        "store": store,
        "kv": {"num_blocks": 384},
        "token_streams": {"enabled": True},
    }


def soak(cluster: ServedCluster, chaos: Chaos, random: Random) -> None:
    asked = questions(random)
    right = right_answers(cluster.grpc_address, asked)
    clients = CheckedClients(right, lambda: doors(cluster, chaos), Random(SEED))
    with ThreadPoolExecutor(1) as thread:
        striking = thread.submit(strike, chaos, random)
        asyncio.run(clients.ask_until(striking.done, CLIENTS))
    striking.result()
    print(dict(sorted(clients.outcomes.items())))
    assert clients.wrong == []
    for way in ("grpc", "ticket", "http"):
        assert clients.outcomes[f"{way}: answered"] > 0
    cluster.wait_settled()
    assert right_answers(cluster.grpc_address, asked) == right


def strike(chaos: Chaos, random: Random) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        time.sleep(random.uniform(*PAUSE_S))
        print(chaos.strike(), flush=True)


def doors(cluster: ServedCluster, chaos: Chaos) -> list[tuple[str, str]]:
    own = cluster.grpc_address, cluster.http_url.removeprefix("http://")
    return [own, *((router.grpc_address, router.http_address) for router in chaos.routers)]
