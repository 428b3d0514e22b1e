"""Cores go to workers in disjoint fair shares while they last."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.affinity import assign_cores, share_cores
from core.errors import InvalidField

cores_of_a_node = st.sets(st.integers(0, 255), min_size=1, max_size=64).map(sorted)


def test_one_prefill_and_one_decode_worker_on_two_cores_get_one_each() -> None:
    assert assign_cores([0, 1], 2) == [(0,), (1,)]


def test_five_cores_for_two_workers() -> None:
    assert assign_cores([0, 1, 2, 5, 6], 2) == [(0, 1, 2), (5, 6)]


def test_four_workers_on_two_cores_take_turns() -> None:
    assert assign_cores([4, 7], 4) == [(4,), (7,), (4,), (7,)]


@given(cores_of_a_node, st.integers(1, 64))
def test_shares_are_fair_and_disjoint_when_there_are_enough_cores(cores, workers) -> None:
    shares = assign_cores(cores, workers)
    sizes = [len(share) for share in shares]
    assert len(shares) == workers
    assert max(sizes) - min(sizes) <= 1
    if workers <= len(cores):
        assert [core for share in shares for core in share] == cores
    else:
        loads = [sum(core in share for share in shares) for core in cores]
        assert sizes == [1] * workers
        assert max(loads) - min(loads) <= 1


def test_one_more_worker_shares_the_least_crowded_cores() -> None:
    assert share_cores([0, 1], []) == [(0, 1)]
    assert share_cores([0, 1], [(0,), (1,)]) == [(0,)]
    assert share_cores([0, 1], [(0,), (1,), (0,)]) == [(1,)]
    assert share_cores([0, 1, 2, 3, 4, 5, 6, 7], [(0, 1, 2, 3), (4, 5)]) == [(6, 7)]


def test_several_more_workers_share_alike_and_know_of_each_other() -> None:
    assert share_cores([0, 1, 2, 3], [], workers=2) == [(0, 1), (2, 3)]
    assert share_cores([0, 1, 2, 3], [(0, 1)], workers=2) == [(2,), (3,)]
    assert share_cores([0, 1], [(0,)], workers=3) == [(1,), (0,), (1,)]


def test_a_node_without_cores_is_refused() -> None:
    with pytest.raises(InvalidField):
        assign_cores([], 1)
