"""Clusters that run under a name: a file for each in a folder that is this user's alone.

Covers: claiming a name, telling where the cluster answers, finding it, knowing that it still
runs. A process is known by its id and the time at which it started, because ids are used again.
Does not cover: starting and ending clusters (``cluster.detached``).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from core.errors import AlreadyExists, InvalidField, PreconditionFailed

DEFAULT_NAME = "default"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class RunningCluster:
    """``started`` in clock ticks since boot; addresses are host:port, "" until it is ready.
    ``tls_…``: its own certificate, "" if it has none; ``door_…``: what its doors show, and a DNS
    name in it."""

    name: str
    pid: int
    started: int
    drain_s: float
    log: str = ""
    grpc: str = ""
    http: str = ""
    admin: str = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_name: str = ""
    door_cert: str = ""
    door_name: str = ""

    @property
    def ready(self) -> bool:
        return bool(self.admin)

    @property
    def alive(self) -> bool:
        return _start_time(self.pid) == self.started


class Claim:
    """This process is the cluster of that name, until ``release``."""

    def __init__(self, cluster: RunningCluster) -> None:
        self._cluster = cluster

    def tell_ready(self, grpc: str, http: str, admin: str) -> None:
        self._cluster = replace(self._cluster, grpc=grpc, http=http, admin=admin)
        _write(self._cluster)

    def release(self) -> None:
        with _locked_folder():
            _file(self._cluster.name).unlink(missing_ok=True)


def claim_name(
    name: str, drain_s: float, log: str = "", files: Mapping[str, str] | None = None
) -> Claim:
    """``files``: its ``tls_…`` and ``door_…``. Raises ``AlreadyExists`` if a cluster runs under
    this name."""
    check_name(name)
    pid = os.getpid()
    cluster = RunningCluster(name, pid, _start_time(pid) or 0, drain_s, log, **(files or {}))
    with _locked_folder():
        other = find_running(name)
        if other is not None:
            raise runs_already(other)
        _write(cluster)
    return Claim(cluster)


def find_running(name: str) -> RunningCluster | None:
    """The living cluster of this name; files of dead ones are passed over."""
    check_name(name)
    try:
        told = json.loads(_file(name).read_text(encoding="utf-8"))
        cluster = RunningCluster(
            **{field.name: told[field.name] for field in fields(RunningCluster)}
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return cluster if cluster.alive else None


def find_by_address(address: str) -> RunningCluster | None:
    """The living cluster with a door at ``address`` (host:port)."""
    doors = ((cluster, (cluster.grpc, cluster.http, cluster.admin)) for cluster in _all_running())
    return next((cluster for cluster, places in doors if address in places), None)


def does_it_run() -> str:
    """What a command asks whom nobody answers, with the names of clusters that it may mean."""
    names = [f"`--name {c.name}`" for c in _all_running() if c.name != DEFAULT_NAME]
    asked = "is `crossdock serve` running?"
    return f"{asked} Here run {', '.join(names)}" if names else asked


def _all_running() -> Iterator[RunningCluster]:
    try:
        names = sorted(path.stem for path in state_folder().glob("*.json"))
    except (OSError, PreconditionFailed):
        return
    for name in names:
        cluster = find_running(name)
        if cluster is not None:
            yield cluster


def find_address(door: str, name: str | None, default: str) -> str:
    """Where ``door`` ("grpc", "http" or "admin") of the cluster called ``name`` answers. Without a
    name: that of the default one, or ``default`` if none runs under that name.

    Raises ``PreconditionFailed`` if it does not run, or is still starting.
    """
    cluster = find_running(name or DEFAULT_NAME)
    if cluster is None:
        if name is not None:
            raise not_running(name)
        return default
    if not cluster.ready:
        raise PreconditionFailed(
            f"the cluster {cluster.name!r} is still starting; its log is {cluster.log}",
            reason="STILL_STARTING",
        )
    address: str = getattr(cluster, door)
    return address


def not_running(name: str) -> PreconditionFailed:
    return PreconditionFailed(
        f"no cluster named {name!r} runs; `crossdock up --name {name}` starts one (a `serve` "
        "without --name ends by Ctrl-C where it runs)",
        reason="NOT_RUNNING",
        metadata={"name": name},
    )


def runs_already(cluster: RunningCluster) -> AlreadyExists:
    option = "" if cluster.name == DEFAULT_NAME else f" --name {cluster.name}"
    return AlreadyExists(
        f"a cluster named {cluster.name!r} runs already (pid {cluster.pid}); end it with "
        f"`crossdock down{option}`, or choose another --name",
        reason="RUNS_ALREADY",
        metadata={"name": cluster.name, "pid": str(cluster.pid)},
    )


def check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        fix = "use at most 64 letters, digits, dots, dashes or underscores"
        raise InvalidField("--name", name, fix)


def state_folder() -> Path:
    """Made if it is not there. Raises ``PreconditionFailed`` if others could write into it."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if not Path(runtime).is_absolute() or not Path(runtime).is_dir():
        runtime = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    folder = Path(runtime) / "crossdock"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PreconditionFailed(
            f"{folder} must belong to you alone (mode 0700): it says which processes to end",
            reason="UNSAFE_FOLDER",
        )
    return folder


def _file(name: str) -> Path:
    return state_folder() / f"{name}.json"


def _write(cluster: RunningCluster) -> None:
    target = _file(cluster.name)
    fresh = target.with_suffix(f".{cluster.pid}.new")
    fresh.write_text(json.dumps(asdict(cluster)), encoding="utf-8")
    fresh.replace(target)


@contextlib.contextmanager
def _locked_folder() -> Iterator[None]:
    """One process at a time claims or releases a name."""
    descriptor = os.open(state_folder(), os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _start_time(pid: int) -> int | None:
    """Clock ticks since boot; None if there is no such process, or only its exit code is left."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name of the program, in brackets, may hold spaces and brackets itself.
    after_name = text.rpartition(")")[2].split()
    return None if after_name[0] in "ZX" else int(after_name[19])
