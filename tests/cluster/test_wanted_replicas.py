"""Numbers of replicas in a config file that changes while the cluster runs."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from cluster.pool_messages import ScaleTo
from cluster.spec_file import read_spec
from cluster.wanted import Wanted
from cluster.wanted_replicas import WantedReplicas
from core.errors import InvalidField, Unavailable


def write(config: Path, decode: int, more: str = "") -> None:
    config.write_text(f"{{pools: {{decode: {{replicas: {decode}}}}}{more}}}")


def damage(config: Path) -> None:
    config.write_text("{pools: {decode:")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.yaml"
    write(path, 2)
    return path


def test_a_file_as_it_was_wants_nothing_new(config: Path) -> None:
    assert WantedReplicas(config, read_spec(config)).look() is None


def test_other_numbers_are_told(config: Path) -> None:
    replicas = WantedReplicas(config, read_spec(config))
    write(config, 3)
    assert replicas.look() == Wanted(1, 3)


def test_what_takes_a_restart_is_refused_with_that_reason(config: Path) -> None:
    replicas = WantedReplicas(config, read_spec(config))
    write(config, 3, ", max_model_len: 64")
    with pytest.raises(InvalidField, match="more than the numbers of replicas, which takes a rest"):
        replicas.look()


class Cluster:
    """Has no room for the first ``refusals`` changes."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.changes: list[ScaleTo] = []
        self.noted: list[str] = []
        self.changed = asyncio.Event()

    async def change(self, wish: ScaleTo) -> None:
        self.changes.append(wish)
        if len(self.changes) <= self.refusals:
            raise Unavailable("no node has room", reason="NOT_ENOUGH_RESOURCES")
        self.changed.set()


async def test_numbers_are_wanted_until_there_is_room_and_said_once(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.wanted_replicas.PAUSE_S", 0.0)
    replicas, cluster = WantedReplicas(config, read_spec(config)), Cluster(refusals=3)
    write(config, 4)
    following = asyncio.create_task(replicas.follow(cluster.change, cluster.noted.append))
    await asyncio.wait_for(cluster.changed.wait(), 10)
    following.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await following
    assert cluster.changes == [ScaleTo(1, 4)] * 4
    assert [note.partition(":")[0] for note in cluster.noted] == [
        "the config's replicas are not taken over yet",
        "scaling to 1P",
    ]
    assert replicas.look() is None


async def test_a_file_that_is_being_written_ends_nothing(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.wanted_replicas.PAUSE_S", 0.0)
    replicas, noted = WantedReplicas(config, read_spec(config)), asyncio.Queue[str]()
    damage(config)
    cluster = Cluster(refusals=0)
    following = asyncio.create_task(replicas.follow(cluster.change, noted.put_nowait))
    assert "is not YAML" in await asyncio.wait_for(noted.get(), 10)
    write(config, 5)
    await asyncio.wait_for(cluster.changed.wait(), 10)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert cluster.changes == [ScaleTo(1, 5)]
