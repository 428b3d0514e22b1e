"""What a test may have left behind: threads, processes and shared memory of ours."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import psutil

_OUR_THREADS = ("engine-loop", "shm-export", "tcp-accept", "tcp-serve", "kv-copy", "kv-describe")
_OUR_PROGRAMS = ("router.main", "cluster.cli.main")


def list_leftovers() -> set[str]:
    """Names of everything of ours that is alive in and below this process."""
    return _threads() | _processes() | _shared_memory()


def _threads() -> set[str]:
    return {
        f"thread {thread.name} {thread.ident}"
        for thread in threading.enumerate()
        if thread.name.startswith(_OUR_THREADS)
    }


def _processes() -> set[str]:
    children = psutil.Process().children(recursive=True)
    return {
        f"process {child.pid}"
        for child in children
        if any(program in _command(child) for program in _OUR_PROGRAMS)
    }


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []  # It ended while we looked.


def _shared_memory() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(entry)
        except FileNotFoundError:
            continue
        if "memfd:crossdock" in target:
            found.add(f"descriptor {entry.name} of {target}")
    return found
