"""A Ray cluster that can never hold the pools is named as such, in plain words."""

from __future__ import annotations

import pytest

from cluster.placement_fit import check_fit, check_free, choose_node
from core.errors import Unavailable

TWO_CORES = [{"CPU": 2.0, "memory": 1e9}]


def test_four_half_cpus_fit_on_two_cores() -> None:
    check_fit(TWO_CORES, {"prefill": [{"CPU": 0.5}] * 2, "decode": [{"CPU": 0.5}] * 2})


def test_thirds_that_add_up_to_a_whole_fit() -> None:
    check_fit([{"CPU": 1.0}], {"decode": [{"CPU": 1 / 3}] * 3})


def test_a_replica_larger_than_every_node_is_refused_with_the_nodes() -> None:
    with pytest.raises(Unavailable) as caught:
        check_fit([{"CPU": 2.0}, {"CPU": 4.0}], {"decode": [{"CPU": 8.0}]})
    assert caught.value.message == (
        "a decode replica needs CPU 8, and no node of this Ray cluster has that much "
        "(nodes: CPU 2; CPU 4)"
    )


def test_a_resource_that_no_node_has_is_refused() -> None:
    with pytest.raises(Unavailable, match="a prefill replica needs CPU 1, GPU 1"):
        check_fit(TWO_CORES, {"prefill": [{"CPU": 1.0, "GPU": 1.0}]})


def test_more_replicas_than_fit_together_are_refused_with_the_sum() -> None:
    with pytest.raises(Unavailable, match="3 replicas need CPU 3 together"):
        check_fit(TWO_CORES, {"prefill": [{"CPU": 1.0}], "decode": [{"CPU": 1.0}] * 2})


def test_what_others_hold_is_not_free() -> None:
    check_free([{"CPU": 1.0}], {"CPU": 1.0})
    with pytest.raises(Unavailable, match=r"2 more replicas need CPU 2, and only 1\.5 .* is free"):
        check_free([{"CPU": 1.0}] * 2, {"CPU": 1.5, "memory": 1e9})
    with pytest.raises(Unavailable, match="need GPU 1, and only 0"):
        check_free([{"CPU": 1.0, "GPU": 1.0}], {"CPU": 8.0})


def test_all_workers_go_to_one_node_rather_our_own() -> None:
    nodes = {"small": {"CPU": 1.0}, "own": {"CPU": 2.0}, "large": {"CPU": 8.0}}
    assert choose_node(nodes, [{"CPU": 1.0}] * 2, own="own") == "own"
    assert choose_node(nodes, [{"CPU": 1.0}] * 4, own="own") == "large"
    assert choose_node(nodes, [{"CPU": 9.0}], own="own") == "own"
