"""What becomes of the compiled kernels when a wheel is built."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import native.build as native_build
from native.build import NotBuilt, library_path

ROOT = Path(native_build.__file__).parents[1]


class Screen:
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def display_warning(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "_module", lambda path: native_build)
    return module


def built_with(hook: ModuleType, screen: Screen, version: str = "standard") -> dict[str, Any]:
    """What the hook tells hatchling of the wheel."""
    data: dict[str, Any] = {"force_include": {}}
    arguments: dict[str, Any] = {
        "root": str(ROOT), "config": {}, "build_config": None, "metadata": None,
        "directory": "", "target_name": "wheel", "app": screen,
    }  # fmt: skip
    hook.NativeKernels(**arguments).initialize(version, data)
    return data


def test_without_a_compiler_one_line_warns_and_the_wheel_is_for_any_machine(
    hook: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> list[Path]:
        raise NotBuilt("no C++ compiler was found: install g++\nand more")

    monkeypatch.setattr(native_build, "build", fail)
    screen = Screen()
    assert built_with(hook, screen) == {"force_include": {}}
    [warning] = screen.warnings
    assert warning.startswith("warning: no kernels are compiled")
    assert warning.endswith("install g++")


def test_what_was_compiled_is_in_the_wheel_and_binds_it_to_the_machine(
    hook: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = library_path("avx2")
    monkeypatch.setattr(native_build, "build", lambda: [path])
    screen = Screen()
    data = built_with(hook, screen)
    assert data["force_include"] == {str(path): f"native/built/{path.name}"}
    assert not data["pure_python"]
    assert data["tag"].startswith("py3-none-linux_")
    assert screen.warnings == []
    assert built_with(hook, screen, "editable") == {"force_include": {}}
