"""The router as its own process: started, watched, drained. It has no Ray in it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
from collections.abc import Sequence

import aiohttp

from core.errors import Unavailable
from router.settings import RouterSettings, settings_to_json

READY_TIMEOUT_S = 60.0
# Beyond its drain time the router gets this long to close its connections.
STOP_GRACE_S = 10.0

# -P: a file in the current directory must not hide our modules.
_PROGRAM = (sys.executable, "-P", "-m", "router.main")

_READY_LINE = re.compile(r"ready grpc=(\S+) http=(\S+)")
_POLL_S = 0.05


class RouterProcess:
    """A running router and the addresses (host:port) that it serves at."""

    def __init__(
        self, process: asyncio.subprocess.Process, drain_s: float, scheme: str = "http"
    ) -> None:
        self._process = process
        self._scheme = scheme
        self._drain_s = drain_s
        self._reader: asyncio.Task[None] | None = None
        self.grpc_address = ""
        self.http_address = ""

    @classmethod
    async def start(
        cls, settings: RouterSettings, program: Sequence[str] = _PROGRAM
    ) -> RouterProcess:
        """Starts it; call ``wait_ready`` next. ``program`` is told the settings on its standard
        input."""
        process = await _spawn(program, settings_to_json(settings))
        scheme = "http" if settings.doors is None else "https"
        return cls(process, settings.drain_s, scheme)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Until it can answer prompts. Raises ``Unavailable`` if it ends or takes too long."""
        try:
            async with asyncio.timeout(timeout_s):
                self.grpc_address, self.http_address = await self._read_addresses()
                self._reader = asyncio.create_task(self._discard_output())
                await _until_ok(f"{self._scheme}://{self.http_address}/ready")
        except TimeoutError:
            raise Unavailable(
                f"the router was not ready after {timeout_s:g} s", reason="ROUTER_FAILED"
            ) from None

    async def wait_closed(self) -> int:
        """Its exit code, when it has ended."""
        return await self._process.wait()

    async def stop(self) -> None:
        """Finish the running requests for at most the drain time, then end."""
        self._send(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), self._drain_s + STOP_GRACE_S)
        except TimeoutError:
            self.kill()
            await self._process.wait()
        if self._reader is not None:
            await self._reader

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def _read_addresses(self) -> tuple[str, str]:
        assert self._process.stdout is not None
        while line := (await self._process.stdout.readline()).decode():
            if match := _READY_LINE.search(line):
                return match[1], match[2]
        code = await self._process.wait()
        raise Unavailable(
            f"the router ended with exit code {code} before it was ready", reason="ROUTER_FAILED"
        )

    async def _discard_output(self) -> None:
        """A full pipe would stop it."""
        assert self._process.stdout is not None
        while await self._process.stdout.read(4096):
            pass


async def _spawn(command: Sequence[str], told: bytes) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        # Ctrl-C on a terminal reaches a whole group; the router is told to drain by us.
        start_new_session=True,
    )
    assert process.stdin is not None
    process.stdin.write(told)
    # One that has ended already is noticed by who waits until it is ready.
    with contextlib.suppress(ConnectionError):
        await process.stdin.drain()
    process.stdin.close()
    return process


async def _until_ok(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                # It is our own child: who signed its certificate is the clients' business.
                async with session.get(url, ssl=False) as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(_POLL_S)
