"""Names of clusters that run: claimed once, found while they live, never mistaken for another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.running import claim_name, find_address, find_running, state_folder
from core.errors import AlreadyExists, InvalidField, PreconditionFailed


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "crossdock"


def test_a_name_is_claimed_found_and_released(runtime: Path) -> None:
    claim = claim_name("mine", drain_s=3.0, log="/a.log")
    found = find_running("mine")
    assert found is not None
    assert (found.pid, found.drain_s, found.log, found.ready) == (os.getpid(), 3.0, "/a.log", False)
    claim.tell_ready("h:1", "h:2", "h:3")
    found = find_running("mine")
    assert found is not None
    assert (found.grpc, found.http, found.admin, found.ready) == ("h:1", "h:2", "h:3", True)
    claim.release()
    assert find_running("mine") is None
    assert list(runtime.iterdir()) == []


def test_a_name_is_taken_once() -> None:
    claim_name("mine", 1.0)
    with pytest.raises(AlreadyExists, match=f"runs already .pid {os.getpid()}") as refused:
        claim_name("mine", 1.0)
    assert "`crossdock down --name mine`" in str(refused.value)
    claim_name("other", 1.0)


def change(runtime: Path, **fields: object) -> None:
    file = runtime / "mine.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_what_a_dead_process_left_is_passed_over_and_claimed_again(runtime: Path) -> None:
    claim_name("mine", 1.0)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    change(runtime, pid=ended.pid)
    ended.wait()
    assert find_running("mine") is None
    claim_name("mine", 1.0)
    assert find_running("mine") is not None


def test_a_process_that_only_has_the_same_id_is_not_the_cluster(runtime: Path) -> None:
    claim_name("mine", 1.0)
    change(runtime, started=1)
    assert find_running("mine") is None


@pytest.mark.parametrize("content", ["", "[]", "{", '{"pid": 1}'])
def test_a_damaged_file_is_no_cluster(runtime: Path, content: str) -> None:
    claim_name("mine", 1.0)
    (runtime / "mine.json").write_text(content)
    assert find_running("mine") is None


@pytest.mark.parametrize("name", ["", "..", "a/b", "x" * 65, "a b"])
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidField, match="--name"):
        claim_name(name, 1.0)


def test_addresses_are_found_by_name_or_are_the_default_ones() -> None:
    assert find_address("admin", None, "d:1") == "d:1"
    with pytest.raises(PreconditionFailed, match="no cluster named 'mine' runs"):
        find_address("admin", "mine", "d:1")
    claim = claim_name("default", 1.0)
    with pytest.raises(PreconditionFailed, match="still starting"):
        find_address("admin", None, "d:1")
    claim.tell_ready("h:1", "h:2", "h:3")
    assert [find_address(door, None, "") for door in ("grpc", "http", "admin")] == [
        "h:1",
        "h:2",
        "h:3",
    ]


def test_the_folder_is_this_users_alone(runtime: Path) -> None:
    assert state_folder() == runtime
    assert runtime.stat().st_mode & 0o777 == 0o700
    runtime.chmod(0o777)
    with pytest.raises(PreconditionFailed, match="must belong to you alone"):
        claim_name("mine", 1.0)


def test_without_a_runtime_folder_it_lies_below_the_home(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_folder() == tmp_path / ".local" / "state" / "crossdock"
