"""Ranks of a replica killed or stopped at any phase: nobody hangs, and the other side frees all.

When one rank is lost, the whole replica ends. When all are stopped past the lease and go on,
nothing late lands, and the next handoff gives the same tokens as the first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import grpc
import psutil
import pytest
from forked_replicas import ForkedReplica, forked_replicas
from handoff_driver import HandoffDriver, HandoffFailed, attached

from core.handoff import LeaseTimes
from core.request import Role
from core.shards import ParallelShape
from core.worker_settings import WorkerSettings
from crossdock.v1 import worker_pb2 as pb
from router.flow.retries import RetryLimits

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

PROMPT = [(7 * i) % 250 for i in range(1500)]
TOKENS = 400
SHORTER = PROMPT[:500]
# Half a second where nothing else runs (printed); this only tells a hang from a slow machine.
PEERS_LEAVE_S = 20.0
STOPPED_LEAVE_S = 40.0

Phase = Callable[[HandoffDriver], Awaitable[None]]


def settings(model: Path, role: Role, shape: ParallelShape, name: str = "") -> WorkerSettings:
    return WorkerSettings(
        worker=name or role.value,
        role=role,
        model_folder=str(model),
        num_blocks=256,
        max_num_batched_tokens=64,
        shape=shape,
        lease_s=8.0,
        beat_s=1.0,
    )


async def until(
    driver: HandoffDriver, worker: str, holds: Callable[[pb.WorkerStats], bool]
) -> None:
    """Asks again and again; the test's timeout bounds it."""
    while not holds(await driver.stats(worker)):
        pass


async def idle(driver: HandoffDriver) -> None:
    del driver


async def prefilling(driver: HandoffDriver) -> None:
    await until(driver, "prefill", lambda stats: 0 < stats.prefill_tokens_computed < len(PROMPT))


async def pushing(driver: HandoffDriver) -> None:
    await until(driver, "decode", lambda stats: any(edge.blocks for edge in stats.edges))


async def decoding(driver: HandoffDriver) -> None:
    await until(driver, "decode", lambda stats: stats.decode_tokens > 3)


def wait_stopped(pid: int) -> None:
    """Whoever looks before that takes it for one that should end."""
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)


def wait_ended(replica: ForkedReplica, limit_s: float) -> float:
    """Seconds until no rank of the replica lives any more."""
    started = time.monotonic()
    alive = [psutil.Process(p.pid) for p in replica.processes if p.pid is not None and p.is_alive()]
    _, left = psutil.wait_procs([p for p in alive if p.status() != "stopped"], timeout=limit_s)
    assert not left, f"{replica.settings.worker}: {left} are left after {limit_s} s"
    return time.monotonic() - started


@pytest.mark.parametrize("phase", [idle, prefilling, pushing, decoding], ids=lambda p: p.__name__)
@pytest.mark.parametrize("side", ["prefill", "decode"])
@pytest.mark.parametrize("rank", [0, 1], ids=["leader", "follower"])
def test_a_killed_rank_ends_its_replica_and_frees_the_other_side(
    tiny_model: Path, side: str, rank: int, phase: Phase
) -> None:
    with forked_replicas(
        settings(tiny_model, Role.PREFILL, ParallelShape(2, 1)),
        settings(tiny_model, Role.DECODE, ParallelShape(1, 2)),
    ) as replicas:
        victim = replicas[0 if side == "prefill" else 1]
        survivor = replicas[1 if side == "prefill" else 0]
        asyncio.run(kill_at(phase, victim, survivor, rank, signal.SIGKILL, PEERS_LEAVE_S))
        replicas.remove(victim)
        victim.kill()


@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_a_stopped_rank_ends_its_replica(tiny_model: Path, side: str) -> None:
    """No connection breaks: only its silence tells."""
    with forked_replicas(
        settings(tiny_model, Role.PREFILL, ParallelShape(2, 1)),
        settings(tiny_model, Role.DECODE, ParallelShape(1, 2)),
    ) as replicas:
        victim = replicas[0 if side == "prefill" else 1]
        survivor = replicas[1 if side == "prefill" else 0]
        asyncio.run(kill_at(prefilling, victim, survivor, 1, signal.SIGSTOP, STOPPED_LEAVE_S))
        replicas.remove(victim)
        victim.kill()


