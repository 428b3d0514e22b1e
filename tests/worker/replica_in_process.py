"""The leading rank and its followers of one replica in this process, over real connections.

Engines and handoff ends are fakes: what they were asked, and what they answer, is in the open.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np

from core.errors import Incompatible
from core.lease_events import PieceCopy
from core.request import Role, SamplingParams
from core.shards import ParallelShape
from core.step import SampledToken, SampleSpec, Slice, StepPlan, StepResult
from core.worker_settings import RankSettings, WorkerSettings
from crossdock.v1 import handoff_pb2
from kv_transfer.rank_ports import EdgeChoice, RankCopied
from worker.ranks.connect import connect_to_leader
from worker.ranks.follower import Follower
from worker.ranks.group import RankGroup

NUM_BLOCKS = 16


def nothing() -> None:
    """For the time in which a step is computed."""


@dataclass
class FakeEngine:
    """Draws ``draws`` for each sequence, if anything; a semaphore lets each step pass."""

    draws: int | None = None
    blocked: bool = False
    plans: list[StepPlan] = field(default_factory=list)
    generations: np.ndarray[tuple[int], np.dtype[np.uint64]] = field(
        default_factory=lambda: np.zeros(NUM_BLOCKS, np.uint64)
    )
    seen_generations: list[list[int]] = field(default_factory=list)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    def execute(self, plan: StepPlan, meanwhile: Callable[[], None] = nothing) -> StepResult | None:
        meanwhile()
        self.plans.append(plan)
        self.seen_generations.append(self.generations.tolist())
        if self.blocked:
            asyncio.run_coroutine_threadsafe(self.release.wait(), self.loop).result()
        if self.draws is None:
            return None
        return StepResult({part.sequence_id: (SampledToken(self.draws),) for part in plan.slices})

    def __post_init__(self) -> None:
        self.loop = asyncio.get_running_loop()


@dataclass
class FakeSender:
    calls: list[tuple[object, ...]] = field(default_factory=list)
    offered: list[str] = field(default_factory=list)

    async def offer(self, stream: str) -> handoff_pb2.RankOffer:
        self.offered.append(stream)
        return handoff_pb2.RankOffer(transports=[f"for {stream}"])

    async def describe(
        self, stream: str, destination: ParallelShape, block_ids: Sequence[int]
    ) -> list[list[int]]:
        self.calls.append(("describe", stream, destination, tuple(block_ids)))
        return [[block_id * 10, 2**64 - 1 - block_id] for block_id in block_ids]

    def withdraw(self, stream: str) -> None:
        self.calls.append(("withdraw", stream))
        if stream in self.offered:
            self.offered.remove(stream)


@dataclass
class FakeReceiver:
    calls: list[tuple[object, ...]] = field(default_factory=list)
    refuse: str = ""

    async def open(self, stream: str, hello: handoff_pb2.Hello) -> tuple[EdgeChoice, ...]:
        if self.refuse:
            raise Incompatible(self.refuse, reason="NO_COMMON_TRANSPORT")
        self.calls.append(("open", stream, hello.worker))
        return (EdgeChoice(2, 1, "shm", "why"),)

    async def copy(self, stream: str, copies: Sequence[PieceCopy]) -> RankCopied:
        self.calls.append(("copy", stream, tuple(copies)))
        return RankCopied(tuple(copy.index for copy in copies), ())

    def abort(self, stream: str) -> None:
        self.calls.append(("abort", stream))

    async def close(self, stream: str) -> None:
        self.calls.append(("close", stream))


@dataclass
class Member:
    """One rank other than the leading one."""

    follower: Follower
    engine: FakeEngine
    sender: FakeSender
    receiver: FakeReceiver


@dataclass
class InProcessReplica:
    settings: WorkerSettings
    group: RankGroup
    members: dict[int, Member] = field(default_factory=dict)

    async def join(self, rank: int, engine: FakeEngine) -> Member:
        settings = RankSettings(self.settings, rank)
        connection = await asyncio.to_thread(connect_to_leader, self.group.address)
        member = Member(Follower(settings, connection), engine, FakeSender(), FakeReceiver())
        await member.follower.join()
        self.members[rank] = member
        member.follower.serve(engine.execute, engine.generations, 7, member.sender, member.receiver)
        return member


def settings_of(tensor: int, pipeline: int) -> WorkerSettings:
    shape = ParallelShape(tensor, pipeline)
    return WorkerSettings("w-0", Role.MIXED, "model", NUM_BLOCKS, block_size=4, shape=shape)


@asynccontextmanager
async def replica_of(tensor: int, pipeline: int) -> AsyncIterator[InProcessReplica]:
    """A leading rank that waits; everything has ended afterwards."""
    settings = settings_of(tensor, pipeline)
    replica = InProcessReplica(settings, RankGroup(settings))
    try:
        yield replica
    finally:
        replica.group.close()
        for member in replica.members.values():
            member.engine.release.set()
            await member.follower.stop()


def step(sequence_id: int = 1, start: int = 0, count: int = 3, block_id: int = 5) -> StepPlan:
    """Of one sequence whose first block is ``block_id``."""
    tokens = np.arange(start, start + count, dtype=np.int32)
    spec = SampleSpec(SamplingParams(max_tokens=4), start + count)
    table = np.arange(block_id, block_id + 3, dtype=np.int32)
    return StepPlan((Slice(sequence_id, start, tokens, table, (spec,)),))
