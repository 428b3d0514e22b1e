"""The leading rank loads while others may be lost: whatever comes second is not told to nobody."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest

import cluster.worker_parts
from cluster.worker_host import WorkerHost
from core.errors import InternalError, InvalidField, Unavailable
from core.request import Role
from core.shards import ParallelShape
from core.worker_settings import WorkerSettings

SETTINGS = WorkerSettings(
    "w-0", Role.MIXED, "model", num_blocks=16, block_size=4, shape=ParallelShape(2, 1)
)
LOST = Unavailable("rank 1 is lost: it crashed", reason="RANK_LOST", metadata={"rank": "1"})


@pytest.fixture
async def missed() -> list[dict[str, Any]]:
    """What asyncio complains about."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, about: complaints.append(about))
    return complaints


async def begin(host: WorkerHost, monkeypatch, load) -> asyncio.Task[Any]:
    monkeypatch.setattr(cluster.worker_parts, "load_leading_rank", load)
    assert host.prepare() is not None
    return asyncio.create_task(host.start())


async def let_go(task: asyncio.Task[Any]) -> None:
    """Futures are complained about once nobody holds them. Threads hold them, and errors do by the
    frames that they passed."""
    for thread in threading.enumerate():
        if thread.name.startswith("rank-"):
            await asyncio.to_thread(thread.join, 10)
    await asyncio.sleep(0)
    error = task.exception()
    assert error is not None
    error.__traceback__ = error.__context__ = error.__cause__ = None


async def test_a_rank_that_is_lost_after_the_leader_failed_is_no_news(monkeypatch, missed) -> None:
    def load(settings, group) -> None:
        raise InvalidField("model", "model", "name a folder")

    host = WorkerHost(SETTINGS)
    starting = await begin(host, monkeypatch, load)
    with pytest.raises(InvalidField):
        await starting
    await let_go(starting)
    del starting, host
    gc.collect()
    assert missed == []


async def test_a_leader_that_fails_after_a_rank_was_lost_is_no_news(monkeypatch, missed) -> None:
    told = threading.Event()

    def load(settings, group) -> None:
        group.fail(LOST)
        assert told.wait(10)
        raise InternalError("a peer is gone", reason="PEERS_LOST")

    host = WorkerHost(SETTINGS)
    starting = await begin(host, monkeypatch, load)
    with pytest.raises(Unavailable, match="rank 1 is lost"):
        await starting
    told.set()
    await let_go(starting)
    del starting, host
    gc.collect()
    assert missed == []
