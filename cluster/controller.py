"""Keeps every worker of the pools alive: carries out what ``PoolState`` decides.

Each worker has tasks that start it, watch it, and ask it how it is. Does not cover: Ray
(``cluster.ray_cluster``), room (``cluster.places``), telling routers (``cluster.registry``).
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cluster.plan import ReplicaSettings, Slot
from cluster.pool_messages import (
    Answered,
    BeginDrain,
    Command,
    Drained,
    DrainWorker,
    EndWorker,
    Event,
    EvictWorker,
    GiveUp,
    KillWorker,
    Lost,
    Member,
    MemberState,
    NotAnswered,
    PublishWorkers,
    RestartDue,
    RestartLater,
    Started,
    StartWorker,
)
from cluster.pool_state import ATTACH_PATIENCE_S, PoolState
from cluster.wanted import Wanted
from cluster.wishes import Wish
from cluster.worker_start import await_start
from core.errors import CrossdockError, InternalError, Unavailable
from crossdock.v1 import worker_pb2

# Beyond its drain time a worker gets this long to close files and threads.
STOP_GRACE_S = 10.0
ASK_TIMEOUT_S = 10.0
ASK_PAUSE_S = 5.0
# Until every router is attached to a new worker, others may have to wait with draining.
ASK_NEW_PAUSE_S = 0.1


class Worker(Protocol):
    async def start(self) -> Started: ...
    async def wait_closed(self) -> str: ...
    async def stop(self, drain_s: float) -> None: ...
    def kill(self) -> None: ...


class WorkerFactory(Protocol):
    def create_worker(self, slot: Slot, settings: ReplicaSettings) -> Worker: ...


class WorkerPlaces(Protocol):
    def check_room(self, slots: Sequence[Slot], heirs: Mapping[Slot, Slot]) -> None: ...
    async def settings(self, slot: Slot, beside: Slot | None = None) -> ReplicaSettings: ...
    def pass_on(self, slot: Slot, heir: Slot) -> None: ...
    def give_back(self, slot: Slot) -> None: ...
    def on_living_nodes(self, slot: Slot) -> bool: ...
    def on_address(self, address: str) -> tuple[Slot, ...]: ...
    async def close_node(self, address: str, reason: str, limit_s: float) -> None: ...


class Routers(Protocol):
    """``cluster.registry.Registry``: who is told of the workers."""

    @property
    def num_watchers(self) -> int: ...
    def publish(self, workers: Sequence[Member]) -> None: ...


@dataclass(slots=True)
class _Life:
    """What runs for one slot."""

    worker: Worker | None = None
    draining: bool = False
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def cancel(self) -> None:
        """Ends its tasks; the one that asks for this ends by itself."""
        for task in self.tasks - {asyncio.current_task()}:
            task.cancel()

    def kill(self) -> None:
        self.cancel()
        if self.worker is not None:
            self.worker.kill()


class Controller:
    """``ask`` asks the worker at an endpoint, ``note`` tells of deaths and starts."""

    def __init__(
        self,
        factory: WorkerFactory,
        places: WorkerPlaces,
        routers: Routers,
        slots: Sequence[Slot],
        *,
        ask: Callable[[str, float], Awaitable[worker_pb2.WorkerStats]],
        note: Callable[[str], None],
        prefill_required: bool = False,
    ) -> None:
        self._factory = factory
        self._places = places
        self._routers = routers
        self._ask = ask
        self._note = note
        self._lives: dict[Slot, _Life] = {}
        self._all_ready = asyncio.get_running_loop().create_future()
        self._stopping = False
        self._state = PoolState(slots, self._now(), prefill_required=prefill_required)

    @property
    def members(self) -> tuple[Member, ...]:
        return self._state.members

    @property
    def wanted(self) -> Wanted:
        return self._state.wanted

    @property
    def settled(self) -> bool:
        return self._state.settled

    @property
    def restarts(self) -> int:
        return self._state.restarts

    async def start(self) -> None:
        """Returns when every worker is ready. Raises what kept one from it."""
        self._carry_out(self._state.begin())
        await self._all_ready

    async def wait_attached(self) -> None:
        """Returns when all routers are attached to every worker that is ready."""
        while not await self._ask_all():  # noqa: ASYNC110 - they are asked, they do not tell
            await asyncio.sleep(ASK_NEW_PAUSE_S)

    async def change(self, wish: Wish) -> None:
        """Takes on what an operator wants. Raises ``CrossdockError``; then nothing has changed."""
        # Which worker can be spared best depends on what they have to do now.
        await self._ask_all()
        trial = copy.deepcopy(self._state)
        commands = trial.handle(wish, self._now())
        heirs = {m.slot: m.successor for m in trial.members if m.successor is not None}
        heirs |= {c.slot: c.heir for c in commands if isinstance(c, EndWorker) and c.heir}
        started = [c.slot for c in commands if isinstance(c, StartWorker)]
        try:
            self._places.check_room([s for s in started if s not in heirs.values()], heirs)
        except Unavailable as error:
            if isinstance(wish, DrainWorker):
                raise _no_replacement(error) from None
            raise
        self._handle(wish)

    async def leave_node(self, address: str, limit_s: float) -> tuple[Slot, ...]:
        """All workers with a rank on the node at this IP address drain from now on, and nothing is
        placed there any more. Returns them. Raises ``PreconditionFailed`` while the cluster
        starts."""
        # First: their replacements must not be placed there.
        await self._places.close_node(address, "it is being drained", limit_s)
        leaving = self._places.on_address(address)
        for slot in leaving:
            self._handle(EvictWorker(slot.name, limit_s))
        return leaving

    async def stop(self, drain_s: float) -> None:
        """Let workers finish for ``drain_s`` seconds, then end them. No restarts from here on."""
        self._stopping = True
        lives = list(self._lives.values())
        tasks = [task for life in lives for task in life.tasks]
        for life in lives:
            life.cancel()
        workers = [life.worker for life in lives if life.worker is not None]
        await asyncio.gather(*(self._stop_worker(worker, drain_s) for worker in workers))
        await asyncio.gather(*tasks, return_exceptions=True)

    def kill(self) -> None:
        """End everything at once."""
        self._stopping = True
        for life in self._lives.values():
            life.kill()

    @staticmethod
    async def _stop_worker(worker: Worker, drain_s: float) -> None:
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(worker.stop(drain_s), drain_s + STOP_GRACE_S)
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
                case PublishWorkers(workers):
                    self._routers.publish(workers)
                case GiveUp(slot, reason):
                    self._give_up(slot, reason)
                case _:
                    self._carry_out_for_worker(command)

    def _carry_out_for_worker(
        self, command: StartWorker | RestartLater | BeginDrain | KillWorker | EndWorker
    ) -> None:
        match command:
            case StartWorker(slot, beside):
                self._new_life(slot, lambda life: self._live(slot, life, beside))
            case RestartLater(slot, delay_s):
                self._note(f"worker {slot.name} was lost, starting another in {delay_s:g} s")
                self._new_life(slot, lambda _: self._restart_after(slot, delay_s))
            case BeginDrain(slot, limit_s):
                self._note(f"worker {slot.name} drains, for at most {limit_s:g} s")
                life = self._lives[slot]
                life.draining = True
                life.spawn(self._drain(slot, life, limit_s))
            case KillWorker(slot, reason):
                self._note(f"worker {slot.name} is killed: {reason}")
                self._lives[slot].kill()
            case EndWorker(slot, heir):
                self._end(slot, heir)

    def _new_life(self, slot: Slot, work: Callable[[_Life], Coroutine[Any, Any, None]]) -> None:
        former = self._lives.get(slot)
        if former is not None:
            former.cancel()
        life = self._lives[slot] = _Life()
        life.spawn(work(life))

    async def _live(self, slot: Slot, life: _Life, beside: Slot | None) -> None:
        """One worker from its start to its death."""
        try:
            settings = await self._places.settings(slot, beside)
            life.worker = worker = self._factory.create_worker(slot, settings)
        except Exception as error:
            self._handle(Lost(slot, f"it can't be created: {error}"))
            return
        try:
            started = await await_start(worker.start(), lambda: self._places.on_living_nodes(slot))
        except Exception as error:
            worker.kill()
            self._handle(Lost(slot, _why_not_started(error)))
            return
        self._handle(started)
        life.spawn(self._keep_asking(life, started))
        reason = await worker.wait_closed()
        worker.kill()  # Its engine may have crashed in a process that still lives.
        while_draining = " while it drained" if life.draining else ""
        self._note(f"worker {slot.name} (pid {started.pid}){while_draining}: {reason}")
        self._handle(Lost(slot, reason))

    async def _keep_asking(self, life: _Life, started: Started) -> None:
        is_new = self._now() + ATTACH_PATIENCE_S
        pause_s = 0.0
        # A missing answer may end this very life, whose task then nobody else cancels.
        while self._lives.get(started.slot) is life:
            await asyncio.sleep(pause_s)
            attached = await self._ask_once(started.slot, started.endpoint, started.epoch)
            waiting = not attached and self._now() < is_new
            pause_s = ASK_NEW_PAUSE_S if waiting else ASK_PAUSE_S

    async def _ask_all(self) -> bool:
        """Those that are ready, at the same time. Tells what `_ask_once` does, of all of them."""
        ready = [m for m in self.members if m.state is MemberState.READY]
        asking = (self._ask_once(m.slot, m.endpoint, m.epoch) for m in ready)
        return all(await asyncio.gather(*asking))

    async def _ask_once(self, slot: Slot, endpoint: str, epoch: int) -> bool:
        """Tells whether it answered and all routers are attached to it."""
        try:
            stats = await self._ask(endpoint, ASK_TIMEOUT_S)
        except Exception:
            self._handle(NotAnswered(slot, epoch))
            return False
        attached = stats.routers >= self._routers.num_watchers
        self._handle(Answered(slot, epoch, stats.load.running + stats.load.waiting, attached))
        return attached

    async def _restart_after(self, slot: Slot, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        self._handle(RestartDue(slot))

    async def _drain(self, slot: Slot, life: _Life, limit_s: float) -> None:
        assert life.worker is not None
        await self._stop_worker(life.worker, limit_s)
        self._handle(Drained(slot))

    def _end(self, slot: Slot, heir: Slot | None) -> None:
        life = self._lives.pop(slot, None)
        if life is not None:
            life.kill()
            self._note(f"worker {slot.name} has ended")
        if heir is None:
            self._places.give_back(slot)
        else:
            self._places.pass_on(slot, heir)

    def _give_up(self, slot: Slot, reason: str) -> None:
        if not self._all_ready.done():
            message = f"worker {slot.name} can't start: {reason}"
            self._all_ready.set_exception(InternalError(message, reason="WORKER_FAILED"))


def _no_replacement(error: Unavailable) -> Unavailable:
    return Unavailable(
        f"there is no room for a replacement beside it ({error.message}); drain it without one "
        "(`--no-replace`), then scale up again",
        reason=error.reason,
    )


def _why_not_started(error: Exception) -> str:
    return error.message if isinstance(error, CrossdockError) else repr(error)
