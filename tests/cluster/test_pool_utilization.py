"""How full the pools are, from what workers told at different times."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.pool_utilization import WINDOW_S, PoolUtilization, imbalance
from crossdock.v1 import worker_pb2 as pb

TPOT_S = 0.05


def stats(worker: str, role: str, epoch: int = 1, **values: Any) -> pb.WorkerStats:
    """Half of eight sequences run; a quarter of the blocks is in use."""
    load = pb.Load(running=values.pop("running", 4))
    fields = {"total_blocks": 100, "free_blocks": 60, "cached_blocks": 15, "max_num_seqs": 8}
    return pb.WorkerStats(worker=worker, role=role, epoch=epoch, load=load, **(fields | values))


@pytest.fixture
def pools() -> PoolUtilization:
    return PoolUtilization(TPOT_S)


def test_prefill_workers_are_as_full_as_their_engines_are_busy(pools: PoolUtilization) -> None:
    pools.told(stats("p0", "prefill", busy_s=1.0), 10.0)
    pools.told(stats("p0", "prefill", busy_s=5.0), 20.0)
    pools.told(stats("p1", "prefill", busy_s=0.0), 10.0)
    pools.told(stats("p1", "prefill", busy_s=20.0), 20.0)
    assert pools.of("prefill", ["p0", "p1"]) == pytest.approx((0.4 + 1.0) / 2)
    assert pools.of("decode", ["p0", "p1"]) is None


@pytest.mark.parametrize(
    ("values", "full"),
    [
        ({}, 0.5),
        ({"running": 8}, 1.0),
        ({"free_blocks": 5}, 0.8),
        ({"busy_s": 9.0, "steps": 200}, 0.9),
        ({"busy_s": 9.0, "steps": 100}, 1.0),
    ],
    ids=["sequences", "all of them", "blocks", "steps near the target", "steps beyond it"],
)
def test_decode_workers_are_as_full_as_what_is_fullest(
    pools: PoolUtilization, values: dict[str, Any], full: float
) -> None:
    pools.told(stats("d0", "decode", **(values | {"busy_s": 0.0, "steps": 0})), 10.0)
    pools.told(stats("d0", "decode", **values), 20.0)
    assert pools.of("decode", ["d0"]) == pytest.approx(full)


def test_one_reading_says_nothing_nor_do_two_at_a_time(pools: PoolUtilization) -> None:
    pools.told(stats("p0", "prefill"), 10.0)
    pools.told(stats("p0", "prefill", busy_s=0.1), 10.1)
    assert pools.of("prefill", ["p0"]) is None


def test_only_the_last_half_minute_counts(pools: PoolUtilization) -> None:
    pools.told(stats("p0", "prefill", busy_s=0.0), 0.0)
    for second in range(1, 100):
        pools.told(stats("p0", "prefill", busy_s=60.0 if second > 60 else float(second)), second)
    assert pools.of("prefill", ["p0"]) == pytest.approx(0.0)
    assert WINDOW_S < 39


def test_a_restarted_worker_begins_anew_and_one_that_is_gone_is_forgotten(
    pools: PoolUtilization,
) -> None:
    pools.told(stats("p0", "prefill", busy_s=50.0), 10.0)
    pools.told(stats("p0", "prefill", epoch=2, busy_s=0.0), 20.0)
    assert pools.of("prefill", ["p0"]) is None
    pools.told(stats("p0", "prefill", epoch=2, busy_s=1.0), 30.0)
    assert pools.of("prefill", ["p0"]) == pytest.approx(0.1)
    assert pools.of("prefill", []) is None
    assert pools.of("prefill", ["p0"]) is None


def test_mixed_workers_are_the_decode_pool(pools: PoolUtilization) -> None:
    pools.told(stats("m0", "mixed"), 10.0)
    pools.told(stats("m0", "mixed"), 20.0)
    assert pools.of("decode", ["m0"]) == 0.5


def test_the_imbalance_has_a_sign_and_needs_both_pools() -> None:
    assert imbalance(0.9, 0.2) == pytest.approx(0.7)
    assert imbalance(0.1, 0.2) == pytest.approx(-0.1)
    assert imbalance(None, 0.2) is None
