"""The policies on traffic like Mooncake's: long chats that come back, bursts, few long answers.

``tests/benchmarks/bench_policies.py`` does the same with the recorded trace.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from simulated_clusters import cluster, workers

from core.latency_profile import RowCurve, StepModel
from core.request import Role
from router.routing.policies.policy import PolicyName
from tuner.simulate.cluster_model import ClusterModel
from tuner.simulate.requests import RequestTrace
from tuner.simulate.result import SimulationResult
from tuner.simulate.simulator import simulate

US = 10**9
# As `tests/benchmarks/bench_simulator.py`: 6 ms to read the weights, 25 µs for a prompt's token.
STEP = StepModel(
    RowCurve(((0, 6_000 * US), (64, 6_200 * US), (16_448, 415_800 * US))),
    per_sampled=20 * US,
    per_prefill_pair=2 * 10**6,
    per_decode_context=10 * 10**6,
)
PART = 512


def chats(count: int, rate: float, seed: int) -> RequestTrace:
    """``count`` requests. Every second chat has several turns, half a minute apart; a prompt holds
    all that was said before. Over a third of the prompts' tokens have been seen before."""
    random = np.random.default_rng(seed)
    requests: list[tuple[float, int, int, np.ndarray]] = []
    begin, chat = 0.0, 0
    while len(requests) < count:
        begin += random.exponential(2.2 / rate)
        at, said = begin, int(random.lognormal(8.7, 0.9))
        for _ in range(int(random.geometric(0.45))):
            answer = int(random.integers(50, 600))
            requests.append((at, said, answer, chat * 1000 + np.arange(said // PART)))
            said += answer + int(random.lognormal(6.5, 1.0))
            at += random.exponential(30.0)
        chat += 1
    requests.sort(key=lambda request: request[0])
    arrivals, prompts, answers, parts = zip(*requests[:count], strict=True)
    return RequestTrace(
        "chats",
        np.array(arrivals),
        np.array(prompts, dtype=np.int32),
        np.array(answers, dtype=np.int32),
        [ids.astype(np.int32) for ids in parts],
        part_tokens=PART,
    )


def colocated(count: int) -> ClusterModel:
    group = workers(Role.MIXED, count, num_blocks=8192, max_num_seqs=256, budget=8192)
    group = replace(group, engine=replace(group.engine, step=STEP))
    return replace(cluster(group), block_size=64)


@cache
def on_chats(policy: PolicyName) -> SimulationResult:
    return simulate(chats(500, rate=2.1, seed=1), replace(colocated(8), policy=policy))


def reused(result: SimulationResult) -> float:
    return float(result.cached_tokens.sum() / result.prompt_tokens.sum())


@pytest.mark.thorough
def test_every_policy_answers_all() -> None:
    for policy in PolicyName:
        result = on_chats(policy)
        assert not result.failures
        assert np.isfinite(result.ttft_s).all()


@pytest.mark.thorough
def test_kv_aware_reuses_what_can_be_reused_and_users_wait_less() -> None:
    aware, turns = on_chats(PolicyName.KV_AWARE), on_chats(PolicyName.ROUND_ROBIN)
    assert reused(aware) > 0.9 * reused(on_chats(PolicyName.PREFIX_AFFINITY)) > 0.3
    assert reused(turns) < 0.5 * reused(aware)
    assert aware.ttft_s.mean() < 0.74 * turns.ttft_s.mean()
    assert np.percentile(aware.ttft_s, 99) < 0.89 * np.percentile(turns.ttft_s, 99)


def test_kv_aware_beats_who_looks_at_load_only() -> None:
    aware, loads = on_chats(PolicyName.KV_AWARE), on_chats(PolicyName.LEAST_LOADED)
    assert aware.ttft_s.mean() < 0.85 * loads.ttft_s.mean()
