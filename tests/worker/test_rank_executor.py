"""Steps on all ranks: who gets what, and where the result comes from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
from replica_in_process import (
    NUM_BLOCKS,
    FakeEngine,
    InProcessReplica,
    nothing,
    replica_of,
    step,
)

from core.errors import InternalError, Unavailable
from core.step import BlockCopy, StepPlan, StepResult
from crossdock.v1 import worker_pb2
from worker.ranks.executor import _STEP_LIMIT_S, RankExecutor, written_blocks
from worker.ranks.replica import Replica


def lead(
    replica: InProcessReplica,
    engine: FakeEngine,
    execute: Callable[[StepPlan, Callable[[], None]], StepResult | None] | None = None,
) -> RankExecutor:
    """``execute``: what the leading rank does in the place of ``engine``."""
    return RankExecutor(
        replica.group,
        replica.settings.shape,
        execute or engine.execute,
        engine.generations,
        replica.settings.block_size,
    )


async def result_of(executor: RankExecutor, plan: StepPlan) -> StepResult:
    return await asyncio.wrap_future(executor.submit(plan, nothing))


async def test_in_one_stage_the_leading_rank_draws() -> None:
    async with replica_of(2, 1) as replica:
        member = await replica.join(1, FakeEngine())
        executor = lead(replica, FakeEngine(draws=9))
        result = await result_of(executor, step())
        assert (executor.depth, result.sampled[1][0].token) == (1, 9)
        assert replica.group.completed_steps == 1
        await member.follower.finished.wait_for(1)
        assert member.engine.plans[0].slices[0].tokens.tolist() == [0, 1, 2]


async def test_with_several_stages_the_first_rank_of_the_last_one_draws() -> None:
    async with replica_of(2, 2) as replica:
        for rank, draws in ((1, None), (2, 8), (3, None)):
            await replica.join(rank, FakeEngine(draws))
        executor = lead(replica, FakeEngine())
        assert executor.depth == 2
        submitted = [executor.submit(step(i), nothing) for i in (1, 2, 3)]
        results = [await asyncio.wrap_future(future) for future in submitted]
        assert [list(result.sampled) for result in results] == [[1], [2], [3]]
        assert replica.group.completed_steps == 3


async def test_generations_are_written_before_the_step_is_computed() -> None:
    async with replica_of(2, 1) as replica:
        member = await replica.join(1, FakeEngine())
        engine = FakeEngine(draws=1)
        executor = lead(replica, engine)
        engine.generations[:] = np.arange(NUM_BLOCKS)
        await result_of(executor, step(start=3, count=2, block_id=5))
        await member.follower.finished.wait_for(1)
        assert [i for i, seen in enumerate(member.engine.seen_generations[0]) if seen] == [5, 6]
        assert member.engine.generations[5:7].tolist() == [5, 6]


def test_a_step_writes_to_the_blocks_of_its_slices_and_copies() -> None:
    plan = step(start=4, count=4, block_id=10)
    assert written_blocks(plan, 4).tolist() == [11]
    assert written_blocks(step(start=3, count=2, block_id=10), 4).tolist() == [10, 11]
    copying = StepPlan(plan.slices, (BlockCopy(1, 2),))
    assert written_blocks(copying, 4).tolist() == [11, 2]


async def test_a_rank_that_is_lost_fails_the_results_that_it_owes() -> None:
    async with replica_of(1, 2) as replica:
        member = await replica.join(1, FakeEngine(draws=1, blocked=True))
        executor = lead(replica, FakeEngine())
        owed = executor.submit(step(), nothing)
        member.follower.crash(RuntimeError("out of memory"))
        with pytest.raises(Unavailable, match="it crashed: RuntimeError: out of memory"):
            await asyncio.wrap_future(owed)
        with pytest.raises(ConnectionError):
            executor.submit(step(), nothing)


async def test_a_rank_that_owes_a_result_for_too_long_is_lost() -> None:
    """Its engine hangs; it still answers pings."""
    async with replica_of(1, 2) as replica:
        checks: list[Callable[[float], None]] = []
        replica.group.check_often = checks.append  # type: ignore[method-assign]
        await replica.join(1, FakeEngine(draws=1, blocked=True))
        owed = lead(replica, FakeEngine()).submit(step(), nothing)
        for now in (1000.0, 1000.0 + _STEP_LIMIT_S - 1):
            checks[0](now)
        assert not replica.group.lost.done()
        checks[0](1000.0 + _STEP_LIMIT_S)
        with pytest.raises(Unavailable, match="rank 1 is lost: no result of step 1 came for 120 s"):
            await asyncio.wrap_future(owed)


async def test_the_leading_rank_that_draws_itself_waits_for_nobody() -> None:
    async with replica_of(2, 1) as replica:
        checks: list[Callable[[float], None]] = []
        replica.group.check_often = checks.append  # type: ignore[method-assign]
        lead(replica, FakeEngine(draws=1))
        assert not checks


async def test_a_collective_that_broke_is_explained_by_the_rank_that_is_lost() -> None:
    async with replica_of(2, 1) as replica:
        await replica.join(1, FakeEngine())

        def broken(plan: StepPlan, meanwhile: Callable[[], None]) -> StepResult:
            replica.group.fail(Unavailable("rank 1 is lost: it crashed", reason="RANK_LOST"))
            raise InternalError("a peer is gone", reason="PEERS_LOST")

        with pytest.raises(Unavailable, match="rank 1 is lost: it crashed"):
            lead(replica, FakeEngine(), broken).submit(step(), nothing)


async def test_statistics_tell_of_every_rank_that_answers() -> None:
    async with replica_of(3, 1) as replica:
        members = [await replica.join(rank, FakeEngine()) for rank in (1, 2)]
        executor = lead(replica, FakeEngine(draws=1))
        whole = Replica(executor, worker_pb2.RankStats, replica.group)
        await result_of(executor, step())
        for member in members:
            await member.follower.finished.wait_for(1)
        assert [stats.rank for stats in await whole.stats()] == [0, 1, 2]
        interval = (await whole.stats())[1].intervals[0]
        assert interval.step == 1
        assert interval.start_s <= interval.end_s
        replica.group.fail(Unavailable("gone", reason="RANK_LOST"))
        assert [stats.rank for stats in await whole.stats()] == [0]
