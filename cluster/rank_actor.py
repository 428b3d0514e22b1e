"""The Ray actor around a rank that does not lead its replica. Steps never pass here."""

from __future__ import annotations

import ray

from cluster.rank_host import RankHost
from cluster.shadowing import require_modules_from
from core.worker_settings import LeaderAddress, RankSettings


@ray.remote
class RankActor:
    """One rank. Created by `cluster.replica`, in its bundle of its replica's placement group."""

    def __init__(self, settings: RankSettings, expected_root: str) -> None:
        """``expected_root``: the folder our modules must come from; anything else shadows them."""
        require_modules_from(expected_root)
        self._host = RankHost(settings)

    async def start(self, leader: LeaderAddress) -> int:
        """Joins the leader and loads this rank's part of the model; returns the process id."""
        return await self._host.start(leader)

    async def wait_closed(self) -> None:
        """Pending while the rank lives: its failure tells of death, its return of a stop."""
        await self._host.wait_closed()

    async def stop(self) -> None:
        await self._host.stop()
