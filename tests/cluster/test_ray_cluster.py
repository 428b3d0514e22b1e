"""A real local Ray with actors that only stand there: placement, death, what is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.controller import Controller
from cluster.model_folder import ModelFolder
from cluster.plan import Slot, list_slots, resources_of, worker_settings
from cluster.pool_state import Member
from cluster.ray_cluster import RayCluster
from core.config import make_spec
from core.errors import CrossdockError, Unavailable
from core.worker_settings import WorkerSettings

pytestmark = pytest.mark.processes

SPEC = make_spec({"pools": {"prefill": {"replicas": 2}, "decode": {"replicas": 2}}})
SLOTS = list_slots(SPEC)


def standing_actor() -> Any:
    """Defined in here so that Ray carries it to its workers by value."""
    import ray

    @ray.remote
    class Standing:
        def __init__(self, settings: WorkerSettings, expected_root: str) -> None:
            self._settings = settings

        async def start(self) -> dict[str, Any]:
            import os
            import sys

            if self._settings.model_folder == "/refused":
                raise ValueError("no such model")
            # The endpoint carries what this test wants to know of the process.
            about = f"{os.environ['OMP_NUM_THREADS']}|{os.getcwd()}|{':'.join(sys.path)}"
            return {"endpoint": about, "epoch": os.getpid(), "pid": os.getpid()}

        async def wait_closed(self) -> None:
            import asyncio

            await asyncio.Event().wait()

        async def stop(self, drain_s: float) -> None:
            pass

    return Standing


def settings(slot: Slot, model: str = "/models/tiny") -> WorkerSettings:
    folder = ModelFolder(Path(model), 1, 1, 16, "float32", 100)
    return worker_settings(SPEC, folder, slot, (0,), num_blocks=8)


@pytest.fixture
async def ray_cluster(tmp_path: Path, monkeypatch) -> AsyncIterator[RayCluster]:
    """Started from a directory whose files would hide our modules, if Ray saw it."""
    (tmp_path / "core.py").write_text("raise AssertionError('shadowed')")
    monkeypatch.chdir(tmp_path)
    cluster = RayCluster(actor_class=standing_actor)
    await asyncio.to_thread(cluster.start)
    yield cluster
    cluster.shutdown()


class Watcher:
    """Keeps what the controller publishes and waits for it."""

    def __init__(self) -> None:
        self.ready: dict[Slot, Member] = {}
        self._changed = asyncio.Event()

    def publish(self, ready: tuple[Member, ...]) -> None:
        self.ready = {member.slot: member for member in ready}
        self._changed.set()

    async def until_replaced(self, slot: Slot, epoch: int) -> None:
        async with asyncio.timeout(60):
            while slot not in self.ready or self.ready[slot].epoch == epoch:
                self._changed.clear()
                await self._changed.wait()


def own_processes() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


async def test_two_and_two_workers_live_on_this_machine_and_one_is_replaced_when_killed(
    ray_cluster: RayCluster, tmp_path: Path
) -> None:
    needs = {slot: resources_of(SPEC, slot, ray_cluster.total_cpus) for slot in SLOTS}
    nodes = await ray_cluster.place(needs)
    assert len(set(nodes.values())) == 1
    assert await ray_cluster.node_cores(nodes[SLOTS[0]]) == sorted(os.sched_getaffinity(0))

    watcher = Watcher()
    told = {slot: settings(slot) for slot in SLOTS}
    controller = Controller(ray_cluster, told, watcher.publish, note=lambda text: None)
    await controller.start()
    assert watcher.ready.keys() == set(SLOTS)
    assert len({member.pid for member in watcher.ready.values()}) == 4
    _assert_environment(watcher.ready[SLOTS[0]], tmp_path)
    _assert_loopback_only()

    victim = watcher.ready[SLOTS[2]]
    os.kill(victim.pid, signal.SIGKILL)
    await watcher.until_replaced(SLOTS[2], victim.epoch)
    assert watcher.ready.keys() == set(SLOTS)
    assert controller.restarts == 1

    await controller.stop(0.0)
    ray_cluster.shutdown()
    assert own_processes() == []


def _assert_environment(member: Member, driver_directory: Path) -> None:
    threads, directory, path = member.endpoint.split("|")
    assert threads == "1"
    assert directory != str(driver_directory)
    assert str(driver_directory) not in path.split(":")


def _assert_loopback_only() -> None:
    listening = [
        (process.name(), connection.laddr.ip)
        for process in [psutil.Process(), *own_processes()]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert {ip for _, ip in listening} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, listening


async def test_what_can_never_be_placed_is_refused_at_once(ray_cluster: RayCluster) -> None:
    with pytest.raises(Unavailable, match=r"a decode replica needs CPU 0.1, unicorn 1"):
        await ray_cluster.place({SLOTS[2]: {"CPU": 0.1, "unicorn": 1.0}})


async def test_what_finds_no_room_in_time_is_refused_with_what_is_free(ray_cluster) -> None:
    total = ray_cluster.total_cpus
    await ray_cluster.place({SLOTS[0]: {"CPU": total}})
    with pytest.raises(Unavailable, match=r"no room for the decode pool after 0.5 s"):
        await ray_cluster.place({SLOTS[2]: {"CPU": total}}, timeout_s=0.5)


async def test_a_worker_that_can_not_start_says_why(ray_cluster: RayCluster) -> None:
    slot = SLOTS[0]
    await ray_cluster.place({slot: {"CPU": 0.1}})
    worker = ray_cluster.create_worker(slot, settings(slot, model="/refused"))
    with pytest.raises(CrossdockError, match="no such model"):
        await worker.start()


def test_a_cluster_that_is_not_there_is_said_in_plain_words() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        cluster = RayCluster(f"127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(Unavailable, match=r"no Ray cluster answers at 127.0.0.1"):
            cluster.start()
        cluster.shutdown()
