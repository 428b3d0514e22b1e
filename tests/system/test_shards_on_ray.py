"""Replicas of several ranks on Ray: the tokens of the oracle, and one life for all ranks."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from served_cluster import ServedCluster, served
from tiny_model import make_tiny_model, random_prompt

from oracle import Oracle, assert_same_tokens

pytestmark = [pytest.mark.processes, pytest.mark.oracle, pytest.mark.timeout(600)]

TOKENS = 8
# (tp, pp) of P and D: one rank, only tensor ranks, only stages, both. Without Ray, all pairs of
# splits are in `test_shard_pairs`.
PAIRS = [((3, 1), (1, 2)), ((1, 1), (3, 2))]


def options(prefill: tuple[int, int], decode: tuple[int, int]) -> list[str]:
    shapes = {"--prefill-tp": prefill[0], "--prefill-pp": prefill[1]}
    shapes |= {"--decode-tp": decode[0], "--decode-pp": decode[1]}
    return ["--dtype", "float32", *(part for name, n in shapes.items() for part in (name, str(n)))]


@pytest.mark.parametrize(("prefill", "decode"), PAIRS, ids=str)
def test_tokens_of_the_oracle_at_any_split(
    tmp_path: Path, prefill: tuple[int, int], decode: tuple[int, int]
) -> None:
    model = make_tiny_model(tmp_path, heads=6, kv_heads=3, layers=4)
    oracle, asked = Oracle(model), [random_prompt(length) for length in (5, 300, 200)]
    with served(model, 1, 1, *options(prefill, decode)) as cluster:
        for prompt, tokens in zip(asked, cluster.answers(asked, TOKENS), strict=True):
            assert_same_tokens(tokens, oracle.greedy(prompt, TOKENS, tokens))
        (stats,) = cluster.stats("decode")
        assert stats.prefill_tokens_computed == stats.recomputed_tokens == 0
        assert len(stats.ranks) == decode[0] * decode[1]
        assert {edge.transport for edge in stats.edges} == {"shm"}
        cluster.assert_nothing_is_held()


def test_a_dead_rank_takes_its_replica_with_it_and_all_come_back(tiny_model: Path) -> None:
    prompt = list(range(100))
    with served(tiny_model, 1, 1, *options((2, 1), (1, 2))) as cluster:
        expected = cluster.answer(prompt, 20)
        for restarts, role in enumerate(["prefill", "decode"], start=1):
            before = rank_pids(cluster, role)
            os.kill(before[-1], signal.SIGKILL)
            cluster.wait_replaced(restarts)
            assert not set(before) & set(rank_pids(cluster, role))
            assert cluster.answer(prompt, 20) == expected
        cluster.assert_nothing_is_held()


def rank_pids(cluster: ServedCluster, role: str) -> list[int]:
    (stats,) = cluster.stats(role)
    pids = [rank.pid for rank in stats.ranks]
    assert len(set(pids)) == 2
    return pids
