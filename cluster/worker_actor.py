"""The Ray actor around the leading rank of a worker: Ray starts, watches and ends it; requests
never pass here."""

from __future__ import annotations

import dataclasses

import ray

from cluster.shadowing import require_modules_from
from cluster.worker_host import WorkerHost
from core.worker_settings import LeaderAddress, WorkerSettings


@ray.remote
class WorkerActor:
    """The rank that leads. Created by `cluster.replica`, in a bundle of its replica's placement
    group."""

    def __init__(self, settings: WorkerSettings, expected_root: str) -> None:
        """``expected_root``: the folder our modules must come from; anything else shadows them."""
        require_modules_from(expected_root)
        self._host = WorkerHost(settings)

    async def prepare(self) -> LeaderAddress | None:
        """Where the other ranks of this replica are to come; None if it has none."""
        return self._host.prepare()

    async def start(self) -> dict[str, str | int]:
        """Loads the model and serves, once all ranks are there; returns the fields of
        `WorkerPlace`."""
        return dataclasses.asdict(await self._host.start())

    async def wait_closed(self) -> None:
        """Pending while the worker lives: its failure tells of death, its return of a stop."""
        await self._host.wait_closed()

    async def stop(self, drain_s: float) -> None:
        await self._host.stop(drain_s)
