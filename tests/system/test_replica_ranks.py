"""Replicas of several ranks, each a process: they answer as one rank does, and end as one."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from direct_router import attached
from replica_processes import RunningReplica, start_replica
from tiny_model import make_tiny_model

from core.request import Role, SamplingParams
from core.shards import ParallelShape
from core.worker_settings import WorkerSettings
from crossdock.v1 import worker_pb2 as pb

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

PROMPTS = [[1, 2, 3], list(range(40)), [7] * 100, [200, 5, 9, 13]]
GREEDY = SamplingParams(max_tokens=24, ignore_eos=True)
PENALIZED = replace(GREEDY, repetition_penalty=1.3, temperature=0.8, seed=7, logprobs=2)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> WorkerSettings:
    """Of a model that can be split into 1, 2, 3 or 6 tensor ranks and 1 to 4 stages."""
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"), heads=6, kv_heads=6, layers=4)
    return WorkerSettings("mixed-0", Role.MIXED, str(folder), num_blocks=64)


async def answers_of(replica: RunningReplica) -> list[list[list[int]]]:
    async with attached(replica.place.endpoint) as router:
        return [await router.generate(PROMPTS, params) for params in (GREEDY, PENALIZED)]


@pytest.fixture(scope="module")
def expected(settings: WorkerSettings) -> list[list[list[int]]]:
    with start_replica(settings) as alone:
        return asyncio.run(answers_of(alone))


@pytest.mark.parametrize("shape", [(3, 1), (1, 2), (2, 2)], ids=str)
async def test_many_ranks_answer_as_one(
    settings: WorkerSettings, expected: list[list[list[int]]], shape: tuple[int, int]
) -> None:
    with start_replica(replace(settings, shape=ParallelShape(*shape))) as replica:
        assert await answers_of(replica) == expected
        async with attached(replica.place.endpoint) as router:
            stats = await router.stats()
    assert [rank.rank for rank in stats.ranks] == list(range(shape[0] * shape[1]))
    assert [rank.pid for rank in stats.ranks] == [process.pid for process in replica.processes]
    # A rank that does not draw may still be on its way out of the last step.
    assert {rank.intervals[-1].step for rank in stats.ranks} <= {stats.steps - 1, stats.steps}
    assert replica.await_end(0) == [0] * len(replica.processes)


async def test_kernels_that_are_turned_off_are_so_on_every_rank(
    settings: WorkerSettings, expected: list[list[list[int]]]
) -> None:
    off = replace(settings, kernels="torch", shape=ParallelShape(2, 1))
    with start_replica(off) as replica:
        async with attached(replica.place.endpoint) as router:
            assert await router.generate(PROMPTS, GREEDY) == expected[0]
            stats = await router.stats()
    assert [rank.kernels for rank in stats.ranks] == ["torch (chosen)"] * 2


@pytest.mark.parametrize(("prefill", "decode"), [((3, 1), (1, 2)), ((1, 2), (2, 1))], ids=str)
async def test_a_handoff_between_many_ranks_changes_no_token(
    settings: WorkerSettings,
    expected: list[list[list[int]]],
    prefill: tuple[int, int],
    decode: tuple[int, int],
) -> None:
    computing = replace(settings, worker="p", role=Role.PREFILL, shape=ParallelShape(*prefill))
    answering = replace(settings, worker="d", role=Role.DECODE, shape=ParallelShape(*decode))
    with start_replica(computing) as p, start_replica(answering) as d:
        async with attached(p.place.endpoint) as from_p, attached(d.place.endpoint) as from_d:
            tokens = await from_d.generate_from(from_p, d.place, PROMPTS, GREEDY)
            edges = (await from_d.stats()).edges
    assert tokens == expected[0]
    assert {edge.transport for edge in edges} == {"shm"}
    assert {edge.source_rank for edge in edges} == set(range(len(p.processes)))
    assert {edge.destination_rank for edge in edges} == set(range(len(d.processes)))
    assert all(edge.blocks and not edge.resent_blocks for edge in edges)


async def test_a_stage_starts_the_next_step_before_the_other_ended_this_one(
    settings: WorkerSettings,
) -> None:
    """While prompts are computed, and with two answers that were drawn in one step."""
    with start_replica(replace(settings, shape=ParallelShape(1, 2))) as replica:
        async with attached(replica.place.endpoint) as router:
            await router.generate(PROMPTS, GREEDY)
            prompts = overlapping_steps(await router.stats())
            await router.generate(PROMPTS[:1], replace(GREEDY, n=2, max_tokens=60))
            answers = overlapping_steps(await router.stats())
    assert prompts
    # Each of the two answers is in every other step; 64 steps are remembered.
    assert len(answers) > 20


def overlapping_steps(stats: pb.WorkerStats) -> list[int]:
    """Those that the second stage had not ended when the first one began the next."""
    first, second = ({i.step: i for i in rank.intervals} for rank in stats.ranks)
    return [
        step
        for step in sorted(first.keys() & second.keys())
        if step + 1 in first and first[step + 1].start_s < second[step].end_s
    ]


@pytest.mark.parametrize("rank", [0, 1, 2])
async def test_the_end_of_any_rank_while_it_computes_ends_all(
    settings: WorkerSettings, rank: int
) -> None:
    with start_replica(replace(settings, shape=ParallelShape(1, 3))) as replica:
        async with answering(replica):
            os.kill(replica.processes[rank].pid or 0, signal.SIGKILL)
        codes = replica.await_end(5)
    assert codes == [-signal.SIGKILL if i == rank else 1 for i in range(3)]


async def test_a_rank_that_hangs_ends_the_others_that_wait_for_it(settings: WorkerSettings) -> None:
    with start_replica(replace(settings, shape=ParallelShape(3, 1))) as replica:
        async with answering(replica):
            os.kill(replica.processes[2].pid or 0, signal.SIGSTOP)
        replica.processes[0].join(5)
        replica.processes[1].join(5)
        codes = [process.exitcode for process in replica.processes]
        replica.processes[2].kill()
    assert codes == [1, 1, None]


async def test_a_rank_with_another_model_is_refused(
    settings: WorkerSettings, tmp_path: Path
) -> None:
    other = make_tiny_model(tmp_path, heads=6, kv_heads=6, layers=4, seed=1)
    shaped = replace(settings, shape=ParallelShape(1, 2))
    with (
        pytest.raises(EOFError),
        start_replica(shaped, {1: replace(shaped, model_folder=str(other))}),
    ):
        pass


@asynccontextmanager
async def answering(replica: RunningReplica) -> AsyncIterator[None]:
    """A replica in the middle of long answers; waits until it has broken them off."""
    async with attached(replica.place.endpoint) as router:
        answers = asyncio.create_task(router.generate(PROMPTS, replace(GREEDY, max_tokens=150)))
        while not (await router.stats()).steps:
            assert not answers.done()
        yield
        with pytest.raises(grpc.aio.AioRpcError):
            await answers
