"""A real local Ray with actors that only stand there: placement, death, what is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.controller import Controller
from cluster.memory_plan import PoolBlocks
from cluster.model_folder import ModelFolder
from cluster.placement_fit import ReplicaNeed
from cluster.places import Places
from cluster.plan import (
    RankPlace,
    ReplicaSettings,
    Slot,
    list_slots,
    replica_need,
    replica_settings,
)
from cluster.pool_messages import FlipWorker, Member, ScaleTo
from cluster.ray_cluster import RayCluster
from cluster.replica import ActorClasses
from core.config import ClusterSpec, make_spec
from core.errors import CrossdockError, Unavailable
from core.worker_settings import LeaderAddress, RankSettings, WorkerSettings
from crossdock.v1 import worker_pb2

pytestmark = pytest.mark.processes

SPEC = make_spec({"pools": {"prefill": {"replicas": 2}, "decode": {"replicas": 2}}})
SLOTS = list_slots(SPEC)
MODEL = ModelFolder(Path("/models/tiny"), 4, 3, 3, 16, "float32", 100)
BLOCKS = PoolBlocks(8, 8)
SPLIT = make_spec(
    {"pools": {"prefill": {"tensor_parallel_size": 3}, "decode": {"pipeline_parallel_size": 2}}}
)


def standing_actors() -> ActorClasses:
    return ActorClasses(standing_leader(), standing_rank())


def standing_leader() -> Any:
    """Defined in here so that Ray carries it to its workers by value."""
    import ray

    @ray.remote
    class Standing:
        def __init__(self, settings: WorkerSettings, expected_root: str) -> None:
            import contextlib
            import os
            from pathlib import Path

            self._settings = settings
            with contextlib.suppress(OSError):  # Noted only where the test looks.
                (Path(settings.model_folder) / f"{settings.worker}.0.{os.getpid()}").touch()

        async def prepare(self) -> LeaderAddress:
            # The host carries what the other ranks must have been told.
            return LeaderAddress(self._settings.worker, 1, b"token")

        async def start(self) -> dict[str, Any]:
            import asyncio
            import os
            import sys

            if self._settings.model_folder == "/refused":
                raise ValueError("no such model")
            if self._settings.model_folder == "/refused by rank 2":
                await asyncio.Event().wait()
            # The endpoint carries what this test wants to know of the process.
            threads = os.environ["OMP_NUM_THREADS"]
            about = f"{os.getpid()}|{threads}|{os.getcwd()}|{':'.join(sys.path)}"
            return {"endpoint": about, "epoch": os.getpid(), "pid": os.getpid()}

        async def wait_closed(self) -> None:
            import asyncio

            await asyncio.Event().wait()

        async def stop(self, drain_s: float) -> None:
            pass

    return Standing


def standing_rank() -> Any:
    """As the leader, beside it."""
    import ray

    @ray.remote
    class StandingRank:
        def __init__(self, settings: RankSettings, expected_root: str) -> None:
            import contextlib
            import os
            from pathlib import Path

            self._rank, self._worker = settings.rank, settings.worker
            name = f"{self._worker.worker}.{self._rank}.{os.getpid()}"
            with contextlib.suppress(OSError):
                (Path(self._worker.model_folder) / name).touch()

        async def start(self, leader: LeaderAddress) -> int:
            import os

            assert leader.host == self._worker.worker
            if self._worker.model_folder == f"/refused by rank {self._rank}":
                raise ValueError("no such part of the model")
            return os.getpid()

        async def wait_closed(self) -> None:
            import asyncio

            await asyncio.Event().wait()

        async def stop(self) -> None:
            pass

    return StandingRank


def settings(spec: ClusterSpec, slot: Slot, model: str = "/models/tiny") -> ReplicaSettings:
    places = [RankPlace("n", "127.0.0.1", (0,))] * spec.pools.of(slot.pool).shape.num_ranks
    return replica_settings(spec, replace(MODEL, path=Path(model)), slot, places, num_blocks=8)


def need(**rank: float) -> ReplicaNeed:
    return ReplicaNeed(rank)


@pytest.fixture(scope="module")
def driver_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its files would hide our modules, if Ray saw them."""
    folder = tmp_path_factory.mktemp("driver")
    (folder / "core.py").write_text("raise AssertionError('shadowed')")
    return folder


