"""Signals: the first drains, the second ends at once."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from cluster.stop_signal import StopSignal, first_of


async def test_the_second_signal_means_at_once() -> None:
    stop = StopSignal()
    stop.install()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(stop.drain.wait(), 5)
    assert not stop.at_once.is_set()
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.wait_for(stop.at_once.wait(), 5)
    assert stop.number == signal.SIGTERM
    stop.restore()


async def test_signals_are_given_back_to_whoever_had_them() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    stop = StopSignal()
    stop.install()
    stop.restore()
    signal.raise_signal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)
    assert (came, stop.number) == ([signal.SIGTERM], None)


async def test_work_that_ends_first_wins() -> None:
    assert await first_of(asyncio.create_task(asyncio.sleep(0)), asyncio.Event())


async def test_an_event_cancels_the_work_and_waits_for_its_end() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    event = asyncio.Event()
    event.set()
    assert not await first_of(asyncio.create_task(work()), event)
    assert ended == [True]


async def test_the_error_of_the_work_is_raised() -> None:
    async def work() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await first_of(asyncio.create_task(work()), asyncio.Event())
