"""A Ray node without resources in this very container or host: what a driver needs to join others.

Ray lets a program take part in a cluster only from one of its nodes. This one offers neither CPUs
nor GPUs, so no worker is ever placed on it. It ends with whoever started it.
Does not cover: joining through it (``cluster.ray_cluster``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence

from cluster.ray_environment import ray_unavailable, require_reachable
from core.errors import Unavailable

_STARTED = "block forever"
_PAUSE_S = 2.0
_START_TIMEOUT_S = 120.0
_STOP_GRACE_S = 15.0
_OBJECT_STORE_BYTES = 100 * 2**20


class RayNode:
    """``head``: host:port of the cluster; ``own_address``: IP address of this host, "" leaves that
    to Ray."""

    def __init__(self, head: str, own_address: str = "") -> None:
        self._head = head
        self._own_address = own_address
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self, patience_s: float) -> None:
        """Returns when the node is part of the cluster, whose head may take ``patience_s`` seconds
        to come. Raises ``Unavailable``; no process is left then."""
        await self._wait_for_head(patience_s)
        self._process = await asyncio.create_subprocess_exec(
            *self.command(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            await self._wait_started()
        except BaseException:
            await self.stop()
            raise
        self._reader = asyncio.create_task(self._discard_output())

    async def wait_closed(self) -> int:
        """Its exit code, when it has ended."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self) -> None:
        """Ends all of its processes."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            # Not by the process's own method: that may take its exit code away from who waits.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), _STOP_GRACE_S)
        except TimeoutError:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if self._reader is not None:
            await self._reader

    def command(self) -> Sequence[str]:
        address = ("--node-ip-address", self._own_address) if self._own_address else ()
        return (
            *(sys.executable, "-P", "-m", "cluster.ray_node_child", str(os.getpid())),
            *("start", "--address", self._head, "--block", *address),
            *("--num-cpus", "0", "--num-gpus", "0"),
            *("--object-store-memory", str(_OBJECT_STORE_BYTES), "--disable-usage-stats"),
        )

    async def _wait_for_head(self, patience_s: float) -> None:
        now = asyncio.get_running_loop().time
        deadline = now() + patience_s
        while True:
            try:
                return await asyncio.to_thread(require_reachable, self._head)
            except Unavailable:
                if now() >= deadline:
                    raise
            await asyncio.sleep(_PAUSE_S)

    async def _wait_started(self) -> None:
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await self._read_until_started()
        except TimeoutError:
            raise ray_unavailable(
                f"the node did not become part of the Ray cluster at {self._head} within "
                f"{_START_TIMEOUT_S:g} s"
            ) from None

    async def _read_until_started(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        said: list[str] = []
        while line := (await self._process.stdout.readline()).decode(errors="replace"):
            if _STARTED in line:
                return
            said = [*said[-9:], line.strip()]
        raise ray_unavailable(
            f"no Ray node could join {self._head}: {' '.join(filter(None, said))}"
        )

    async def _discard_output(self) -> None:
        """A full pipe would stop it."""
        assert self._process is not None
        assert self._process.stdout is not None
        while await self._process.stdout.read(4096):
            pass
