"""What Ray needs around it: a folder of its own, environment variables, a current directory.

Covers: preparing that before Ray is imported, and a first look at a cluster that is to be joined.
No Ray call is here (``cluster.ray_cluster``), because some of this must come before its import.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from core.errors import Unavailable

_JOIN_TIMEOUT_S = 5.0
_FOLDER_PREFIX = "crossdock-"
_LOCAL_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "AUTOSCALER_METRIC_PORT": "0",
    # Without this Ray replaces 127.0.0.1 by the address of the network card and listens on all
    # interfaces. It names two systems but works on Linux too.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


def new_folder() -> Path:
    """An empty folder for this run. Removes those of runs that were killed."""
    parent = Path(tempfile.gettempdir())
    _sweep_folders(parent)
    return Path(tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{os.getpid()}-", dir=parent))


def prepare_environment(folder: Path) -> None:
    """For a Ray of our own, whose token ``folder`` keeps. Must come before Ray's first import: it
    reads some of these there."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(_auth_token())
    os.environ.update(_LOCAL_ENVIRONMENT)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
    os.environ.pop("RAY_AUTH_TOKEN", None)
    # A variable of the user's shell must not make us join somebody's cluster.
    os.environ.pop("RAY_ADDRESS", None)


@contextlib.contextmanager
def empty_current_directory(folder: Path) -> Iterator[None]:
    """Ray puts the driver's current directory on its workers' path: files there hide modules."""
    empty = folder / "empty"
    empty.mkdir()
    before = os.getcwd()
    os.chdir(empty)
    try:
        yield
    finally:
        os.chdir(before)


def require_reachable(address: str) -> None:
    """Raises ``Unavailable`` at once; Ray itself would try for minutes. Names such as "auto" are
    left to Ray."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_JOIN_TIMEOUT_S).close()
    except OSError as error:
        raise ray_unavailable(f"no Ray cluster answers at {address}: {error.strerror}") from None


def ray_unavailable(message: str) -> Unavailable:
    return Unavailable(message, reason="RAY_UNAVAILABLE")


def _sweep_folders(parent: Path) -> None:
    """Their names hold the id of a dead process."""
    for folder in parent.glob(f"{_FOLDER_PREFIX}*-*"):
        pid = folder.name.removeprefix(_FOLDER_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _auth_token() -> str:
    """One per process: Ray reads it once and keeps it, also for the next cluster."""
    return secrets.token_hex(32)
