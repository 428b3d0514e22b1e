"""Which compiled library is loaded, and what becomes of a damaged one.

Does not cover: what its functions compute (test_linear and the others).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from native_variants import runnable

import native.build as native_build
from native import library
from native.build import NotBuilt, build, is_whole, library_path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40_000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_another_program(path: Path) -> None:
    shutil.copy(sys.executable, path)


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").touch()


def change_one_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


damages = pytest.mark.parametrize(
    "damage",
    [truncate, empty, replace_by_another_program, replace_by_a_folder, change_one_byte],
)


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Copies of the libraries that this machine can run, best first, in a folder of their own."""
    original = [library_path(name) for name in runnable()]
    if not original or not all(path.exists() for path in original):
        pytest.skip("the native kernels are not built here")
    monkeypatch.setattr(native_build, "BUILT", tmp_path)
    return [Path(shutil.copy(path, tmp_path)) for path in original]


def choose() -> library.Choice:
    """As a new process would."""
    found: library.Choice = library.choice.__wrapped__()
    return found


def test_the_best_variant_is_loaded(built: list[Path]) -> None:
    found = choose()
    best = runnable()[0]
    assert (found.variant, found.reason, found.damaged) == (best, f"compiled for {best}", False)


@damages
def test_the_next_variant_stands_in_for_a_damaged_one(
    built: list[Path], damage: Callable[[Path], None]
) -> None:
    if len(built) < 2:
        pytest.skip("this machine runs one variant only")
    damage(built[0])
    found = choose()
    assert found.library is not None
    assert found.variant == runnable()[1]
    assert found.damaged
    assert f"the library for {runnable()[0]} can't be loaded: " in found.reason
    assert "run `python -m native.build`" in found.reason


@damages
def test_without_a_whole_library_there_is_none(
    built: list[Path], damage: Callable[[Path], None]
) -> None:
    for path in built:
        damage(path)
    found = choose()
    assert found.library is None
    assert found.damaged
    assert found.reason.startswith(f"the library for {runnable()[0]} can't be loaded: ")


def test_a_library_without_the_functions_is_not_used(built: list[Path]) -> None:
    for path in built:
        path.write_bytes(native_build._sealed(Path(sys.executable).read_bytes()))
    assert choose().library is None


@pytest.fixture
def compiler(built: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for g++ (which takes a minute): gives what g++ gave for the first variant."""
    compiled, script = tmp_path / "compiled", tmp_path / "compiler"
    compiled.write_bytes(built[0].read_bytes()[: -native_build._DIGEST_BYTES])
    script.write_text(f'#!/bin/sh\nfor last; do :; done\ncp "{compiled}" "$last"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return script


@damages
def test_building_replaces_a_damaged_library(
    built: list[Path], compiler: Path, damage: Callable[[Path], None]
) -> None:
    damage(built[0])
    kept = built[-1].stat().st_mtime_ns
    assert library_path(runnable()[0]) in build()
    assert is_whole(built[0])
    assert not choose().damaged
    if len(built) > 1:
        assert built[-1].stat().st_mtime_ns == kept


def test_libraries_of_other_sources_are_removed(built: list[Path], compiler: Path) -> None:
    old = built[0].parent / "avx2-0123456789abcdef.so"
    old.touch()
    build()
    assert not old.exists()


def test_a_compiler_that_fails_is_told_where_nothing_else_is_left(
    built: list[Path], compiler: Path
) -> None:
    compiler.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    for path in built:
        empty(path)
    with pytest.raises(NotBuilt, match="broken"):
        build()
    assert not list(built[0].parent.glob("*.tmp"))