@pytest.fixture(scope="module")
def ray_cluster(driver_directory: Path) -> Iterator[RayCluster]:
    """One for all tests; each leaves it empty. At its end no process of it is left."""
    cluster, before = RayCluster(actor_classes=standing_actors), own_processes()
    # Not in the main thread, where Ray would take over the signals. Ray ends with the thread.
    with ThreadPoolExecutor(1) as thread:
        with contextlib.chdir(driver_directory):
            thread.submit(cluster.start).result()
        yield cluster
        cluster.shutdown()
    assert set(own_processes()) <= set(before)


@pytest.fixture(autouse=True)
async def no_room_is_taken(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """What a test placed makes room for the next one."""
    used = "ray_cluster" in request.fixturenames
    cluster: RayCluster | None = request.getfixturevalue("ray_cluster") if used else None
    yield
    if cluster is not None:
        for slot in list(cluster._rooms):
            cluster.give_back(slot)
        await Watcher().until_groups(0)


class Watcher:
    """Keeps what the controller publishes and waits for it."""

    def __init__(self) -> None:
        self.ready: dict[Slot, Member] = {}
        self._changed = asyncio.Event()

    num_watchers = 0

    def publish(self, workers: tuple[Member, ...]) -> None:
        self.ready = {member.slot: member for member in workers}
        self._changed.set()

    async def ask(self, endpoint: str, timeout_s: float) -> worker_pb2.WorkerStats:
        if psutil.Process(int(endpoint.split("|")[0])).status() == psutil.STATUS_STOPPED:
            raise TimeoutError
        return worker_pb2.WorkerStats()

    async def until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not reached():
                self._changed.clear()
                await self._changed.wait()

    async def until_replaced(self, slot: Slot, epoch: int) -> None:
        await self.until(lambda: slot in self.ready and self.ready[slot].epoch != epoch)

    async def until_groups(self, count: int) -> None:
        """Until Ray has no more room taken than that of so many workers."""
        from ray.util.placement_group import placement_group_table

        def created() -> int:
            return sum(group["state"] == "CREATED" for group in placement_group_table().values())

        while created() != count:  # noqa: ASYNC110 - Ray has no event for it
            await asyncio.sleep(0)


def own_processes() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


async def test_two_and_two_workers_live_on_this_machine_and_one_is_replaced_when_killed(
    ray_cluster: RayCluster, driver_directory: Path
) -> None:
    places = Places(ray_cluster, SPEC, MODEL, BLOCKS)
    await places.place_first(SLOTS)

    watcher = Watcher()
    controller = Controller(
        ray_cluster, places, watcher, SLOTS, ask=watcher.ask, note=lambda text: None
    )
    await controller.start()
    assert watcher.ready.keys() == set(SLOTS)
    assert len({member.pid for member in watcher.ready.values()}) == 4
    _assert_environment(watcher.ready[SLOTS[0]], driver_directory)
    _assert_loopback_only()

    victim = watcher.ready[SLOTS[2]]
    os.kill(victim.pid, signal.SIGKILL)
    await watcher.until_replaced(SLOTS[2], victim.epoch)
    assert watcher.ready.keys() == set(SLOTS)
    assert controller.restarts == 1

    await controller.change(ScaleTo(decode=3))
    await watcher.until(lambda: len(watcher.ready) == 5)
    await controller.change(FlipWorker("prefill-1"))
    await watcher.until(lambda: Slot("decode", 3, "decode") in watcher.ready)
    await controller.change(ScaleTo(decode=1))
    await watcher.until(lambda: len(watcher.ready) == 2)
    await watcher.until_groups(2)

    await controller.stop(0.0)


def _assert_environment(member: Member, driver_directory: Path) -> None:
    _, threads, directory, path = member.endpoint.split("|")
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


def test_daemons_that_serve_nobody_are_not_started(ray_cluster: RayCluster) -> None:
    programs = " ".join(word for process in own_processes() for word in _command(process))
    assert "raylet" in programs
    assert "monitor.py" not in programs


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []  # Workers of the test before may be ending.


async def test_a_stopped_worker_is_killed_and_replaced(ray_cluster, monkeypatch) -> None:
    monkeypatch.setattr("cluster.pool_state.HANG_LIMIT_S", 0.0)
    monkeypatch.setattr("cluster.controller.ASK_PAUSE_S", 0.05)
    places, watcher = Places(ray_cluster, SPEC, MODEL, BLOCKS), Watcher()
    slots = [SLOTS[0], SLOTS[2]]
    await places.place_first(slots)
    controller = Controller(
        ray_cluster, places, watcher, slots, ask=watcher.ask, note=lambda text: None
    )
    await controller.start()
    victim = watcher.ready[SLOTS[2]]
    os.kill(victim.pid, signal.SIGSTOP)
    await watcher.until_replaced(SLOTS[2], victim.epoch)
    with contextlib.suppress(psutil.NoSuchProcess):
        assert psutil.Process(victim.pid).status() == psutil.STATUS_ZOMBIE
    await controller.stop(0.0)


async def test_what_can_never_be_placed_is_refused_at_once(ray_cluster: RayCluster) -> None:
    with pytest.raises(Unavailable, match=r"a decode replica needs CPU 0.1, unicorn 1"):
        await ray_cluster.place({SLOTS[2]: need(CPU=0.1, unicorn=1.0)}, 60.0)


async def test_what_finds_no_room_in_time_is_refused_with_what_is_free(ray_cluster) -> None:
    import ray

    whole = need(CPU=ray.cluster_resources()["CPU"])
    squatter = ray.util.placement_group([dict(whole.rank)])
    assert squatter.wait(60)
    with pytest.raises(Unavailable, match=r"no room for decode-0 after 0.5 s"):
        await ray_cluster.place({SLOTS[2]: whole}, timeout_s=0.5)
    with pytest.raises(Unavailable, match=r"1 more replicas need CPU .* and only 0"):
        ray_cluster.check_room({SLOTS[2]: whole})
    ray.util.remove_placement_group(squatter)
    await ray_cluster.place({SLOTS[2]: whole}, timeout_s=60.0)
    with pytest.raises(Unavailable, match=r"2 replicas need CPU .* together"):
        ray_cluster.check_room({SLOTS[3]: whole})
    ray_cluster.give_back(SLOTS[2])
    await ray_cluster.place({SLOTS[3]: whole}, timeout_s=60.0)


async def test_room_on_a_node_that_dies_at_that_moment_is_given_back(
    ray_cluster: RayCluster, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        module = importlib.import_module("ray.util.placement_group")
        table = {"bundles_to_node_id": {0: "gone"}}
        patch.setattr(module, "placement_group_table", lambda group: table)
        with pytest.raises(Unavailable, match="node gone died"):
            await ray_cluster.place({SLOTS[2]: need(CPU=0.1)}, 60.0)
    await Watcher().until_groups(0)
    with pytest.raises(Unavailable, match=r"node (ab)+ did not tell its CPU cores"):
        await ray_cluster.node_cores("ab" * 28)
    assert await ray_cluster.place({SLOTS[2]: need(CPU=0.1)}, 60.0) == {
        SLOTS[2]: (ray_cluster.own_node,)
    }


async def test_a_worker_that_can_not_start_says_why(ray_cluster: RayCluster) -> None:
    slot = SLOTS[0]
    await ray_cluster.place({slot: need(CPU=0.1)}, 60.0)
    worker = ray_cluster.create_worker(slot, settings(SPEC, slot, model="/refused"))
    with pytest.raises(CrossdockError, match=r"^ValueError: no such model"):
        await worker.start()


async def test_a_replica_of_several_ranks_lives_and_dies_as_one(
    ray_cluster: RayCluster, tmp_path: Path
) -> None:
    slots, folder = list_slots(SPLIT), tmp_path / "model"
    folder.mkdir()
    places = Places(ray_cluster, SPLIT, replace(MODEL, path=folder), BLOCKS)
    watcher = Watcher()
    await places.place_first(slots)
    notes: list[str] = []
    controller = Controller(ray_cluster, places, watcher, slots, ask=watcher.ask, note=notes.append)
    await controller.start()
    assert _bundles() == [[0.001, 0.001], [0.003]], "a bundle for each stage"

    first = _rank_pids(folder)
    assert {worker: len(pids) for worker, pids in first.items()} == {"prefill-0": 3, "decode-0": 2}
    victim = first["prefill-0"][2]
    os.kill(victim, signal.SIGKILL)
    await watcher.until_replaced(slots[0], watcher.ready[slots[0]].epoch)
    [told] = [note for note in notes if "its process died" in note]
    assert told.startswith(f"worker prefill-0 (pid {first['prefill-0'][0]}): rank 2 (pid {victim})")
    second = _rank_pids(folder)
    assert {worker: len(pids) for worker, pids in second.items()} == {"prefill-0": 3, "decode-0": 2}
    assert not set(second["prefill-0"]) & set(first["prefill-0"]), "every rank is a new one"
    assert second["decode-0"] == first["decode-0"]

    await controller.change(ScaleTo(decode=2))
    await watcher.until(lambda: len(watcher.ready) == 3)
    await controller.change(FlipWorker("decode-0"))
    heir = Slot("prefill", 1, "prefill")
    await watcher.until(lambda: heir in watcher.ready)
    await watcher.until_groups(3)
    ranks = {worker: len(pids) for worker, pids in _rank_pids(folder).items()}
    assert ranks == {"prefill-0": 3, "prefill-1": 3, "decode-1": 2}
    assert _bundles() == [[0.001, 0.001], [0.003], [0.003]]

    await controller.stop(0.0)


def _rank_pids(folder: Path) -> dict[str, list[int]]:
    """Processes that live, by worker in order of names, as they noted themselves."""
    found: dict[str, list[int]] = {}
    for line in sorted(file.name for file in folder.iterdir()):
        worker, rank, pid = line.split(".")
        if psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).status() != "zombie":
            ranks = found.setdefault(worker, [])
            assert int(rank) == len(ranks), f"{worker} has two ranks {rank}"
            ranks.append(int(pid))
    return found


def _bundles() -> list[list[float]]:
    """CPUs of each bundle of each placement group."""
    from ray.util.placement_group import placement_group_table

    groups = [g for g in placement_group_table().values() if g["state"] == "CREATED"]
    return sorted([bundle["CPU"] for bundle in group["bundles"].values()] for group in groups)


async def test_the_rank_that_can_not_start_is_named_with_its_words(ray_cluster) -> None:
    slot = list_slots(SPLIT)[0]
    await ray_cluster.place({slot: replica_need(SPLIT, slot, own_ray=True)}, 60.0)
    told = settings(SPLIT, slot, model="/refused by rank 2")
    worker = ray_cluster.create_worker(slot, told)
    with pytest.raises(CrossdockError, match=r"^rank 2: ValueError: no such part"):
        await worker.start()
    worker.kill()


def test_a_cluster_that_is_not_there_is_said_in_plain_words() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        cluster = RayCluster(f"127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(Unavailable, match=r"no Ray cluster answers at 127.0.0.1"):
            cluster.start()
        cluster.shutdown()
