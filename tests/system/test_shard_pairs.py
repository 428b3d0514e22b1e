"""Every split hands over to every split: greedy float32 tokens are those of transformers.

Ten replicas of a tiny model, five splits on each side, live at the same time: 25 pairs.
"""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest
from forked_replicas import forked_replicas
from handoff_driver import attached
from tiny_model import make_tiny_model, random_prompt

from cluster.worker_host import WorkerPlace
from core.request import Role
from core.shards import ParallelShape
from core.worker_settings import WorkerSettings
from oracle import Oracle, assert_same_tokens

pytestmark = [pytest.mark.processes, pytest.mark.oracle, pytest.mark.timeout(600)]

SHAPES = [
    ParallelShape(1, 1),
    ParallelShape(3, 1),
    ParallelShape(1, 2),
    ParallelShape(3, 2),
    ParallelShape(1, 5),
]
TOKENS = 6
BLOCK_SIZE = 16


def settings(model: Path, role: Role, shape: ParallelShape) -> WorkerSettings:
    return WorkerSettings(
        worker=f"{role.value}-{shape}",
        role=role,
        model_folder=str(model),
        num_blocks=40,
        max_num_batched_tokens=64,
        shape=shape,
    )


def test_all_25_pairs_give_the_tokens_of_the_oracle(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path, heads=6, kv_heads=3, layers=5)
    oracle, prompt = Oracle(model), random_prompt(130)
    roles = [Role.PREFILL, Role.DECODE]
    wanted = [settings(model, role, shape) for role in roles for shape in SHAPES]
    with forked_replicas(*wanted) as replicas:
        places = [replica.place for replica in replicas if replica.place is not None]
        answers, edges = asyncio.run(all_pairs([p.worker for p in places], places, prompt))
    for pair, tokens in answers.items():
        expected = oracle.greedy(prompt, TOKENS, tokens)
        print(pair, "near ties:", assert_same_tokens(tokens, expected))
    assert len(answers) == len(SHAPES) ** 2
    assert set(edges) == {"shm"}


async def all_pairs(
    names: list[str], places: list[WorkerPlace], prompt: list[int]
) -> tuple[dict[tuple[str, str], list[int]], list[str]]:
    answers: dict[tuple[str, str], list[int]] = {}
    prefills, decodes = names[: len(SHAPES)], names[len(SHAPES) :]
    async with attached(places) as driver:
        for prefill, decode in itertools.product(prefills, decodes):
            answers[prefill, decode] = await driver.answer(prefill, decode, prompt, TOKENS)
        transports: list[str] = []
        for decode in decodes:
            stats = await driver.stats(decode)
            assert stats.prefill_tokens_computed == stats.recomputed_tokens == 0
            assert stats.leased_blocks == stats.quarantined_blocks == 0
            transports += [edge.transport for edge in stats.edges]
        for prefill in prefills:
            assert (await driver.stats(prefill)).leases == 0
    return answers, transports
