"""Clusters in the background: `crossdock serve` as a process of its own, started and ended.

Does not cover: what that process does (``cluster.launch``), how it is found (``cluster.running``).
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.running import (
    RunningCluster,
    find_running,
    not_running,
    runs_already,
    state_folder,
)
from core.errors import Unavailable

# Beyond its drain time a cluster gets this long to end its processes.
STOP_GRACE_S = 60.0
_POLL_S = 0.1


class StartFailed(Unavailable):
    """The cluster ended before it was ready. ``exit_code`` is that of `crossdock serve`."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message, reason="START_FAILED")
        self.exit_code = exit_code


def start_detached(name: str, serve_arguments: Sequence[str]) -> RunningCluster:
    """Returns when the cluster is ready. If it does not become so, or this is interrupted, nothing
    of it is left.

    Raises ``AlreadyExists`` if the name is taken, ``StartFailed`` with what the log says.
    """
    other = find_running(name)
    if other is not None:
        raise runs_already(other)
    log = state_folder() / f"{name}.log"
    said_before = log.stat().st_size if log.exists() else 0
    process = _spawn(name, serve_arguments, log)
    try:
        return _wait_ready(process, name, log, said_before)
    except BaseException:
        _end_child(process)
        raise


def end_detached(name: str) -> RunningCluster:
    """Lets the cluster finish its requests, ends it, and returns when it is gone.

    Raises ``PreconditionFailed`` if none runs under this name, ``Unavailable`` if it does not end.
    """
    cluster = find_running(name)
    if cluster is None:
        raise not_running(name)
    try:
        handle = os.pidfd_open(cluster.pid)
    except ProcessLookupError:
        return cluster
    try:
        # Only now the id can't come to mean another process.
        if cluster.alive and not _end(handle, cluster.drain_s + STOP_GRACE_S):
            raise Unavailable(
                f"the cluster {name!r} (pid {cluster.pid}) has not ended; its log is {cluster.log}",
                reason="DOES_NOT_END",
            )
    finally:
        os.close(handle)
    return cluster


def _end(handle: int, patience_s: float) -> bool:
    """The first signal drains, the second ends at once."""
    for patience in (patience_s, STOP_GRACE_S):
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        if select.select([handle], [], [], patience)[0]:
            return True
    return False


def _spawn(name: str, serve_arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    # -P: a file in the current directory must not hide our modules.
    command = [sys.executable, "-P", "-m", "cluster.cli.main", "serve", *serve_arguments]
    # Appended to: another `up` of the same name may be writing there at this moment.
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as output:
        return subprocess.Popen(
            [*command, "--name", name, "--log", str(log)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # The signals of our terminal are not for it.
            start_new_session=True,
        )


def _wait_ready(
    process: subprocess.Popen[bytes], name: str, log: Path, said_before: int
) -> RunningCluster:
    while True:
        code = process.poll()
        if code is not None:
            raise StartFailed(_reason(log, said_before), code if code > 0 else 1)
        cluster = find_running(name)
        if cluster is not None and cluster.ready and cluster.pid == process.pid:
            return cluster
        time.sleep(_POLL_S)


def _reason(log: Path, said_before: int) -> str:
    """What `serve` said of its end, else the last that it said."""
    text = log.read_bytes()[said_before:].decode(errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    reason = "\n".join(said) or "\n".join(lines[-5:]) or "it said nothing"
    return f"{reason}\n(the cluster did not start; its log is {log})"


def _end_child(process: subprocess.Popen[bytes]) -> None:
    for patience in (STOP_GRACE_S, STOP_GRACE_S):
        if process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    if process.poll() is None:
        process.kill()
