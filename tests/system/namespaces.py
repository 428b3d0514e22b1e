"""Two network namespaces joined by a cable (a veth pair): two hosts, as far as sockets can tell."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Namespace:
    """One end of the cable."""

    name: str
    address: str

    def command(self, *arguments: str) -> list[str]:
        """The same program in this namespace."""
        return [_ip(), "netns", "exec", self.name, *arguments]

    def has_processes(self) -> bool:
        return bool(self._processes())

    def kill_agents(self) -> None:
        """What Ray's nodes leave behind if they end without their head."""
        for pid in self._processes():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_text().startswith("ray::"):
                    os.kill(pid, signal.SIGKILL)

    def _processes(self) -> list[int]:
        command = [_ip(), "netns", "pids", self.name]
        listed = subprocess.run(command, capture_output=True, text=True, check=True)
        return [int(pid) for pid in listed.stdout.split()]


def why_not() -> str:
    """What is missing to make namespaces here; "" if they can be made."""
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    if not _ip():
        return "making network namespaces needs `ip` (iproute2)"
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return "" if probe.returncode == 0 else f"the kernel allows none here: {probe.stderr.decode()}"


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Namespace, Namespace]]:
    """Removed at the end with everything in them."""
    first = Namespace(f"crossdock-{os.getpid()}-a", "10.77.0.1")
    second = Namespace(f"crossdock-{os.getpid()}-b", "10.77.0.2")
    with contextlib.ExitStack() as stack:
        for namespace in (first, second):
            _run("netns", "add", namespace.name)
            stack.callback(_run, "netns", "delete", namespace.name)
            _run("-n", namespace.name, "link", "set", "lo", "up")
        _run(
            *("-n", first.name, "link", "add", "cable", "type", "veth"),
            *("peer", "name", "cable", "netns", second.name),
        )
        for namespace, other in ((first, second), (second, first)):
            _run("-n", namespace.name, "address", "add", f"{namespace.address}/24", "dev", "cable")
            _run("-n", namespace.name, "link", "set", "cable", "up")
            # Ray finds out its own address by asking for a route to somewhere.
            _run("-n", namespace.name, "route", "add", "default", "via", other.address)
        yield first, second


def _ip() -> str:
    # Often outside of the search path of those who are not root.
    return shutil.which("ip", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or ""


def _run(*arguments: str) -> None:
    subprocess.run([_ip(), *arguments], check=True)
