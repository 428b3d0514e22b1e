"""A Ray cluster that can never hold the pools is named as such, in plain words."""

from __future__ import annotations

import pytest

from cluster.placement_fit import (
    ReplicaNeed,
    check_fit,
    check_free,
    choose_node,
    fits_on_one_node,
    split_into_bundles,
)
from core.errors import Unavailable
from core.shards import ParallelShape

TWO_CORES = [{"CPU": 2.0, "memory": 1e9}]


def need(tensor: int = 1, pipeline: int = 1, **rank: float) -> ReplicaNeed:
    return ReplicaNeed(rank, ParallelShape(tensor, pipeline))


def test_four_half_cpus_fit_on_two_cores() -> None:
    check_fit(TWO_CORES, {"prefill": [need(CPU=0.5)] * 2, "decode": [need(CPU=0.5)] * 2})
    check_fit(TWO_CORES, {"prefill": [need(2, 1, CPU=0.5)], "decode": [need(1, 2, CPU=0.5)]})


def test_thirds_that_add_up_to_a_whole_fit() -> None:
    check_fit([{"CPU": 1.0}], {"decode": [need(CPU=1 / 3)] * 3})
    check_fit([{"CPU": 1.0}], {"decode": [need(3, 1, CPU=1 / 3)]})


def test_a_replica_larger_than_every_node_is_refused_with_the_nodes() -> None:
    with pytest.raises(Unavailable) as caught:
        check_fit([{"CPU": 2.0}, {"CPU": 4.0}], {"decode": [need(CPU=8.0)]})
    assert caught.value.message == (
        "a decode replica needs CPU 8, and no node of this Ray cluster has that much "
        "(nodes: CPU 2; CPU 4)"
    )


def test_a_rank_larger_than_every_node_is_refused_and_a_replica_may_be_larger() -> None:
    with pytest.raises(Unavailable, match="each rank of a decode replica needs CPU 8"):
        check_fit([{"CPU": 4.0}], {"decode": [need(2, 1, CPU=8.0)]})
    check_fit([{"CPU": 4.0}, {"CPU": 4.0}], {"decode": [need(2, 1, CPU=4.0)]})


def test_a_resource_that_no_node_has_is_refused() -> None:
    with pytest.raises(Unavailable, match="a prefill replica needs CPU 1, GPU 1"):
        check_fit(TWO_CORES, {"prefill": [need(CPU=1.0, GPU=1.0)]})


def test_more_replicas_than_fit_together_are_refused_with_the_sum() -> None:
    with pytest.raises(Unavailable, match="3 replicas need CPU 3 together"):
        check_fit(TWO_CORES, {"prefill": [need(CPU=1.0)], "decode": [need(CPU=1.0)] * 2})
    with pytest.raises(Unavailable, match="2 replicas of 7 ranks together need CPU 7 together"):
        check_fit(TWO_CORES, {"prefill": [need(CPU=1.0)], "decode": [need(3, 2, CPU=1.0)]})


def test_what_others_hold_is_not_free() -> None:
    check_free([need(CPU=1.0)], {"CPU": 1.0})
    with pytest.raises(Unavailable, match=r"2 more replicas need CPU 2, and only 1\.5 .* is free"):
        check_free([need(CPU=1.0)] * 2, {"CPU": 1.5, "memory": 1e9})
    with pytest.raises(Unavailable, match="need GPU 1, and only 0"):
        check_free([need(CPU=1.0, GPU=1.0)], {"CPU": 8.0})
    with pytest.raises(Unavailable, match="1 more replicas of 6 ranks together need CPU 6"):
        check_free([need(3, 2, CPU=1.0)], {"CPU": 5.0})


def test_what_leaves_before_is_free() -> None:
    check_free([need(1, 2, CPU=1.0)], {"CPU": 0.0}, leaving=[need(3, 1, CPU=1.0)])
    with pytest.raises(Unavailable, match="need CPU 3, and only 2"):
        check_free([need(3, 1, CPU=1.0)], {"CPU": 0.0}, leaving=[need(1, 2, CPU=1.0)])


def test_all_workers_go_to_one_node_rather_our_own() -> None:
    nodes = {"small": {"CPU": 1.0}, "own": {"CPU": 2.0}, "large": {"CPU": 8.0}}
    assert choose_node(nodes, [need(CPU=1.0)] * 2, own="own") == "own"
    assert choose_node(nodes, [need(CPU=1.0)] * 4, own="own") == "large"
    assert choose_node(nodes, [need(2, 2, CPU=1.0)], own="own") == "large"
    assert choose_node(nodes, [need(CPU=9.0)], own="own") == "own"


def test_the_tensor_ranks_of_a_stage_share_a_bundle_and_stages_do_not() -> None:
    bundles = split_into_bundles(need(3, 2, CPU=1.0), [{"CPU": 3.0}, {"CPU": 3.0}])
    assert bundles.needs == ({"CPU": 3.0}, {"CPU": 3.0})
    assert bundles.of_rank == (0, 0, 0, 1, 1, 1)


def test_where_no_node_holds_a_stage_every_rank_has_its_own_bundle() -> None:
    bundles = split_into_bundles(need(3, 2, CPU=1.0), [{"CPU": 2.0}] * 3)
    assert bundles.needs == ({"CPU": 1.0},) * 6
    assert bundles.of_rank == (0, 1, 2, 3, 4, 5)
    one_large = [{"CPU": 3.0}, {"CPU": 2.0}, {"CPU": 2.0}]
    assert len(split_into_bundles(need(3, 2, CPU=1.0), one_large).needs) == 6


def test_a_node_that_could_hold_a_whole_replica_is_known() -> None:
    assert fits_on_one_node(need(3, 2, CPU=1.0), [{"CPU": 2.0}, {"CPU": 6.0}])
    assert not fits_on_one_node(need(3, 2, CPU=1.0), [{"CPU": 5.0}] * 2)
