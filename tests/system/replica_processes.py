"""Replicas of real processes, one for each rank, without Ray.

The processes are forked off one that has imported torch already, so that a replica of four ranks
starts in a second or two.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import uvloop

from cluster.rank_host import RankHost
from cluster.worker_host import WorkerHost, WorkerPlace
from core.worker_settings import LeaderAddress, RankSettings, WorkerSettings
from worker.daemon_call import call_in_daemon

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["cluster.worker_parts", "worker.ranks.follower", __name__])
_START_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class RunningReplica:
    """``processes`` in the order of ranks."""

    place: WorkerPlace
    processes: tuple[BaseProcess, ...]

    def await_end(self, limit_s: float) -> list[int | None]:
        """Exit codes of all processes; None for those that live on after ``limit_s`` seconds."""
        for process in self.processes:
            process.join(limit_s)
        return [process.exitcode for process in self.processes]


@contextmanager
def start_replica(
    settings: WorkerSettings, differing: Mapping[int, WorkerSettings] | None = None
) -> Iterator[RunningReplica]:
    """All ranks of a replica, ready; stopped in order at the end unless they have ended before.

    ``differing``: ranks that are told other settings. Raises ``EOFError`` if the leading rank
    fails.
    """
    ours, theirs = _forks.Pipe()
    leader = _forks.Process(target=_lead, args=(settings, theirs))
    processes: list[BaseProcess] = [leader]
    leader.start()
    theirs.close()
    try:
        address: LeaderAddress | None = _receive(ours)
        for rank in range(1, settings.shape.num_ranks):
            told = (differing or {}).get(rank, settings)
            process = _forks.Process(target=_follow, args=(RankSettings(told, rank), address))
            processes.append(process)
            process.start()
        place: WorkerPlace = _receive(ours)
        yield RunningReplica(place, tuple(processes))
        ours.close()
        for process in processes:
            process.join(_START_LIMIT_S)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _receive(ours: Connection):  # type: ignore[no-untyped-def]
    assert ours.poll(_START_LIMIT_S), "the leading rank says nothing"
    return ours.recv()


def _lead(settings: WorkerSettings, parent: Connection) -> None:
    uvloop.run(_host_worker(settings, parent))


async def _host_worker(settings: WorkerSettings, parent: Connection) -> None:
    host = WorkerHost(settings)
    parent.send(host.prepare())
    parent.send(await host.start())
    closed = asyncio.ensure_future(host.wait_closed())
    parent_gone = call_in_daemon(lambda: parent.poll(None), "parent")
    await asyncio.wait((closed, parent_gone), return_when=asyncio.FIRST_COMPLETED)
    if not closed.done():
        await host.stop(drain_s=30.0)
    await closed


def _follow(settings: RankSettings, leader: LeaderAddress) -> None:
    uvloop.run(_host_rank(settings, leader))


async def _host_rank(settings: RankSettings, leader: LeaderAddress) -> None:
    host = RankHost(settings)
    await host.start(leader)
    try:
        await host.wait_closed()
    finally:
        await host.stop()
