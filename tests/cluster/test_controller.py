"""The controller with workers that live in this process: started, watched, replaced, stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from cluster.controller import Controller
from cluster.plan import Slot
from cluster.pool_state import Member, MemberState, Started
from core.errors import CrossdockError, Incompatible
from core.request import Role
from core.worker_settings import WorkerSettings

P0, D0 = Slot("prefill", 0, "prefill"), Slot("decode", 0, "decode")


class FakeWorker:
    def __init__(self, slot: Slot, epoch: int, refusal: CrossdockError | None) -> None:
        self.slot, self.epoch, self.refusal = slot, epoch, refusal
        self.died: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.drained: float | None = None
        self.killed = False

    async def start(self) -> Started:
        if self.refusal:
            raise self.refusal
        return Started(self.slot, f"{self.slot.name}:{self.epoch}", self.epoch, pid=1)

    async def wait_closed(self) -> str:
        return await asyncio.shield(self.died)

    async def stop(self, drain_s: float) -> None:
        self.drained = drain_s

    def kill(self) -> None:
        self.killed = True

    def die(self) -> None:
        self.died.set_result("killed by a test")


class Scene:
    """A controller, the workers it made, and what it published, with a way to wait for that."""

    def __init__(self) -> None:
        self.made: list[FakeWorker] = []
        self.refusals: dict[Slot, CrossdockError] = {}
        self.impossible: dict[Slot, str] = {}
        self.published: tuple[Member, ...] = ()
        self.notes: list[str] = []
        self._changed = asyncio.Event()
        settings = {
            slot: WorkerSettings(slot.name, Role(slot.role_name), "/models/tiny", 8)
            for slot in (P0, D0)
        }
        self.controller = Controller(self, settings, self.publish, self.notes.append)

    def create_worker(self, slot: Slot, settings: WorkerSettings) -> FakeWorker:
        assert settings.worker == slot.name
        if slot in self.impossible:
            raise ValueError(self.impossible[slot])
        self.made.append(FakeWorker(slot, len(self.made) + 1, self.refusals.get(slot)))
        return self.made[-1]

    def publish(self, ready: tuple[Member, ...]) -> None:
        self.published = ready
        self._changed.set()

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
