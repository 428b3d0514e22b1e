"""Compiles the native kernels while the package is built; it can be built without a compiler."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeKernels(BuildHookInterface[Any]):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        build = _module(Path(self.root) / "native/build.py")
        try:
            paths = build.build()
        except build.NotBuilt as error:
            reason = str(error).splitlines()[0]
            self.app.display_warning(f"warning: no kernels are compiled, all is slower: {reason}")
            return
        if version == "editable":
            return
        build_data["tag"] = f"py3-none-linux_{platform.machine()}"
        build_data["pure_python"] = False
        for path in paths:
            build_data["force_include"][str(path)] = str(path.relative_to(self.root))


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("native_build", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