@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_a_replica_that_is_stopped_past_the_lease_does_no_harm_when_it_goes_on(
    tiny_model: Path, side: str
) -> None:
    prefill = settings(tiny_model, Role.PREFILL, ParallelShape(2, 1))
    with forked_replicas(
        # Many short steps: there is time to stop it in between.
        replace(prefill, max_num_batched_tokens=4),
        settings(tiny_model, Role.DECODE, ParallelShape(1, 2)),
    ) as replicas:
        victim = replicas[0 if side == "prefill" else 1]
        if not asyncio.run(goes_on_after_a_stop(replicas, victim)):
            wait_ended(victim, STOPPED_LEAVE_S)
            replicas.remove(victim)
            victim.kill()


async def goes_on_after_a_stop(replicas: list[ForkedReplica], victim: ForkedReplica) -> bool:
    """Whether the victim could be used after it was stopped for longer than a lease."""
    (survivor,) = [replica for replica in replicas if replica is not victim]
    names = [replica.settings.worker for replica in (victim, survivor)]
    times = LeaseTimes(survivor.settings.lease_s, survivor.settings.beat_s)
    async with attached([replica.place for replica in replicas if replica.place]) as driver:
        expected = await driver.answer("prefill", "decode", SHORTER, count=8)
        before = await copied(driver)
        answer = asyncio.create_task(driver.answer("prefill", "decode", SHORTER, TOKENS))
        await until(driver, "decode", lambda stats: blocks_over(stats) > before)
        victim.signal(signal.SIGSTOP)
        over = time.monotonic() + times.decode_deadline
        held = await driver.stats(names[1])
        assert held.free_blocks + held.cached_blocks < held.total_blocks
        with pytest.raises(HandoffFailed):
            await answer
        await until(driver, names[1], lambda stats: is_free(stats) and time.monotonic() > over)
        landed = await copied(driver) if names[1] == "decode" else None
        victim.signal(signal.SIGCONT)
        try:
            await until(driver, names[0], is_free)
            assert landed in (None, await copied(driver)), "it came too late"
            assert await answer_in_the_end(driver) == expected
            await until(driver, names[0], is_free)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):  # Its connections have ended.
            return False
        finally:
            await until(driver, names[1], is_free)
    return True


async def answer_in_the_end(driver: HandoffDriver) -> list[int]:
    """As a router asks: who has just woken may not know yet which of its streams are lost."""
    for _ in range(RetryLimits().max_attempts - 1):
        with contextlib.suppress(HandoffFailed):
            return await driver.answer("prefill", "decode", SHORTER, count=8)
    return await driver.answer("prefill", "decode", SHORTER, count=8)


async def copied(driver: HandoffDriver) -> int:
    return blocks_over(await driver.stats("decode"))


def blocks_over(stats: pb.WorkerStats) -> int:
    """Parts of blocks that came over D's edges so far."""
    return sum(edge.blocks for edge in stats.edges)


async def kill_at(
    phase: Phase,
    victim: ForkedReplica,
    survivor: ForkedReplica,
    rank: int,
    sign: signal.Signals,
    limit_s: float,
) -> None:
    places = [replica.place for replica in (victim, survivor) if replica.place is not None]
    async with attached(places) as driver:
        answer = asyncio.create_task(driver.answer("prefill", "decode", PROMPT, TOKENS))
        if phase is not idle:
            await phase(driver)
        pid = victim.processes[rank].pid
        assert pid is not None
        os.kill(pid, sign)
        if sign is signal.SIGSTOP:
            await asyncio.to_thread(wait_stopped, pid)
        left_s = await asyncio.to_thread(wait_ended, victim, limit_s)
        print(f"all ranks of {victim.settings.worker} had ended after {left_s:.2f} s")
        name = survivor.settings.worker
        if name == "decode" and phase is decoding:
            assert len(await answer) == TOKENS  # P is not needed any more.
        else:
            answer.cancel()
            with contextlib.suppress(HandoffFailed, asyncio.CancelledError):
                await answer
        await driver.abort_all(name)
        await until(driver, name, is_free)


def is_free(stats: pb.WorkerStats) -> bool:
    return (
        stats.leases == stats.leased_blocks == stats.quarantined_blocks == 0
        and stats.free_blocks + stats.cached_blocks == stats.total_blocks
    )
