"""A worker's start is waited for as long as its node lives."""

from __future__ import annotations

import asyncio

import pytest

from cluster.plan import Slot
from cluster.pool_messages import Started
from cluster.worker_start import await_start
from core.errors import Incompatible, Unavailable

STARTED = Started(Slot("decode", 0, "decode"), "10.0.0.1:1", 1, pid=1)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.worker_start._PAUSE_S", 0.0)


class Start:
    """One that ends when the test says so."""

    def __init__(self) -> None:
        self.outcome: asyncio.Future[Started] = asyncio.get_running_loop().create_future()

    async def begin(self) -> Started:
        return await self.outcome


async def test_a_worker_that_starts_is_told() -> None:
    start = Start()
    looks = []

    def has_place() -> bool:
        looks.append("")
        asyncio.run_coroutine_threadsafe(finish(), loop)
        return True

    async def finish() -> None:
        if not start.outcome.done():
            start.outcome.set_result(STARTED)

    loop = asyncio.get_running_loop()
    assert await await_start(start.begin(), has_place) == STARTED
    assert looks


async def test_what_keeps_it_from_starting_is_raised() -> None:
    start = Start()
    start.outcome.set_exception(Incompatible("no such model", reason="UNSUPPORTED_MODEL"))
    with pytest.raises(Incompatible, match="no such model"):
        await await_start(start.begin(), lambda: True)


async def test_a_start_on_a_node_that_is_lost_is_given_up() -> None:
    start = Start()
    with pytest.raises(Unavailable, match="its node is gone"):
        await await_start(start.begin(), lambda: False)
    await asyncio.sleep(0)
    assert start.outcome.cancelled()


async def test_a_start_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.worker_start.START_TIMEOUT_S", 0.01)
    with pytest.raises(Unavailable, match=r"not ready after 0\.01 s"):
        await await_start(Start().begin(), lambda: True)
