"""Waiting, on the event loop, until this rank's engine has finished so many steps."""

from __future__ import annotations

import asyncio
import threading


class FinishedSteps:
    """Told by the engine's thread, awaited on the event loop it is made on."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._count = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    def note(self, count: int) -> None:
        """``count`` steps are finished. From any thread."""
        with self._lock:
            self._count = count
            due = [future for number, future in self._waiting if number <= count]
            self._waiting = [item for item in self._waiting if item[0] > count]
        for future in due:
            self._loop.call_soon_threadsafe(_release, future)

    async def wait_for(self, count: int) -> None:
        with self._lock:
            if self._count >= count:
                return
            future: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append((count, future))
        await future


def _release(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
