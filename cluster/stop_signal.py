"""SIGINT, SIGTERM and SIGHUP as events: the first drains, the second ends at once.

Does not cover: commands that these signals break off (``cluster.interruption``).
"""

from __future__ import annotations

import asyncio
import signal
from typing import Any


class StopSignal:
    """``number``: the first signal that came; None before that."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[signal.Signals, Any] = {}
        self.drain = asyncio.Event()
        self.at_once = asyncio.Event()

    def install(self) -> None:
        """Take the signals over on the running loop, also from whoever had them before."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.getsignal(number)
            loop.add_signal_handler(number, self.receive, number)

    def restore(self) -> None:
        """Give the signals back; the loop would leave them to the system when it is closed."""
        loop = asyncio.get_running_loop()
        for number, handler in self._before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)

    def receive(self, number: int) -> None:
        if self.drain.is_set():
            self.at_once.set()
        else:
            self.number = number
        self.drain.set()


async def first_of(work: asyncio.Task[None], event: asyncio.Event) -> bool:
    """Wait for the task or the event. True if the task ended (its error is raised), else False
    and the task is cancelled."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    if work.done():
        work.result()
        return True
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    return False
