"""A rank that another process leads while their replica is measured.

    python -m cluster.profiling.follower_child

Reads a ``FollowerTask``; ends when its leader is done, or gone.
"""

from __future__ import annotations

import asyncio

from cluster.profiling.in_child import end_with_stdin, leave, run_task
from cluster.profiling.tasks import FollowerTask
from cluster.rank_host import RankHost
from core.worker_settings import LeaderAddress, RankSettings


def follow(task: FollowerTask) -> None:
    end_with_stdin()
    asyncio.run(_follow(task))


async def _follow(task: FollowerTask) -> None:
    worker = task.worker
    settings = RankSettings(worker, task.rank, worker.host, worker.threads, task.cores)
    leader = LeaderAddress(worker.host, task.leader_port, bytes.fromhex(task.token))
    host = RankHost(settings)
    await host.start(leader)
    await host.wait_closed()
    await host.stop()


if __name__ == "__main__":
    leave(run_task(FollowerTask, follow))
