"""Which node and cores a worker gets, and what is said when there is no room."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from cluster.model_folder import ModelFolder
from cluster.placement_fit import Resources
from cluster.places import Places
from cluster.plan import Slot, list_slots
from core.config import make_spec
from core.errors import Overloaded, Unavailable

P0, D0 = Slot("prefill", 0, "prefill"), Slot("decode", 0, "decode")
D1, D2 = Slot("decode", 1, "decode"), Slot("decode", 2, "decode")


class FakeNodes:
    """Nodes with four cores each; places where the test says."""

    def __init__(self) -> None:
        self.is_local = True
        self.own_node = "a"
        self.node_addresses = {"a": "10.0.0.1", "b": "10.0.0.2"}
        self.placed: dict[Slot, str] = {}
        self.next_node = "a"
        self.near: str | None = None
        self.probed = asyncio.Event()
        self.answers = asyncio.Event()
        self.answers.set()
        self.failure: Exception | None = None

    async def place(
        self, needs: Mapping[Slot, Resources], timeout_s: float, near: str | None = None
    ) -> dict[Slot, str]:
        self.near = near
        nodes = dict.fromkeys(needs, self.next_node)
        self.placed |= nodes
        return nodes

    async def node_cores(self, node_id: str) -> list[int]:
        self.probed.set()
        await self.answers.wait()
        if self.failure is not None:
            raise self.failure
        return [0, 1, 2, 3]

    def check_room(self, needs: Mapping[Slot, Resources]) -> None:
        assert all(need["CPU"] for need in needs.values())

    def pass_on(self, slot: Slot, heir: Slot) -> None:
        self.placed[heir] = self.placed.pop(slot)

    def give_back(self, slot: Slot) -> None:
        del self.placed[slot]


async def new_places(nodes: FakeNodes, settings: dict | None = None, free: int = 2**40) -> Places:
    spec = make_spec(settings)
    model = ModelFolder(Path("/models/tiny"), 1, 1, 16, "float32", 100)
    places = Places(nodes, spec, model, num_blocks=8, free_memory=lambda: free)
    await places.place_first(list_slots(spec))
    return places


async def cores(places: Places, slot: Slot, beside: Slot | None = None) -> tuple[int, ...]:
    return (await places.settings(slot, beside)).cores


async def test_the_first_workers_share_all_cores() -> None:
    places = await new_places(FakeNodes())
    assert await cores(places, P0) == (0, 1)
    assert await cores(places, D0) == (2, 3)


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
    assert (places.exposure_warning, (await places.settings(P0)).host) == ("", "127.0.0.1")
    nodes.own_node = "elsewhere"
    places = await new_places(nodes)
    nodes.next_node = "b"
    hosts = [(await places.settings(slot)).host for slot in (P0, D0, D1)]
    assert hosts == ["10.0.0.1", "10.0.0.1", "10.0.0.2"]
    assert "decode-1 on 10.0.0.2" in places.exposure_warning


async def test_what_does_not_fit_into_memory_is_refused_with_the_numbers() -> None:
    places = await new_places(nodes := FakeNodes(), free=2**30)
    places.check_room([D1])
    with pytest.raises(Overloaded, match=r"3 more workers need about 1\.2 GiB .* only 1\.0 GiB"):
        places.check_room([D1, D2, P0])
    nodes.is_local = False
    places.check_room([D1, D2, P0])
