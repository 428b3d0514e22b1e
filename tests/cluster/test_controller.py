"""The controller with workers that live in this process: started, watched, replaced, stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import pytest

from cluster.controller import Controller
from cluster.plan import ReplicaSettings, Slot
from cluster.pool_messages import (
    DrainWorker,
    FlipWorker,
    Member,
    MemberState,
    ScaleTo,
    Started,
)
from cluster.wanted import Wanted
from core.errors import CrossdockError, Incompatible, NotFound, Unavailable
from core.worker_settings import WorkerSettings
from crossdock.v1 import worker_pb2

P0, D0 = Slot("prefill", 0, "prefill"), Slot("decode", 0, "decode")
D1 = Slot("decode", 1, "decode")


class FakeWorker:
    def __init__(self, slot: Slot, epoch: int, refusal: CrossdockError | None) -> None:
        self.slot, self.epoch, self.refusal = slot, epoch, refusal
        self.died: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.drained: float | None = None
        self.idle = asyncio.Event()
        self.idle.set()
        self.killed = False
        self.may_start = asyncio.Event()
        self.may_start.set()

    async def start(self) -> Started:
        await self.may_start.wait()
        if self.refusal:
            raise self.refusal
        return Started(self.slot, f"{self.slot.name}:{self.epoch}", self.epoch, pid=1)

    async def wait_closed(self) -> str:
        return await asyncio.shield(self.died)

    async def stop(self, drain_s: float) -> None:
        self.drained = drain_s
        await self.idle.wait()
        if not self.died.done():
            self.died.set_result("it ended by itself")

    def kill(self) -> None:
        self.killed = True

    def die(self) -> None:
        self.died.set_result("killed by a test")


class FakePlaces:
    """Has room until it is ``full``."""

    def __init__(self) -> None:
        self.heirs: dict[Slot, Slot] = {}
        self.taken: set[Slot] = set()
        self.full = False
        self.lost: set[Slot] = set()
        self.closed: dict[str, float] = {}

    def check_room(self, slots: Sequence[Slot], heirs: Mapping[Slot, Slot]) -> None:
        self.heirs = dict(heirs)
        if self.full and slots:
            raise Unavailable(f"no room for {slots[0].name}", reason="NOT_ENOUGH_RESOURCES")

    async def settings(self, slot: Slot, beside: Slot | None = None) -> ReplicaSettings:
        self.taken.add(slot)
        return ReplicaSettings(WorkerSettings(slot.name, slot.role, "/models/tiny", 8))

    def pass_on(self, slot: Slot, heir: Slot) -> None:
        self.taken.remove(slot)
        self.taken.add(heir)

    def give_back(self, slot: Slot) -> None:
        self.taken.remove(slot)

    def on_living_nodes(self, slot: Slot) -> bool:
        return slot not in self.lost

    def on_address(self, address: str) -> tuple[Slot, ...]:
        return tuple(sorted(self.taken)) if address in self.closed else ()

    async def close_node(self, address: str, reason: str, limit_s: float) -> None:
        self.closed[address] = limit_s


class Scene:
    """A controller, the workers it made, and what it published, with a way to wait for that.

    It is the controller's routers as well: one, attached to every worker at once.
    """

    def __init__(self) -> None:
        self.made: list[FakeWorker] = []
        self.refusals: dict[Slot, CrossdockError] = {}
        self.impossible: dict[Slot, str] = {}
        self.published: tuple[Member, ...] = ()
        self.notes: list[str] = []
        self._changed = asyncio.Event()
        self.num_watchers = 1
        self.hanging: set[str] = set()
        self.asked: list[str] = []
        self.places = FakePlaces()
        self.controller = Controller(
            self, self.places, self, [P0, D0], ask=self.ask, note=self.notes.append
        )

    async def ask(self, endpoint: str, timeout_s: float) -> worker_pb2.WorkerStats:
        self.asked.append(endpoint)
        if endpoint in self.hanging:
            raise TimeoutError
        return worker_pb2.WorkerStats(routers=1)

    def create_worker(self, slot: Slot, settings: ReplicaSettings) -> FakeWorker:
        assert settings.leader.worker == slot.name
        if slot in self.impossible:
            raise ValueError(self.impossible[slot])
        self.made.append(FakeWorker(slot, len(self.made) + 1, self.refusals.get(slot)))
        if slot in self.places.lost:
            self.made[-1].may_start.clear()
        return self.made[-1]

    def publish(self, workers: tuple[Member, ...]) -> None:
        self.published = workers
        self._changed.set()

    async def until_settled(self) -> None:
        async with asyncio.timeout(10):
            while not self.controller.settled:  # noqa: ASYNC110 - it has no event for that
                await asyncio.sleep(0)

    async def asked_next(self, endpoint: str) -> set[str]:
        """Who is asked from now on, until this one was asked several times."""
        self.asked.clear()
        async with asyncio.timeout(10):
            while self.asked.count(endpoint) < 5:  # noqa: ASYNC110 - it has no event for that
                await asyncio.sleep(0)
        return set(self.asked)

    async def detail(self, slot: Slot, words: str) -> None:
        """Until the status of this worker says so."""
        async with asyncio.timeout(10):
            while not any(  # noqa: ASYNC110 - it has no event for that
                member.slot == slot and words in member.detail for member in self.controller.members
            ):
                await asyncio.sleep(0)

    def epochs(self) -> dict[Slot, int]:
        return {member.slot: member.epoch for member in self.published}

    async def until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not reached():
                await self._changed.wait()
                self._changed.clear()


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    yield scene
    await scene.controller.stop(0.0)


async def test_start_returns_when_every_worker_is_ready(scene: Scene) -> None:
    await scene.controller.start()
    assert scene.epochs() == {P0: 1, D0: 2}
    assert [member.endpoint for member in scene.published] == ["prefill-0:1", "decode-0:2"]


async def test_a_dead_worker_is_replaced_by_one_with_a_new_epoch(scene: Scene) -> None:
    await scene.controller.start()
    scene.made[0].die()
    await scene.until(lambda: scene.epochs() == {D0: 2})
    await scene.until(lambda: scene.epochs() == {P0: 3, D0: 2})
    assert scene.controller.restarts == 1
    assert scene.made[0].killed
    assert scene.notes[0] == "worker prefill-0 (pid 1): killed by a test"


async def test_a_worker_whose_node_is_lost_while_it_starts_is_placed_anew(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.worker_start._PAUSE_S", 0.0)
    await scene.controller.start()
    scene.places.lost.add(P0)
    scene.made[0].die()
    await scene.until(lambda: scene.epochs() == {D0: 2})
    await scene.detail(P0, "its node is gone")
    assert scene.made[2].killed
    scene.places.lost.clear()
    await scene.until(lambda: P0 in scene.epochs())


async def test_a_worker_that_can_not_start_ends_the_start_and_says_why(scene: Scene) -> None:
    scene.refusals[D0] = Incompatible("no such architecture", reason="UNSUPPORTED_MODEL")
    with pytest.raises(CrossdockError, match="decode-0 can't start: no such architecture"):
        await scene.controller.start()
    assert scene.made[1].killed


async def test_a_worker_that_can_not_even_be_created_ends_the_start(scene: Scene) -> None:
    scene.impossible[D0] = "use the memory option instead"
    with pytest.raises(CrossdockError, match=r"decode-0 can.t start: .*memory option"):
        await scene.controller.start()


async def test_stop_drains_every_worker_and_starts_no_other(scene: Scene) -> None:
    await scene.controller.start()
    await scene.controller.stop(3.0)
    assert [worker.drained for worker in scene.made] == [3.0, 3.0]
    assert all(worker.killed for worker in scene.made)
    assert len(scene.made) == 2


async def test_kill_waits_for_nobody(scene: Scene) -> None:
    await scene.controller.start()
    scene.controller.kill()
    assert all(worker.killed and worker.drained is None for worker in scene.made)


async def test_members_tell_who_is_starting(scene: Scene) -> None:
    assert [member.state for member in scene.controller.members] == [MemberState.STARTING] * 2


async def test_scaling_out_and_in_starts_and_drains_workers(scene: Scene) -> None:
    await scene.controller.start()
    await scene.controller.change(ScaleTo(decode=2))
    await scene.until_settled()
    assert scene.epochs() == {P0: 1, D0: 2, D1: 3}
    scene.made[2].idle.clear()
    await scene.controller.change(ScaleTo(decode=1))
    await scene.until(lambda: scene.published[-1].state is MemberState.DRAINING)
    assert not scene.made[2].killed, "it has something to finish"
    scene.made[2].idle.set()
    await scene.until_settled()
    assert scene.epochs() == {P0: 1, D0: 2}
    assert scene.made[2].killed
    assert scene.places.taken == {P0, D0}
    assert scene.controller.restarts == 0


async def test_draining_starts_a_replacement_and_keeps_the_drain_limit(scene: Scene) -> None:
    await scene.controller.start()
    await scene.controller.change(DrainWorker("decode-0", limit_s=7.0))
    await scene.until_settled()
    assert scene.epochs() == {P0: 1, D1: 3}
    assert scene.made[1].drained == 7.0
    assert scene.places.taken == {P0, D1}


async def test_a_worker_that_crashes_while_it_drains_is_gone(scene: Scene) -> None:
    await scene.controller.start()
    await scene.controller.change(ScaleTo(decode=2))
    await scene.until_settled()
    scene.made[2].idle.clear()
    await scene.controller.change(ScaleTo(decode=1))
    scene.made[2].die()
    await scene.until_settled()
    assert scene.epochs() == {P0: 1, D0: 2}
    assert "worker decode-1 (pid 1) while it drained: killed by a test" in scene.notes


async def test_a_flipped_worker_passes_its_place_on(scene: Scene) -> None:
    await scene.controller.start()
    await scene.controller.change(FlipWorker("prefill-0"))
    await scene.until_settled()
    assert scene.epochs() == {D0: 2, D1: 3}
    assert scene.places.taken == {D0, D1}
    assert scene.controller.wanted == Wanted(0, 2)


async def test_room_for_who_takes_over_is_looked_at_before_a_flip(scene: Scene) -> None:
    await scene.controller.start()
    await scene.controller.change(FlipWorker("prefill-0"))
    assert scene.places.heirs == {P0: D1}
    await scene.until_settled()
    await scene.controller.change(ScaleTo(decode=1))
    assert scene.places.heirs == {}


async def test_what_has_no_room_is_refused_and_nothing_changes(scene: Scene) -> None:
    await scene.controller.start()
    await scene.until_settled()
    scene.places.full = True
    for wish in (ScaleTo(decode=2), DrainWorker("decode-0")):
        with pytest.raises(Unavailable, match="no room for decode-1"):
            await scene.controller.change(wish)
    with pytest.raises(NotFound):
        await scene.controller.change(FlipWorker("decode-9"))
    assert scene.controller.wanted == Wanted(1, 1)
    assert scene.controller.settled


@pytest.fixture
def hang_at_once(monkeypatch) -> None:
    """A worker hangs as soon as it has missed enough questions, and is asked all the time."""
    monkeypatch.setattr("cluster.pool_state.HANG_LIMIT_S", 0.0)
    monkeypatch.setattr("cluster.controller.ASK_PAUSE_S", 0.0)
    monkeypatch.setattr("cluster.controller.ASK_NEW_PAUSE_S", 0.0)


async def test_a_worker_that_hangs_is_killed_and_replaced(hang_at_once, scene: Scene) -> None:
    await scene.controller.start()
    scene.hanging.add("prefill-0:1")
    await scene.until(lambda: scene.epochs() == {P0: 3, D0: 2})
    assert scene.made[0].killed
    assert any("prefill-0 is killed: it has answered nothing" in note for note in scene.notes)
    assert await scene.asked_next("prefill-0:3") == {"prefill-0:3", "decode-0:2"}


async def test_a_worker_that_hangs_while_it_drains_is_gone(hang_at_once, scene: Scene) -> None:
    await scene.controller.start()
    await scene.controller.change(ScaleTo(decode=2))
    await scene.until_settled()
    scene.made[2].idle.clear()
    await scene.controller.change(ScaleTo(decode=1))
    scene.hanging.add("decode-1:3")
    await scene.until_settled()
    assert scene.epochs() == {P0: 1, D0: 2}
    assert scene.made[2].killed
    assert await scene.asked_next("decode-0:2") == {"prefill-0:1", "decode-0:2"}


async def test_stop_ends_a_worker_that_drains(scene: Scene) -> None:
    await scene.controller.start()
    await scene.controller.change(ScaleTo(decode=2))
    await scene.until_settled()
    scene.made[2].idle.clear()
    await scene.controller.change(ScaleTo(decode=1))
    stopping = asyncio.create_task(scene.controller.stop(0.0))
    await asyncio.sleep(0)
    scene.made[2].idle.set()
    await stopping
    assert all(worker.killed for worker in scene.made)


async def test_when_a_node_goes_its_workers_drain_and_others_are_started(scene: Scene) -> None:
    await scene.controller.start()
    old = list(scene.made)
    assert await scene.controller.leave_node("10.0.0.7", 90.0) == (D0, P0)
    assert scene.places.closed == {"10.0.0.7": 90.0}
    await scene.until_settled()
    assert [worker.drained for worker in old] == [90.0, 90.0]
    assert {member.slot.name for member in scene.controller.members} == {"prefill-1", "decode-1"}
