"""What a test may have left behind: threads, processes and shared memory of ours."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil

_OUR_THREADS = (
    "engine-",
    "shm-export",
    "tcp-accept",
    "tcp-serve",
    "kv-copy",
    "kv-describe",
    "rank-",
    "nccl-",
)
_THREAD_PATIENCE_S = 20.0
_OUR_PROGRAMS = ("router.main", "cluster.cli.main")
# Not every kernel is built with it.
_KERNEL_LISTS_CHILDREN = Path("/proc/thread-self/children").exists()


def list_leftovers() -> set[str]:
    """Names of everything of ours that is alive in and below this process."""
    return _threads() | _processes() | _shared_memory()


def await_ending_threads(before: set[str]) -> None:
    """A thread that was told to end may still be on its way out; one that was not runs on."""
    for thread in threading.enumerate():
        if thread.name.startswith(_OUR_THREADS) and _name_of(thread) not in before:
            thread.join(_THREAD_PATIENCE_S)


def _name_of(thread: threading.Thread) -> str:
    return f"thread {thread.name} {thread.ident}"


def _threads() -> set[str]:
    return {
        _name_of(thread) for thread in threading.enumerate() if thread.name.startswith(_OUR_THREADS)
    }


def _processes() -> set[str]:
    return {
        f"process {pid}"
        for pid in _descendants()
        if any(program in _command(pid) for program in _OUR_PROGRAMS)
    }


def _descendants() -> Iterator[int]:
    """Most tests have none: that is found out without a look at anything."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return iter(())
    if not _KERNEL_LISTS_CHILDREN:
        return (child.pid for child in psutil.Process().children(recursive=True))
    return _below(os.getpid())


def _below(pid: int) -> Iterator[int]:
    """As the kernel lists them: psutil reads all processes of the machine, for every test."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except FileNotFoundError:
        return  # It ended while we looked.
    for task in tasks:
        for child in map(int, _children_of(task).split()):
            yield child
            yield from _below(child)


def _children_of(task: Path) -> str:
    try:
        return (task / "children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""  # The thread ended while we looked; its children went to another one.


def _command(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
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
