"""How much memory this machine has left, in bytes."""

from __future__ import annotations

from pathlib import Path


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that can be taken without swapping, as the kernel estimates them."""
    for line in meminfo.read_text().splitlines():
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            return int(amount.split()[0]) * 1024
    raise OSError(f"{meminfo} has no MemAvailable")
