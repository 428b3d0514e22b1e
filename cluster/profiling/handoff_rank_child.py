"""A rank that does not lead its end of a handoff that is measured.

    python -m cluster.profiling.handoff_rank_child

Reads an ``EdgeRankTask``; ends when its leader is done, or gone.
"""

from __future__ import annotations

import asyncio
import logging

from cluster.addresses import LOOPBACK
from cluster.process_binding import bind_process
from cluster.profiling.edge_ranks import edge_worker, make_pool, make_receiver, make_sender
from cluster.profiling.in_child import end_with_stdin, leave, run_task
from cluster.profiling.tasks import EdgeRankTask
from core.request import Role
from core.step import StepPlan
from core.worker_settings import LeaderAddress, RankSettings
from worker.daemon_call import call_in_daemon
from worker.ranks.connect import connect_to_leader


def serve(task: EdgeRankTask) -> None:
    end_with_stdin()
    # That a slower transport than allowed is taken is on purpose here.
    logging.getLogger("kv_transfer").setLevel(logging.ERROR)
    cores = task.edge.end(task.role).rank_cores[task.rank]
    bind_process(cores, max(1, len(cores)))
    asyncio.run(_serve(task))


async def _serve(task: EdgeRankTask) -> None:
    from worker.ranks.follower import Follower

    address = LeaderAddress(LOOPBACK, task.leader_port, bytes.fromhex(task.token))
    connection = await call_in_daemon(lambda: connect_to_leader(address), "rank-connect")
    settings = RankSettings(edge_worker(task.edge, task.role), task.rank)
    follower = Follower(settings, connection)
    await follower.join()
    pool = make_pool(task.edge, task.role, task.rank)
    sends = task.role is Role.PREFILL
    sender = make_sender(task.edge, task.rank, pool) if sends else None
    receiver = None if sends else make_receiver(task.edge, task.rank, pool)
    follower.serve(_compute, pool.generations, 0, sender, receiver)
    await asyncio.shield(follower.ended)
    await follower.stop()


def _compute(plan: StepPlan) -> None:
    raise AssertionError("no step is computed while a handoff is measured")


if __name__ == "__main__":
    leave(run_task(EdgeRankTask, serve))
