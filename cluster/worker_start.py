"""Waits for the start of a worker, for as long as that can still come.

Does not cover: what starts it (``cluster.replica``), what follows (``cluster.controller``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from cluster.pool_messages import Started
from core.errors import Unavailable

START_TIMEOUT_S = 600.0
_PAUSE_S = 1.0


async def await_start(
    starting: Coroutine[Any, Any, Started], has_place: Callable[[], bool]
) -> Started:
    """``has_place``, which may block: whether the nodes of all its ranks live. Ray itself would
    wait until others have room, where the worker's addresses are not.

    Raises what ``starting`` does; ``Unavailable`` after `START_TIMEOUT_S` or if a node is lost.
    """
    task = asyncio.create_task(starting)
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not task.done():
                await asyncio.wait({task}, timeout=_PAUSE_S)
                if not task.done() and not await asyncio.to_thread(has_place):
                    raise Unavailable("its node is gone", reason="NODE_UNAVAILABLE")
            return task.result()
    except TimeoutError:
        raise Unavailable(
            f"it was not ready after {START_TIMEOUT_S:g} s", reason="NOT_READY"
        ) from None
    finally:
        task.cancel()
