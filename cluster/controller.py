"""Keeps every worker of the pools alive: carries out what ``PoolState`` decides.

One task per slot watches its actor. Does not cover: Ray (``cluster.ray_cluster``), or telling
routers (``cluster.registry``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from cluster.plan import Slot
from cluster.pool_state import (
    Command,
    Event,
    GiveUp,
    Lost,
    Member,
    PoolState,
    PublishWorkers,
    RestartDue,
    RestartLater,
    Started,
    StartWorker,
)
from core.errors import CrossdockError, InternalError
from core.worker_settings import WorkerSettings

START_TIMEOUT_S = 600.0
# Beyond its drain time a worker gets this long to close files and threads.
STOP_GRACE_S = 10.0


class Worker(Protocol):
    async def start(self) -> Started: ...
    async def wait_closed(self) -> str: ...
    async def stop(self, drain_s: float) -> None: ...
    def kill(self) -> None: ...


class WorkerFactory(Protocol):
    def create_worker(self, slot: Slot, settings: WorkerSettings) -> Worker: ...


class Controller:
    """``publish`` gets the ready workers on every change; ``note`` tells of deaths and starts."""

    def __init__(
        self,
        factory: WorkerFactory,
        settings: Mapping[Slot, WorkerSettings],
        publish: Callable[[tuple[Member, ...]], None],
        note: Callable[[str], None],
    ) -> None:
        self._factory = factory
        self._settings = settings
        self._publish = publish
        self._note = note
        self._workers: dict[Slot, Worker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._all_ready = asyncio.get_running_loop().create_future()
        self._stopping = False
        self._state = PoolState(list(settings), self._now())

    @property
    def members(self) -> tuple[Member, ...]:
        return self._state.members

    @property
    def restarts(self) -> int:
        return self._state.restarts

    async def start(self) -> None:
        """Returns when every worker is ready. Raises what kept one from it."""
        self._carry_out(self._state.begin())
        await self._all_ready

    async def stop(self, drain_s: float) -> None:
        """Let workers finish for ``drain_s`` seconds, then end them. No restarts from here on."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(self._stop_worker(w, drain_s) for w in self._workers.values()))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def kill(self) -> None:
        """End everything at once."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        for worker in self._workers.values():
            worker.kill()

    @staticmethod
    async def _stop_worker(worker: Worker, drain_s: float) -> None:
        try:
            await asyncio.wait_for(worker.stop(drain_s), drain_s + STOP_GRACE_S)
        except TimeoutError:
            pass
        finally:
            worker.kill()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _handle(self, event: Event) -> None:
        if self._stopping:
            return
        self._carry_out(self._state.handle(event, self._now()))
        if self._state.all_ready and not self._all_ready.done():
            self._all_ready.set_result(None)

    def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case StartWorker(slot):
                    self._spawn(self._live(slot))
                case RestartLater(slot, delay_s):
                    self._note(f"worker {slot.name} was lost, starting another in {delay_s:g} s")
                    self._spawn(self._restart_after(slot, delay_s))
                case PublishWorkers(ready):
                    self._publish(ready)
                case GiveUp(slot, reason):
                    self._give_up(slot, reason)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _live(self, slot: Slot) -> None:
        """One worker from its start to its death."""
        try:
            worker = self._factory.create_worker(slot, self._settings[slot])
        except Exception as error:
            self._handle(Lost(slot, f"it can't be created: {error}"))
            return
        self._workers[slot] = worker
        try:
            started = await asyncio.wait_for(worker.start(), START_TIMEOUT_S)
        except Exception as error:
            worker.kill()
            self._handle(Lost(slot, _why_not_started(error)))
            return
        self._handle(started)
        reason = await worker.wait_closed()
        worker.kill()  # Its engine may have crashed in a process that still lives.
        self._note(f"worker {slot.name} (pid {started.pid}): {reason}")
        self._handle(Lost(slot, reason))

    async def _restart_after(self, slot: Slot, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        self._handle(RestartDue(slot))

    def _give_up(self, slot: Slot, reason: str) -> None:
        if not self._all_ready.done():
            message = f"worker {slot.name} can't start: {reason}"
            self._all_ready.set_exception(InternalError(message, reason="WORKER_FAILED"))


def _why_not_started(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"it was not ready after {START_TIMEOUT_S:g} s"
    return error.message if isinstance(error, CrossdockError) else repr(error)
