"""What this machine is called, and which of its parts this process may use. No torch in here."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path

from native.build import library_path, variants

_CPUINFO = Path("/proc/cpuinfo")
_GPUS = Path("/proc/driver/nvidia/gpus")


def usable_cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def hardware_name(device: str) -> str:
    """The same for all machines of a kind: "AMD EPYC, 2 cores", "NVIDIA H200"."""
    if device == "cuda":
        return _gpu_name()
    count = len(usable_cores())
    return f"{_cpu_name()}, {count} core{'s' if count > 1 else ''}"


def visible_gpus() -> list[str]:
    """Those that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        # What comes after the first one that is none does not count; -1 hides all.
        parts = (part.strip() for part in chosen.split(","))
        return list(takewhile(lambda part: part not in ("", "-1"), parts))
    return [str(index) for index in range(len(list(_GPUS.glob("*/information"))))]


def kernels_name(setting: str) -> str:
    """``engine.kernels``, and which compiled ones there are for a CPU: their names change with
    their sources."""
    paths = [library_path(variant) for variant in variants()]
    built = sorted(path.name for path in paths if path.exists())
    return f"{setting} ({', '.join(built) or 'none compiled'}, torch {version('torch')})"


def _cpu_name(cpuinfo: Path = _CPUINFO) -> str:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpu_name(folder: Path = _GPUS) -> str:
    for file in sorted(folder.glob("*/information")):
        for line in file.read_text().splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    return "GPU"
