"""The rendezvous of a replica's ranks, in the leader's memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from worker.ranks.key_values import LeaderKeyValues


def test_a_value_that_is_there_is_got_and_the_last_one_counts() -> None:
    values = LeaderKeyValues(timeout_s=0)
    values.set("address", b"first")
    values.set("address", b"second")
    assert values.get("address") == b"second"


def test_get_waits_for_set() -> None:
    values = LeaderKeyValues(timeout_s=10)
    with ThreadPoolExecutor() as threads:
        waiting = [threads.submit(values.get, "address") for _ in range(3)]
        values.set("address", b"here")
        assert [got.result() for got in waiting] == [b"here"] * 3


def test_has_does_not_wait() -> None:
    values = LeaderKeyValues(timeout_s=3600)
    assert not values.has("address")
    values.set("address", b"")
    assert values.has("address")


def test_a_value_that_never_comes_is_named() -> None:
    with pytest.raises(TimeoutError, match=r"no rank has set stage0/1 within 0.01 s"):
        LeaderKeyValues(timeout_s=0.01).get("stage0/1")


def test_the_end_of_the_replica_ends_every_wait() -> None:
    values = LeaderKeyValues(timeout_s=10)
    before = values.when_set("a")
    values.close(ConnectionError("rank 1 is lost"))
    assert isinstance(before.exception(0), ConnectionError)
    with pytest.raises(ConnectionError, match="rank 1 is lost"):
        values.get("b")
    with pytest.raises(ConnectionError, match="rank 1 is lost"):
        values.has("b")
