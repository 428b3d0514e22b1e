"""One call to every rank of a replica at the same time, and which rank's failure came first.

Ranks fall together: when one dies, the leader loses it and the others lose the leader, all within
milliseconds and in any order. Who is to be told wants the first cause. Knows nothing of Ray but
its errors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import Any

from cluster.ray_errors import own_error

# After the first failure, the one that explains it is waited for so long.
EXPLANATION_S = 0.5
# What ranks say of each other's end (``worker.ranks``, ``engine.process_group``).
_CONSEQUENCES = ("RANK_LOST", "PEERS_LOST", "RANKS_MISSING", "LEADER_LOST", "LEADER_UNREACHABLE")


class RankCalls:
    """``calls``: in the order of ranks. Used as a context, which cancels what still runs."""

    def __init__(self, calls: Sequence[Awaitable[Any]]) -> None:
        self._tasks = [asyncio.ensure_future(call) for call in calls]
        self._failed: list[int] = []
        self._num_running = len(self._tasks)
        self._ended = asyncio.Event()
        for rank, task in enumerate(self._tasks):
            task.add_done_callback(partial(self._note, rank))

    def __enter__(self) -> RankCalls:
        return self

    def __exit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()

    @property
    def results(self) -> list[Any]:
        """Of all ranks, once all have answered."""
        return [task.result() for task in self._tasks]

    def failure_of(self, rank: int) -> BaseException | None:
        task = self._tasks[rank]
        return task.exception() if task.done() and not task.cancelled() else None

    async def all_answered(self) -> int | None:
        """Waits for every rank, or for the first failure. Returns the rank that is its cause."""
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
        return await self._cause() if self._failed else None

    async def any_ended(self) -> int:
        """Waits for the first rank that returns or fails. Returns it, or the cause of that."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        if self._failed:
            return await self._cause()
        return min(self._tasks.index(task) for task in done)

    async def _cause(self) -> int:
        try:
            async with asyncio.timeout(EXPLANATION_S):
                while (cause := self._explained()) is None and self._num_running:
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            cause = None
        return self._accused() or self._failed[0] if cause is None else cause

    def _explained(self) -> int | None:
        """The rank that failed first by itself; the leader's word counts more than the order,
        unless the rank that it names says that it fell because of another."""
        accused = self._accused()
        if accused is not None and accused not in self._failed:
            return None
        if accused is not None and not self._is_consequence(accused):
            return accused
        return next((rank for rank in self._failed if not self._is_consequence(rank)), None)

    def _accused(self) -> int | None:
        """The rank by whose loss the leader failed."""
        error = self.failure_of(0)
        own = own_error(error) if error is not None else None
        if own is None or own.reason != "RANK_LOST":
            return None
        return int(own.metadata["rank"])

    def _is_consequence(self, rank: int) -> bool:
        error = self.failure_of(rank)
        own = own_error(error) if error is not None else None
        return own is not None and own.reason in _CONSEQUENCES

    def _note(self, rank: int, task: asyncio.Future[Any]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._failed.append(rank)
        self._num_running -= 1
        self._ended.set()
