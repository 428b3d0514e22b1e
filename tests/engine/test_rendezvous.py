"""The store of a process group, as torch asks it: from C++."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from memory_rendezvous import InMemory

from engine.rendezvous import PrefixedStore


def test_groups_do_not_see_each_others_keys() -> None:
    values = InMemory(timeout_s=0)
    one, other = PrefixedStore(values, "stage0/"), PrefixedStore(values, "stage1/")
    dist.PrefixStore("group", one).set("address", "here")
    assert dist.PrefixStore("group", one).get("address") == b"here"
    assert not dist.PrefixStore("group", other).check(["address"])


def test_a_check_wants_all_keys_and_does_not_wait() -> None:
    store = PrefixedStore(InMemory(timeout_s=3600), "stage0/")
    asked = dist.PrefixStore("group", store)
    assert not asked.check(["address"])
    asked.set("address", "here")
    assert asked.check(["address"])
    assert not asked.check(["address", "of nobody"])


def test_a_clone_outlives_the_call_that_made_it() -> None:
    """torch keeps the C++ half of a clone only."""
    store = PrefixedStore(InMemory(timeout_s=0), "stage0/")
    clone = dist.PrefixStore("group", store).clone()
    clone.set("address", "here")
    assert dist.PrefixStore("group", store).get("address") == b"here"
    assert clone.check(["address"])


def test_what_ended_the_replica_reaches_who_asks() -> None:
    class Ended(InMemory):
        def has(self, key: str) -> bool:
            raise ConnectionError("rank 1 is lost")

    store = PrefixedStore(Ended(timeout_s=0), "stage0/")
    with pytest.raises(ConnectionError, match="rank 1 is lost"):
        dist.PrefixStore("group", store).check(["address"])
