"""Replicas of several ranks without Ray, forked from one process that has imported everything.

Importing torch takes each process seconds; a fork of a server that did it already takes none. Each
rank is a process, with the host classes that Ray's actors run.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

from cluster.rank_host import RankHost
from cluster.worker_host import WorkerHost, WorkerPlace
from core.worker_settings import LeaderAddress, RankSettings, WorkerSettings

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "safetensors", "tokenizers", "forked_replicas"])


class ForkedReplica:
    """One replica; ``processes`` are its ranks, the leading one first."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.place: WorkerPlace | None = None
        self._pipes: list[Connection] = []
        self.processes: list[ForkServerProcess] = []
        self._fork(_run_leader, settings)
        for rank in range(1, settings.shape.num_ranks):
            self._fork(_run_rank, RankSettings(settings, rank))

    def _fork(self, program: Any, settings: WorkerSettings | RankSettings) -> None:
        ours, theirs = _context.Pipe()
        process = _context.Process(target=program, args=(settings, theirs), daemon=True)
        process.start()
        theirs.close()
        self._pipes.append(ours)
        self.processes.append(process)

    def introduce(self) -> None:
        """Tells the ranks where their leader waits. They load at the same time."""
        address = self._receive(self._pipes[0])
        for pipe in self._pipes[1:]:
            pipe.send(address)

    def wait_started(self) -> WorkerPlace:
        self.place = WorkerPlace(**self._receive(self._pipes[0]))
        return self.place

    def stop(self) -> None:
        """Every rank must end by itself, without an error."""
        self._pipes[0].send("stop")
        for process in self.processes:
            process.join(STOP_TIMEOUT_S)
        codes = [process.exitcode for process in self.processes]
        self.kill()
        assert codes == [0] * len(codes), f"{self.settings.worker} ended with {codes}"

    def signal(self, sign: signal.Signals) -> None:
        """To all of its ranks."""
        for process in self.processes:
            assert process.pid is not None
            os.kill(process.pid, sign)

    def kill(self) -> None:
        for process in self.processes:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGCONT)
                process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()

    def _receive(self, pipe: Connection) -> Any:
        assert pipe.poll(START_TIMEOUT_S), f"{self.settings.worker} did not start in time"
        return pipe.recv()


@contextlib.contextmanager
def forked_replicas(*settings: WorkerSettings) -> Iterator[list[ForkedReplica]]:
    """All of them, started; stopped at the end, or killed after a failure."""
    replicas = [ForkedReplica(one) for one in settings]
    try:
        for replica in replicas:
            replica.introduce()
        for replica in replicas:
            replica.wait_started()
        yield replicas
        for replica in replicas:
            replica.stop()
    finally:
        for replica in replicas:
            replica.kill()


def _run_leader(settings: WorkerSettings, pipe: Connection) -> None:
    asyncio.run(_lead(settings, pipe))


def _run_rank(settings: RankSettings, pipe: Connection) -> None:
    asyncio.run(_follow(settings, pipe))


async def _lead(settings: WorkerSettings, pipe: Connection) -> None:
    host = WorkerHost(settings)
    pipe.send(host.prepare())
    pipe.send(dataclasses.asdict(await host.start()))
    told = asyncio.create_task(asyncio.to_thread(pipe.recv))
    ended = asyncio.create_task(host.wait_closed())
    await asyncio.wait({told, ended}, return_when=asyncio.FIRST_COMPLETED)
    if ended.done() and ended.exception() is not None:
        os._exit(3)  # As when Ray kills a worker that crashed.
    await host.stop(drain_s=5.0)
    await ended


async def _follow(settings: RankSettings, pipe: Connection) -> None:
    host = RankHost(settings)
    address: LeaderAddress | None = await asyncio.to_thread(pipe.recv)
    assert address is not None
    await host.start(address)
    try:
        await host.wait_closed()
    except Exception:
        os._exit(4)
    await host.stop()
