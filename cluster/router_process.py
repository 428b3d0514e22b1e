"""The router as its own process: started, watched, drained. It has no Ray in it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp

from core.config import DEFAULT_MAX_INDEX_BLOCKS, DEFAULT_TPOT_S
from core.errors import Unavailable
from core.prefill_order import DEFAULT_TTFT_S
from core.tenant_config import TenantSpec
from core.tenants import DoorLimits
from router.cost_model import ROUGH_COSTS, ClusterCosts, costs_to_text
from router.policies.policy import PolicyName

READY_TIMEOUT_S = 60.0
# Beyond its drain time the router gets this long to close its connections.
STOP_GRACE_S = 10.0

_READY_LINE = re.compile(r"ready grpc=(\S+) http=(\S+)")
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class RouterOptions:
    """``registry`` is host:port; port 0 lets the system choose; times in seconds."""

    registry: str
    model_folder: str
    served_model_name: str
    host: str
    grpc_port: int
    http_port: int
    max_model_len: int
    block_size: int
    disaggregation: str
    drain_s: float
    slo_ttft_s: float = DEFAULT_TTFT_S
    slo_tpot_s: float = DEFAULT_TPOT_S
    policy: str = PolicyName.KV_AWARE.value
    costs: ClusterCosts = ROUGH_COSTS
    vllm_names: bool = False
    tenants: Mapping[str, TenantSpec] = field(default_factory=dict)
    needs_key: bool = False
    door: DoorLimits = field(default_factory=DoorLimits)
    max_index_blocks: int = DEFAULT_MAX_INDEX_BLOCKS

    def command(self) -> list[str]:
        # -P: a file in the current directory must not hide our modules.
        return [sys.executable, "-P", "-m", "router.main", *self.arguments(), "--die-with-parent"]

    def arguments(self) -> list[str]:
        """For ``router.main.main``."""
        return [
            *("--registry", self.registry),
            *("--model", self.model_folder),
            *("--served-model-name", self.served_model_name),
            *("--host", self.host),
            *("--grpc-port", str(self.grpc_port)),
            *("--http-port", str(self.http_port)),
            *("--max-model-len", str(self.max_model_len)),
            *("--block-size", str(self.block_size)),
            *("--disaggregation", self.disaggregation),
            *("--policy", self.policy),
            *("--costs", costs_to_text(self.costs)),
            *("--drain-s", f"{self.drain_s:g}"),
            *("--slo-ttft-s", f"{self.slo_ttft_s:g}"),
            *("--slo-tpot-s", f"{self.slo_tpot_s:g}"),
            *("--max-index-blocks", str(self.max_index_blocks)),
            *(("--vllm-metric-names",) if self.vllm_names else ()),
            *self._access_arguments(),
        ]

    def _access_arguments(self) -> list[str]:
        tenants = [
            ("--tenant", name, spec.model_dump_json(exclude_none=True))
            for name, spec in self.tenants.items()
        ]
        backlogs = {"--prefill-backlog": self.door.prefill_backlog}
        backlogs["--decode-backlog"] = self.door.decode_backlog
        return [
            *(word for tenant in tenants for word in tenant),
            *(("--need-api-key",) if self.needs_key else ()),
            *("--max-waiting", str(self.door.max_waiting)),
            *(f"{name}={tokens}" for name, tokens in backlogs.items() if tokens is not None),
        ]


class RouterProcess:
    """A running router and the addresses (host:port) that it serves at."""

    def __init__(self, process: asyncio.subprocess.Process, drain_s: float) -> None:
        self._process = process
        self._drain_s = drain_s
        self._reader: asyncio.Task[None] | None = None
        self.grpc_address = ""
        self.http_address = ""

    @classmethod
    async def start(cls, options: RouterOptions) -> RouterProcess:
        """Starts it; call ``wait_ready`` next."""
        return cls(await _spawn(options.command()), options.drain_s)

    async def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Until it can answer prompts. Raises ``Unavailable`` if it ends or takes too long."""
        try:
            async with asyncio.timeout(timeout_s):
                self.grpc_address, self.http_address = await self._read_addresses()
                self._reader = asyncio.create_task(self._discard_output())
                await _until_ok(f"http://{self.http_address}/ready")
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


async def _spawn(command: Sequence[str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        # Ctrl-C on a terminal reaches a whole group; the router is told to drain by us.
        start_new_session=True,
    )


async def _until_ok(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url) as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(_POLL_S)
