"""The router's process: ``python -m router.main --registry HOST:PORT --model FOLDER``.

Prints one line ``ready grpc=HOST:PORT http=HOST:PORT`` on stdout once it listens; whether there
are workers is told by ``/ready`` and gRPC health. SIGTERM and SIGINT drain, then exit with 0.
Exit codes: 1 it can't start, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from core.config import DEFAULT_MAX_INDEX_BLOCKS
from core.errors import CrossdockError
from core.tenant_config import TenantSpec
from core.tenants import DoorLimits
from router.access_rules import AccessRules
from router.cost_model import ROUGH_COSTS, costs_from_text
from router.placement import Disaggregation
from router.policies.policy import PolicyName
from router.routing_rules import RoutingRules
from router.server import RouterServer, RouterSettings
from router.slo import SloTargets

_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str] | None = None) -> int:
    parent = os.getppid()
    options = _parser().parse_args(arguments)
    level = options.log_level.upper()
    logging.basicConfig(level=level, format="%(levelname)s %(name)s %(message)s")
    if options.die_with_parent:
        die_with_parent(parent)
    try:
        uvloop.run(_serve(_settings(options)))
    except CrossdockError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    return 0


async def _serve(settings: RouterSettings) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server = RouterServer(settings)
    grpc_address, http_address = await server.start()
    print(f"ready grpc={grpc_address} http={http_address}", flush=True)
    await stopped.wait()
    await server.stop()


def _settings(options: argparse.Namespace) -> RouterSettings:
    return RouterSettings(
        registry=options.registry,
        model=options.model,
        served_model_name=options.served_model_name,
        host=options.host,
        grpc_port=options.grpc_port,
        http_port=options.http_port,
        max_model_len=options.max_model_len,
        block_size=options.block_size,
        rules=RoutingRules(
            Disaggregation(options.disaggregation),
            PolicyName(options.policy),
            SloTargets(options.slo_ttft_s, options.slo_tpot_s),
            costs_from_text(options.costs) if options.costs else ROUGH_COSTS,
        ),
        drain_s=options.drain_s,
        vllm_names=options.vllm_metric_names,
        access=_access_rules(options),
        max_index_blocks=options.max_index_blocks,
    )


def _access_rules(options: argparse.Namespace) -> AccessRules:
    door = DoorLimits(options.max_waiting, options.prefill_backlog, options.decode_backlog)
    specs = {name: TenantSpec.model_validate_json(spec) for name, spec in options.tenant}
    return AccessRules.of(specs, options.need_api_key, door)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m router.main", description="Crossdock's router")
    add = parser.add_argument
    add("--registry", required=True, metavar="HOST:PORT", help="where the controller lists workers")
    add("--model", required=True, type=Path, metavar="FOLDER", help="tokenizer and config")
    add("--served-model-name", default="", help="default: the folder's name")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--grpc-port", type=int, default=0, help="0 takes any free port")
    add("--http-port", type=int, default=0, help="0 takes any free port")
    add("--max-model-len", type=int, help="tokens of prompt and answer (default: the model's)")
    add("--block-size", type=int, default=16, help="tokens in a KV block (default: %(default)s)")
    modes = [mode.value for mode in Disaggregation]
    add("--disaggregation", choices=modes, default="auto", help="default: %(default)s")
    policies = [name.value for name in PolicyName]
    add("--policy", choices=policies, default="kv_aware", help="default: %(default)s")
    add(
        "--costs",
        default="",
        metavar="JSON",
        help="what to predict by, as `crossdock router` writes it (default: rough times)",
    )
    add("--drain-s", type=float, default=30.0, help="seconds that requests have to end on SIGTERM")
    slo = SloTargets()
    add("--slo-ttft-s", type=float, default=slo.ttft_s, help="default: %(default)s")
    add("--slo-tpot-s", type=float, default=slo.tpot_s, help="default: %(default)s")
    tenant = "who asks: the name, and what the config says of it as JSON; once for each"
    add("--tenant", nargs=2, action="append", default=[], metavar=("NAME", "JSON"), help=tenant)
    add("--need-api-key", action="store_true", help="refuse requests without an API key")
    door = DoorLimits()
    waiting = "requests without a token, before more are refused (default: %(default)s)"
    add("--max-waiting", type=int, default=door.max_waiting, help=waiting)
    backlog = "on a worker, before more wait here (default: no limit)"
    add("--prefill-backlog", type=int, help=f"prompt tokens still to compute {backlog}")
    add("--decode-backlog", type=int, help=f"sequences beyond its max_num_seqs {backlog}")
    add("--vllm-metric-names", action="store_true", help="tell metrics under vLLM's names as well")
    add(
        "--max-index-blocks",
        type=int,
        default=DEFAULT_MAX_INDEX_BLOCKS,
        help="different blocks in the prefix index at most (default: %(default)s)",
    )
    add(
        "--die-with-parent",
        action="store_true",
        help="drain and exit when the process that started this one dies (Linux)",
    )
    add("--log-level", choices=["debug", "info", "warning", "error"], default="warning")
    return parser


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGTERM when the parent dies, also if it died before we could ask."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
