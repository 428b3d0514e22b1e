"""Clusters of one CPU host: their threads, and that they are simulated as `--validate` does it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bounded_worlds import World
from search_worlds import SLO

from core.config import ClusterSpec
from core.errors import InvalidField
from core.kv_config import KVSpec
from core.latency_profile import (
    EngineProfile,
    LatencyProfile,
    Origin,
    RowCurve,
    StepModel,
    TransferModel,
    TransferProfile,
)
from core.shards import ONE_RANK
from tuner.load.metrics import Slo
from tuner.search.bounds import SLACK, Traffic, bound_rate
from tuner.search.evaluate import Goal
from tuner.search.outputs import cluster_specs
from tuner.search.space import Accelerators, Budget, Candidate, Limits, all_candidates
from tuner.search.specs import model_candidate
from tuner.simulate.from_spec import PoolProfiles, model_cluster
from tuner.simulate.requests import RequestTrace

LIMITS = Limits(32, 256)


def engine(
    threads: int, step: int, share: float = 1.0, company: int = 0, kv_tokens: int = 10_000
) -> EngineProfile:
    model = StepModel(RowCurve(((0, step * 10**12), (256, 2 * step * 10**12))), 0, 0, 0)
    return EngineProfile(ONE_RANK, threads, share, model, kv_tokens, company=company)


def host(cores: int, *engines: EngineProfile) -> LatencyProfile:
    return LatencyProfile(
        origin=Origin.MEASURED,
        hardware="a host",
        model="any",
        model_hash="",
        dtype="float32",
        created="2026-11-21",
        max_positions=4096,
        weight_bytes=1,
        kv_bytes_per_token=1,
        message_s=0.0,
        request_s=0.0,
        engines=engines,
        transfers=(TransferProfile("shm", ONE_RANK, ONE_RANK, TransferModel(1, 1)),),
        cores=cores,
    )


TWO_CORES = host(
    2, engine(1, 10), engine(1, 11, company=1), engine(1, 30, 0.5, company=2), engine(2, 6)
)


def candidates(profile: LatencyProfile, ranks: int, **options: object) -> list[Candidate]:
    both = Accelerators(profile, ranks)
    return all_candidates(Budget(both, both), 1000, LIMITS, **options)  # type: ignore[arg-type]


def threads_of(profile: LatencyProfile, ranks: int, **options: object) -> dict[str, int | None]:
    found = candidates(profile, ranks, **options)
    return {str(candidate).partition(",")[0]: candidate.decode[0].threads for candidate in found}


def test_one_worker_has_all_cores_and_several_have_a_share_each() -> None:
    assert threads_of(TWO_CORES, 2) == {"colocated 1": 2, "colocated 2": 1, "1P:1D": 1}


def test_more_workers_than_cores_share_one_if_that_was_profiled() -> None:
    assert set(threads_of(TWO_CORES, 3)) - set(threads_of(TWO_CORES, 2)) == {
        "colocated 3",
        "2P:1D",
        "1P:2D",
    }
    apart = host(2, engine(1, 10), engine(1, 11, company=1))
    assert set(threads_of(apart, 3)) == {"colocated 2", "1P:1D"}


def test_the_threads_that_a_config_asks_for() -> None:
    assert threads_of(TWO_CORES, 1, threads=1) == {"colocated 1": 1}
    assert threads_of(TWO_CORES, 2, threads=1) == {"colocated 2": 1, "1P:1D": 1}
    assert threads_of(TWO_CORES, 1, threads=3) == {}


def test_a_cluster_that_leaves_cores_unused_is_none_of_those_that_spend_all() -> None:
    four = host(4, engine(1, 10), engine(2, 6), engine(4, 4))
    assert threads_of(four, 4) == {
        "colocated 1": 4,
        "colocated 2": 2,
        "colocated 4": 1,
        "1P:1D": 2,
        "1P:3D": 1,
        "2P:2D": 1,
        "3P:1D": 1,
    }
    assert threads_of(four, 4, spend_all=False)["colocated 3"] == 1


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_the_search_simulates_what_validation_predicts(ranks: int) -> None:
    base = ClusterSpec()
    for candidate in candidates(TWO_CORES, ranks):
        [spec] = cluster_specs(candidate, base)
        predicted = model_cluster(spec, PoolProfiles(TWO_CORES, TWO_CORES), TWO_CORES.cores)
        assert model_candidate(candidate, base) == predicted
        assert candidate.accelerators == TWO_CORES.cores


def test_memory_is_shared_by_all_workers_of_the_host() -> None:
    less = replace(
        TWO_CORES,
        engines=(
            engine(2, 6, kv_tokens=1600),
            engine(1, 10, kv_tokens=1600),
            engine(1, 10, company=1, kv_tokens=800),
        ),
    )
    assert set(threads_of(less, 2)) == {"colocated 1"}


def test_a_config_that_gives_too_little_memory_for_the_longest_request() -> None:
    with pytest.raises(InvalidField, match=r"can hold 1000 tokens.*or give more kv\.memory"):
        candidates(TWO_CORES, 2, kv=KVSpec(memory=900))


def test_two_hosts_use_the_threads_that_both_were_profiled_with() -> None:
    other = host(8, engine(8, 3), engine(2, 6), engine(1, 10))
    budget = Budget(Accelerators(TWO_CORES, 1), Accelerators(other, 1))
    [pair] = [c for c in all_candidates(budget, 1000, LIMITS) if not c.is_colocated]
    assert [pool.threads for pool in pair.pools] == [2, 2]
    assert all(worker.share is None for worker in model_candidate(pair, ClusterSpec()).workers)


def test_a_bound_counts_the_threads() -> None:
    one = np.array([256], dtype=np.int32)
    traffic = Traffic.of(RequestTrace("one", np.zeros(1), one, one // 256))
    rates = {str(c): bound_rate(c, traffic, SLO).rate for c in candidates(TWO_CORES, 1)}
    assert rates == {"colocated 1, tp 1": pytest.approx(1 / 0.012)}


@pytest.mark.thorough
def test_workers_that_share_a_host_serve_no_more_than_their_bound() -> None:
    for candidate in candidates(TWO_CORES, 3):
        goal = Goal(Slo(0.3, 0.06), 100.0)
        world = World(candidate, goal, (900, 900), (2, 4), 0, 0, steady=True)
        rate = SLACK * world.bound(world.trace(100, 0)).rate
        trace = world.trace(world.count(rate), 0)
        assert world.share(trace, rate) < 1.0
