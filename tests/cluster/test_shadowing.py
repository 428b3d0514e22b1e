"""Modules of other people that hide ours are found and named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cluster.shadowing import find_shadowed, our_root, require_modules_from


def test_nothing_shadows_this_installation() -> None:
    assert find_shadowed() == []
    require_modules_from(str(our_root()))


def test_a_package_earlier_on_the_path_is_named(tmp_path: Path, monkeypatch) -> None:
    impostor = tmp_path / "zebra_module"
    impostor.mkdir()
    (impostor / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    [found] = find_shadowed(tmp_path / "elsewhere", ("zebra_module",))
    assert str(found) == f"module `zebra_module` is shadowed by {impostor}"


def test_a_single_file_earlier_on_the_path_is_named(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "zebra_file.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    [found] = find_shadowed(tmp_path / "elsewhere", ("zebra_file",))
    assert found.found == str(tmp_path / "zebra_file.py")


def test_the_wire_format_may_lie_under_protos(tmp_path: Path, monkeypatch) -> None:
    package = tmp_path / "protos" / "zebra_wire"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "protos"))
    assert find_shadowed(tmp_path, ("zebra_wire",)) == []


def test_a_missing_module_is_named() -> None:
    [found] = find_shadowed(Path(sys.prefix), ("zebra_missing",))
    assert str(found) == "module `zebra_missing` is not installed"


def test_a_worker_refuses_to_run_other_peoples_modules(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match="module `core` is shadowed by"):
        require_modules_from(str(tmp_path))
