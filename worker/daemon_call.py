"""Blocking calls beside the event loop, on threads that do not keep the process alive.

``asyncio.to_thread`` waits for its threads when the process ends; what may hang in a collective
operation must not be waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def call_in_daemon(function: Callable[[], Result], name: str) -> asyncio.Future[Result]:
    """Runs ``function`` on a thread of its own called ``name``; a future of this event loop."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def set_result(result: Result) -> None:
        if not future.done():
            future.set_result(result)

    def set_exception(error: BaseException) -> None:
        if not future.done():
            future.set_exception(error)

    def run() -> None:
        try:
            result = function()
        except BaseException as error:
            _tell(loop, set_exception, error)
        else:
            _tell(loop, set_result, result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


Told = TypeVar("Told")


def _tell(loop: asyncio.AbstractEventLoop, tell: Callable[[Told], None], told: Told) -> None:
    # A loop that is closed has nobody who waits.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(tell, told)
