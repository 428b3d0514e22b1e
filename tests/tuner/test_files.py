"""Files that appear complete or stay as they were."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from core.errors import InvalidField
from tuner.files import check_writable, write_files


def test_all_files_are_replaced_and_no_draft_is_left(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("old")
    write_files({tmp_path / "a.yaml": "new", tmp_path / "b.png": b"\x89PNG"})
    assert (tmp_path / "a.yaml").read_text() == "new"
    assert (tmp_path / "b.png").read_bytes() == b"\x89PNG"
    assert sorted(os.listdir(tmp_path)) == ["a.yaml", "b.png"]


def test_a_full_disk_leaves_all_files_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one fails; the first was written by then, but not put in its place."""
    (tmp_path / "a").write_text("old")
    synced = []

    def sync(handle: int) -> None:
        synced.append(handle)
        if len(synced) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(InvalidField, match=r"b.*No space left on device") as caught:
        write_files({tmp_path / "a": "new", tmp_path / "b": "new"}, "--plot")
    assert caught.value.metadata["field"] == "--plot"
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_folder_that_vanished_is_told_by_the_files_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidField, match=r"gone.*can't be written: No such file"):
        write_files({tmp_path / "gone" / "cluster.yaml": ""})


def test_a_folder_is_tried_before_the_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "new.yaml")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InvalidField, match="is a folder"):
        check_writable(tmp_path)
    with pytest.raises(InvalidField, match="there is no folder"):
        check_writable(tmp_path / "gone" / "a.yaml")
    # Permissions of this one look right even to root, but no file can be made in it.
    with pytest.raises(InvalidField, match="can't be written"):
        check_writable(Path("/proc/cluster.yaml"))
