"""Which node and cores a worker gets, and what is said when there is no room."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from cluster.memory_plan import PoolBlocks
from cluster.model_folder import ModelFolder
from cluster.placement_fit import ReplicaNeed
from cluster.places import Places
from cluster.plan import Slot, list_slots
from core.config import make_spec
from core.errors import InvalidField, Overloaded, Unavailable

P0, D0 = Slot("prefill", 0, "prefill"), Slot("decode", 0, "decode")
D1, D2 = Slot("decode", 1, "decode"), Slot("decode", 2, "decode")


class FakeNodes:
    """Nodes with four cores each; places where the test says: all ranks on ``next_node``, or those
    of a replica on ``next_nodes``."""

    def __init__(self) -> None:
        self.is_local = True
        self.own_node = "a"
        self.node_addresses = {"a": "10.0.0.1", "b": "10.0.0.2"}
        self.placed: dict[Slot, tuple[str, ...]] = {}
        self.next_node = "a"
        self.next_nodes: dict[Slot, tuple[str, ...]] = {}
        self.checked: tuple[set[Slot], list[Slot]] = (set(), [])
        self.near: str | None = None
        self.probed = asyncio.Event()
        self.answers = asyncio.Event()
        self.answers.set()
        self.failure: Exception | None = None
        self.closed: list[str] = []

    async def place(
        self, needs: Mapping[Slot, ReplicaNeed], timeout_s: float, near: str | None = None
    ) -> dict[Slot, tuple[str, ...]]:
        self.near = near
        one = {slot: (self.next_node,) * need.shape.num_ranks for slot, need in needs.items()}
        nodes = {slot: self.next_nodes.get(slot, one[slot]) for slot in needs}
        self.placed |= nodes
        return nodes

    async def node_cores(self, node_id: str) -> list[int]:
        self.probed.set()
        await self.answers.wait()
        if self.failure is not None:
            raise self.failure
        return [0, 1, 2, 3]

    def check_room(self, needs: Mapping[Slot, ReplicaNeed], leaving: Sequence[Slot] = ()) -> None:
        assert all(need.rank["CPU"] for need in needs.values())
        self.checked = (set(needs), list(leaving))

    def pass_on(self, slot: Slot, heir: Slot) -> None:
        self.placed[heir] = self.placed.pop(slot)

    def give_back(self, slot: Slot) -> None:
        del self.placed[slot]

    async def close_node(self, node_id: str, reason: str, limit_s: float) -> None:
        self.closed.append(node_id)


async def new_places(nodes: FakeNodes, settings: dict | None = None, free: int = 2**40) -> Places:
    spec = make_spec(settings)
    model = ModelFolder(Path("/models/tiny"), 2, 4, 4, 16, "float32", 100)
    places = Places(nodes, spec, model, PoolBlocks(8, 8), free_memory=lambda: free)
    await places.place_first(list_slots(spec))
    return places


async def cores(places: Places, slot: Slot, beside: Slot | None = None) -> tuple[int, ...]:
    return (await places.settings(slot, beside)).leader.cores


async def cores_of_ranks(
    places: Places, slot: Slot, beside: Slot | None = None
) -> list[tuple[int, ...]]:
    told = await places.settings(slot, beside)
    return [told.leader.cores, *(rank.cores for rank in told.others)]


async def test_the_first_workers_share_all_cores() -> None:
    places = await new_places(FakeNodes())
    assert await cores(places, P0) == (0, 1)
    assert await cores(places, D0) == (2, 3)


async def test_more_threads_than_a_node_has_cores_are_refused_and_all_given_back() -> None:
    await new_places(FakeNodes(), {"engine": {"threads": 4}})
    nodes = FakeNodes()
    with pytest.raises(InvalidField, match=r"engine\.threads = 5: may be 4 cores at most"):
        await new_places(nodes, {"engine": {"threads": 5}})
    assert not nodes.placed


async def test_a_replacement_shares_the_cores_of_the_one_that_leaves() -> None:
    places = await new_places(nodes := FakeNodes())
    assert await cores(places, D1, beside=D0) == (2, 3)
    assert nodes.near == "a"


async def test_additional_workers_share_the_least_crowded_cores() -> None:
    places = await new_places(FakeNodes())
    assert await cores(places, D1) == (0,)
    assert await cores(places, D2) == (1,)
    places.give_back(D1)
    assert await cores(places, Slot("decode", 3, "decode")) == (0,)


async def test_a_place_is_passed_on_with_its_cores() -> None:
    places = await new_places(nodes := FakeNodes())
    places.pass_on(P0, D1)
    assert nodes.placed.keys() == {D0, D1}
    assert await cores(places, D1) == (0, 1)


async def test_a_place_that_does_not_suit_the_heir_is_given_back() -> None:
    pools = {"pools": {"prefill": {"resources": {"CPU": 2}}}}
    places = await new_places(nodes := FakeNodes(), pools)
    places.pass_on(P0, D1)
    assert nodes.placed.keys() == {D0}
    await places.settings(D1)
    assert nodes.placed.keys() == {D0, D1}


async def test_another_node_is_given_back_and_refused() -> None:
    places = await new_places(nodes := FakeNodes())
    nodes.next_node = "b"
    with pytest.raises(Unavailable, match="another node only"):
        await places.settings(D1)
    assert nodes.placed.keys() == {P0, D0}


async def spanning_places(nodes: FakeNodes) -> Places:
    """Its workers are on node a, and it may grow to node b, whose cores nobody knows yet."""
    nodes.own_node = "elsewhere"
    places = await new_places(nodes)
    nodes.next_node = "b"
    nodes.probed.clear()
    return places


async def test_room_on_a_node_that_does_not_tell_its_cores_is_given_back() -> None:
    places = await spanning_places(nodes := FakeNodes())
    nodes.failure = Unavailable("node b did not tell its CPU cores", reason="NODE_UNAVAILABLE")
    with pytest.raises(Unavailable, match="did not tell"):
        await places.settings(D1)
    assert nodes.placed.keys() == {P0, D0}
    nodes.failure = None
    await places.settings(D1)
    assert nodes.placed.keys() == {P0, D0, D1}


async def test_room_on_a_node_that_has_just_died_is_given_back() -> None:
    places = await spanning_places(nodes := FakeNodes())
    del nodes.node_addresses["b"]
    with pytest.raises(Unavailable, match="node b died after Ray had found room there"):
        await places.settings(D1)
    assert nodes.placed.keys() == {P0, D0}


async def test_room_for_a_worker_that_nobody_wants_any_more_is_given_back() -> None:
    places = await spanning_places(nodes := FakeNodes())
    nodes.answers.clear()
    starting = asyncio.create_task(places.settings(D1))
    await nodes.probed.wait()
    assert D1 in nodes.placed
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert nodes.placed.keys() == {P0, D0}


async def test_the_first_workers_get_room_together_or_none_of_them_keeps_any() -> None:
    nodes = FakeNodes()
    nodes.failure = Unavailable("node a did not tell its CPU cores", reason="NODE_UNAVAILABLE")
    with pytest.raises(Unavailable, match="did not tell"):
        await new_places(nodes)
    assert nodes.placed == {}


async def test_two_workers_that_start_at_once_on_a_new_node_know_of_each_other() -> None:
    places = await spanning_places(nodes := FakeNodes())
    nodes.answers.clear()
    async with asyncio.TaskGroup() as starting:
        both = [starting.create_task(cores(places, slot)) for slot in (D1, D2)]
        await nodes.probed.wait()
        nodes.answers.set()
    assert [task.result() for task in both] == [(0, 1, 2, 3), (0, 1)]


async def test_a_cluster_over_several_nodes_listens_on_their_addresses_and_says_so() -> None:
    places = await new_places(nodes := FakeNodes())
    assert (places.exposure_warning, (await places.settings(P0)).leader.host) == ("", "127.0.0.1")
    nodes.own_node = "elsewhere"
    places = await new_places(nodes)
    nodes.next_node = "b"
    hosts = [(await places.settings(slot)).leader.host for slot in (P0, D0, D1)]
    assert hosts == ["10.0.0.1", "10.0.0.1", "10.0.0.2"]
    assert "decode-1 on 10.0.0.2" in places.exposure_warning


async def test_what_does_not_fit_into_memory_is_refused_with_the_numbers() -> None:
    places = await new_places(nodes := FakeNodes(), free=2**30)
    places.check_room([D1])
    with pytest.raises(Overloaded, match=r"3 more workers need about 1\.2 GiB .* only 1\.0 GiB"):
        places.check_room([D1, D2, P0])
    nodes.is_local = False
    places.check_room([D1, D2, P0])


# Workers of several ranks

SPLIT_DIFFERENTLY = {
    "pools": {
        "prefill": {"tensor_parallel_size": 2},
        "decode": {"pipeline_parallel_size": 2},
    }
}
SPLIT_ALIKE = {
    "pools": {
        "prefill": {"tensor_parallel_size": 2},
        "decode": {"tensor_parallel_size": 2},
    }
}


async def test_all_ranks_of_a_node_share_its_cores() -> None:
    places = await new_places(FakeNodes(), SPLIT_DIFFERENTLY)
    assert await cores_of_ranks(places, P0) == [(0,), (1,)]
    assert await cores_of_ranks(places, D0) == [(2,), (3,)]


async def test_the_ranks_of_a_later_worker_get_as_many_cores_each() -> None:
    places = await new_places(nodes := FakeNodes(), SPLIT_DIFFERENTLY)
    places.give_back(P0)
    places.give_back(D0)
    assert await cores_of_ranks(places, D1) == [(0, 1), (2, 3)]
    assert nodes.placed[D1] == ("a", "a")


async def test_a_replacement_shares_the_cores_of_each_rank() -> None:
    places = await new_places(FakeNodes(), SPLIT_DIFFERENTLY)
    assert await cores_of_ranks(places, D1, beside=D0) == [(2,), (3,)]


async def test_a_replacement_on_other_nodes_takes_the_least_crowded_cores() -> None:
    nodes = FakeNodes()
    nodes.next_nodes = {D0: ("a", "b"), D1: ("b", "a")}
    places = await new_places(nodes, SPLIT_DIFFERENTLY)
    assert await cores_of_ranks(places, D0) == [(3,), (0, 1, 2, 3)]
    assert await cores_of_ranks(places, D1, beside=D0) == [(0, 1), (0,)]


async def test_stages_may_span_nodes_and_listen_where_the_others_reach_them() -> None:
    nodes = FakeNodes()
    nodes.next_nodes = {D0: ("a", "b")}
    places = await new_places(nodes, SPLIT_DIFFERENTLY)
    told = await places.settings(D0)
    assert (told.leader.host, told.others[0].host) == ("10.0.0.1", "10.0.0.2")
    assert (await places.settings(P0)).others[0].host == "10.0.0.1"
    assert "decode-0 on 10.0.0.2" in places.exposure_warning


async def test_a_later_worker_with_one_rank_elsewhere_is_refused_on_loopback() -> None:
    places = await new_places(nodes := FakeNodes(), SPLIT_DIFFERENTLY)
    nodes.next_nodes = {D1: ("a", "b")}
    with pytest.raises(Unavailable, match="another node only"):
        await places.settings(D1)
    assert nodes.placed.keys() == {P0, D0}


async def test_a_place_is_passed_on_only_to_a_worker_of_the_same_shape() -> None:
    places = await new_places(nodes := FakeNodes(), SPLIT_ALIKE)
    places.pass_on(P0, D1)
    assert nodes.placed.keys() == {D0, D1}
    assert await cores_of_ranks(places, D1) == [(0,), (1,)]

    places = await new_places(nodes := FakeNodes(), SPLIT_DIFFERENTLY)
    places.pass_on(P0, D1)
    assert nodes.placed.keys() == {D0}
    assert await cores_of_ranks(places, D1) == [(0,), (1,)], "two ranks again, but stages"


async def test_the_heir_of_another_shape_needs_room_once_its_place_is_given_back() -> None:
    places = await new_places(nodes := FakeNodes(), SPLIT_ALIKE)
    places.check_room([], {P0: D1})
    assert nodes.checked == (set(), []), "the place is passed on"
    places = await new_places(nodes := FakeNodes(), SPLIT_DIFFERENTLY)
    places.check_room([D2], {P0: D1})
    assert nodes.checked == ({D1, D2}, [P0])


async def test_every_rank_takes_memory_and_a_leaving_worker_frees_its_own() -> None:
    wide = {"pools": {"decode": {"tensor_parallel_size": 4}}}
    places = await new_places(FakeNodes(), wide, free=1300 * 2**20)
    with pytest.raises(Overloaded, match=r"1 more workers need about 1\.6 GiB"):
        places.check_room([D1])
    places.check_room([], {P0: D1})


async def test_a_replica_that_lost_a_node_is_placed_anew_as_a_whole() -> None:
    nodes = FakeNodes()
    nodes.next_nodes = {D0: ("a", "b")}
    places = await new_places(nodes, SPLIT_DIFFERENTLY)
    del nodes.node_addresses["b"]
    nodes.next_nodes = {}
    told = await places.settings(D0)
    assert nodes.placed[D0] == ("a", "a")
    assert told.others[0].host == "10.0.0.1"


async def test_all_workers_with_a_rank_on_a_node_are_found_by_its_address() -> None:
    nodes = FakeNodes()
    nodes.next_nodes = {D0: ("a", "b")}
    places = await new_places(nodes, {"pools": {"decode": {"pipeline_parallel_size": 2}}})
    assert places.on_address("10.0.0.1") == (P0, D0)
    assert places.on_address("10.0.0.2") == (D0,)
    assert places.on_address("10.0.0.3") == ()
    await places.close_node("10.0.0.2", "it goes", 60.0)
    await places.close_node("10.0.0.3", "it went before", 60.0)
    assert nodes.closed == ["b"]


class LateNodes(FakeNodes):
    """Have room at the third look."""

    looks = 0

    async def place(
        self, needs: Mapping[Slot, ReplicaNeed], timeout_s: float, near: str | None = None
    ) -> dict[Slot, tuple[str, ...]]:
        self.looks += 1
        if self.looks < 3:
            raise Unavailable("no node yet", reason="NOT_ENOUGH_RESOURCES")
        return await super().place(needs, timeout_s, near)


async def test_nodes_that_are_on_their_way_are_waited_for(monkeypatch) -> None:
    monkeypatch.setattr("cluster.places.ROOM_PAUSE_S", 0.0)
    spec = make_spec()
    model = ModelFolder(Path("/models/tiny"), 2, 4, 4, 16, "float32", 100)
    places = Places(LateNodes(), spec, model, PoolBlocks(8, 8))
    said: list[str] = []
    await places.place_first(list_slots(spec), 60.0, said.append)
    assert said == ["waits for room: no node yet"]
    assert places.on_address("10.0.0.1") == (P0, D0)
    with pytest.raises(Unavailable, match="no node yet"):
        await Places(LateNodes(), spec, model, PoolBlocks(8, 8)).place_first(list_slots(spec))
