"""A cluster's setting ``tls`` reaches every rank: steps and blocks go between members only."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from certificates import make_authority, make_expired, make_worker
from forked_replicas import forked_replicas
from handoff_driver import HandoffFailed, attached

from cluster.worker_host import WorkerHost
from core.errors import InvalidField
from core.request import Role
from core.shards import ParallelShape
from core.worker_settings import WorkerSettings

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

PROMPT = [(7 * i) % 250 for i in range(200)]


def test_a_worker_whose_certificate_has_expired_says_so_at_its_start(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Its node's files may be others than those that were looked at where the cluster began."""
    make_authority(tmp_path)
    expired = make_expired(tmp_path, "expired", tmp_path)
    settings = WorkerSettings("late", Role.MIXED, str(tiny_model), num_blocks=64, tls=expired)
    with pytest.raises(InvalidField, match="certificate has expired"):
        asyncio.run(WorkerHost(settings).start())


def test_only_decode_workers_with_a_certificate_get_blocks(
    tiny_model: Path, tmp_path: Path
) -> None:
    make_authority(tmp_path)
    tls = make_worker(tmp_path, "worker", tmp_path)
    prefill = WorkerSettings(
        "prefill",
        Role.PREFILL,
        str(tiny_model),
        num_blocks=64,
        transport="tcp",
        shape=ParallelShape(2, 1),
        tls=tls,
    )
    decode = replace(prefill, worker="decode", role=Role.DECODE, shape=ParallelShape(1, 2))
    stranger = replace(decode, worker="stranger", shape=ParallelShape(), tls=None)

    async def check(replicas) -> None:
        members = {"prefill": tls, "decode": tls}
        async with attached([replica.place for replica in replicas], members) as driver:
            assert len(await driver.answer("prefill", "decode", PROMPT, count=4)) == 4
            edges = (await driver.stats("decode")).edges
            assert [edge.transport for edge in edges] == ["tcp"] * 4
            assert all(edge.blocks for edge in edges)
            with pytest.raises(HandoffFailed, match="UNAVAILABLE"):
                await driver.answer("prefill", "stranger", PROMPT, count=4)

    with forked_replicas(prefill, decode, stranger) as replicas:
        asyncio.run(check(replicas))
