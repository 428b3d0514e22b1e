"""One worker in Ray: the actors of all its ranks, made, started, watched and ended as one.

Covers: every Ray call to these actors. Does not cover: room for them
(``cluster.placement_groups``), what an actor does (``cluster.worker_actor``,
``cluster.rank_actor``), when to start which (``cluster.pool_state``).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.placement_groups import Room
from cluster.plan import ReplicaSettings, Slot, thread_environment
from cluster.pool_messages import Started
from cluster.rank_calls import RankCalls
from cluster.ray_errors import own_error, ray_error, summary
from cluster.shadowing import our_root
from core.errors import CrossdockError, InternalError


@dataclass(frozen=True, slots=True)
class ActorClasses:
    """Ray actors of the leading rank and of each other rank (``cluster.worker_actor.WorkerActor``,
    ``cluster.rank_actor.RankActor``)."""

    leader: Any
    rank: Any


def create_replica(
    slot: Slot, room: Room, settings: ReplicaSettings, classes: ActorClasses
) -> ReplicaHandle:
    """Fresh actors in the replica's bundles; they do nothing until ``start``."""
    root = str(our_root())
    options = _options(room, 0, settings.leader.threads)
    actors = [classes.leader.options(**options).remote(settings.leader, root)]
    for told in settings.others:
        options = _options(room, told.rank, told.threads)
        actors.append(classes.rank.options(**options).remote(told, root))
    return ReplicaHandle(slot, actors)


class ReplicaHandle:
    """One living worker: ``actors`` of its ranks, the leading one first."""

    def __init__(self, slot: Slot, actors: Sequence[Any]) -> None:
        self._slot = slot
        self._leader, *self._others = actors
        self._pids: list[int] = []

    async def start(self) -> Started:
        """Load and serve. Raises ``CrossdockError`` with what the first rank that can't says."""
        address = None
        if self._others:
            # Ranks are started with it, at the same time as the leader: they load together.
            address = await self._prepare()
        calls = [self._leader.start.remote()]
        calls += [actor.start.remote(address) for actor in self._others]
        with RankCalls(calls) as ranks:
            failed = await ranks.all_answered()
            if failed is not None:
                raise self._start_error(failed, ranks.failure_of(failed) or ranks.failure_of(0))
            leader, *pids = ranks.results
        self._pids = [leader["pid"], *pids]
        return Started(self._slot, leader["endpoint"], leader["epoch"], leader["pid"])

    async def wait_closed(self) -> str:
        """Returns when one of the ranks is dead or has ended, and which one and how."""
        with RankCalls([actor.wait_closed.remote() for actor in self._actors]) as ranks:
            rank = await ranks.any_ended()
            error = ranks.failure_of(rank) or ranks.failure_of(0)
        if error is None:
            return "it ended by itself"
        who = f"rank {rank} (pid {self._pids[rank]}): " if self._others else ""
        return f"{who}{summary(error)}"

    async def stop(self, drain_s: float) -> None:
        """Let it finish for at most ``drain_s`` seconds. A worker that is dead already is fine."""
        with contextlib.suppress(ray_error()):
            await self._leader.stop.remote(drain_s)
        # Only now nothing is computed any more.
        stops = [asyncio.ensure_future(actor.stop.remote()) for actor in self._others]
        await asyncio.gather(*stops, return_exceptions=True)

    def kill(self) -> None:
        """End all ranks at once. Ray's calls wait a minute for daemons that are gone: not here."""
        threading.Thread(target=_kill, args=(self._actors,), daemon=True).start()

    @property
    def _actors(self) -> list[Any]:
        return [self._leader, *self._others]

    async def _prepare(self) -> Any:
        try:
            return await self._leader.prepare.remote()
        except ray_error() as error:
            raise self._start_error(0, error) from None

    def _start_error(self, rank: int, error: BaseException | None) -> CrossdockError:
        """What the rank said, as plainly as Ray lets us know it."""
        assert error is not None
        own = own_error(error)
        if own is not None and not self._others:
            return own
        words = own.message if own is not None else summary(error)
        who = f"rank {rank}: " if self._others else ""
        about = {"worker": self._slot.name, "rank": str(rank)}
        return InternalError(f"{who}{words}", reason="WORKER_FAILED", metadata=about)


def _options(room: Room, rank: int, threads: int) -> dict[str, Any]:
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    resources = dict(room.need.rank)
    return {
        "num_cpus": resources.pop("CPU", 0),
        "num_gpus": resources.pop("GPU", 0),
        "resources": resources,
        # Restarts are ours: a replacement needs a new epoch and fresh settings.
        "max_restarts": 0,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(
            room.group, placement_group_bundle_index=room.bundles[rank]
        ),
        "runtime_env": {"env_vars": thread_environment(threads)},
    }


def _kill(actors: list[Any]) -> None:
    import ray

    for actor in actors:
        with contextlib.suppress(ray_error()):
            ray.kill(actor)
