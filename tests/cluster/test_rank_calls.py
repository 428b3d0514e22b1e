"""Which rank of a replica is told to be the cause when they all fall together."""

from __future__ import annotations

import asyncio

import pytest

from cluster import rank_calls
from cluster.rank_calls import RankCalls
from core.errors import CrossdockError, InternalError, Unavailable


class RayReport(Exception):
    """As Ray reports what an actor raised."""

    def __init__(self, cause: CrossdockError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Died(Exception):
    """As Ray reports a process that is gone."""


CRASH = RayReport(InternalError("out of memory", reason="ENGINE_FAILED"))
# The process group only knows that somebody is gone.
PEERS_LOST = RayReport(
    InternalError("lost other ranks", reason="PEERS_LOST", metadata={"rank": "0"})
)
LEADER_LOST = RayReport(Unavailable("the leader is gone", reason="LEADER_LOST"))


def rank_lost(rank: int) -> RayReport:
    about = {"rank": str(rank)}
    return RayReport(Unavailable(f"rank {rank} is lost", reason="RANK_LOST", metadata=about))


class Ranks:
    """Calls whose ends the test decides."""

    def __init__(self, count: int) -> None:
        loop = asyncio.get_running_loop()
        self.calls: list[asyncio.Future[str]] = [loop.create_future() for _ in range(count)]

    async def cause_of(self, *failures: tuple[int, Exception]) -> int | None:
        """Ranks fail in this order, one event after the other."""
        with RankCalls(self.calls) as calls:
            asked = asyncio.create_task(calls.all_answered())
            for rank, error in failures:
                self.calls[rank].set_exception(error)
                await asyncio.sleep(0)
            return await asked


@pytest.fixture
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(rank_calls, "EXPLANATION_S", 0.0)


async def test_all_results_come_in_the_order_of_ranks() -> None:
    ranks = Ranks(3)
    with RankCalls(ranks.calls) as calls:
        for rank in (2, 0, 1):
            ranks.calls[rank].set_result(f"rank {rank}")
        assert await calls.all_answered() is None
        assert calls.results == ["rank 0", "rank 1", "rank 2"]


@pytest.mark.parametrize("crash", [CRASH, Died("killed")])
async def test_the_rank_that_failed_by_itself_is_the_cause_in_any_order(crash: Exception) -> None:
    story = [(0, rank_lost(2)), (1, LEADER_LOST), (2, crash)]
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        assert await Ranks(3).cause_of(*(story[i] for i in order)) == 2


async def test_a_neighbour_that_crashed_because_of_it_is_not_the_cause() -> None:
    assert await Ranks(3).cause_of((2, CRASH), (0, rank_lost(1)), (1, Died("killed"))) == 1


async def test_a_leader_whose_process_group_broke_accuses_nobody() -> None:
    for order in ((0, 1, 2), (2, 0, 1)):
        story = [(0, PEERS_LOST), (1, CRASH), (2, LEADER_LOST)]
        assert await Ranks(3).cause_of(*(story[i] for i in order)) == 1


async def test_a_rank_whose_neighbour_died_is_not_the_cause_although_the_leader_names_it() -> None:
    """Its word of a broken process group was faster than the end of the dead one's connection."""
    story = [(0, rank_lost(1)), (1, PEERS_LOST), (2, Died("killed"))]
    for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0)):
        assert await Ranks(3).cause_of(*(story[i] for i in order)) == 2


async def test_without_another_cause_the_leader_is_believed(impatient) -> None:
    assert await Ranks(3).cause_of((1, PEERS_LOST), (0, rank_lost(1)), (2, LEADER_LOST)) == 1


async def test_when_the_leader_fails_the_others_follow() -> None:
    assert await Ranks(3).cause_of((1, LEADER_LOST), (2, LEADER_LOST), (0, CRASH)) == 0


async def test_a_rank_that_hangs_is_named_by_the_leader(impatient) -> None:
    ranks = Ranks(3)
    with RankCalls(ranks.calls) as calls:
        ranks.calls[2].set_exception(LEADER_LOST)
        ranks.calls[0].set_exception(rank_lost(1))
        assert await calls.any_ended() == 1
        assert calls.failure_of(1) is None


async def test_without_an_explanation_the_first_one_counts(impatient) -> None:
    assert await Ranks(3).cause_of((2, LEADER_LOST)) == 2


async def test_the_end_of_any_rank_is_an_end() -> None:
    ranks = Ranks(2)
    with RankCalls(ranks.calls) as calls:
        ranks.calls[0].set_result("stopped")
        assert await calls.any_ended() == 0
    await asyncio.sleep(0)
    assert ranks.calls[1].cancelled(), "nobody waits for it any more"
