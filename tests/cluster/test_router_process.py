"""A router process from its start to its end, with a stand-in that only knows the protocol."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from dataclasses import dataclass, replace

import pytest

from cluster.router_process import RouterOptions, RouterProcess
from core.errors import Unavailable
from router.cost_model import ROUGH_COSTS
from router.main import _parser, _settings
from router.placement import Disaggregation
from router.policies.policy import PolicyName
from router.routing_rules import RoutingRules
from router.slo import SloTargets

OPTIONS = RouterOptions(
    "127.0.0.1:1", "/models/tiny", "tiny", "127.0.0.1", 0, 0, 640, 16, "always", 5.0
)
COSTS = replace(ROUGH_COSTS, message_s=0.002)

# Says where it listens, is ready at the third question, ends at SIGTERM unless it is stubborn.
STAND_IN = textwrap.dedent("""
    import http.server, signal, sys
    class Door(http.server.BaseHTTPRequestHandler):
        asked = 0
        def do_GET(self):
            Door.asked += 1
            assert self.path == "/ready"
            self.send_response(200 if Door.asked >= 3 else 503)
            self.end_headers()
        def log_message(self, *arguments): pass
    signal.signal(signal.SIGTERM, {on_term})
    server = http.server.HTTPServer(("127.0.0.1", 0), Door)
    print("warming up")
    print(f"ready grpc=127.0.0.1:7 http=127.0.0.1:{{server.server_port}}", flush=True)
    server.serve_forever()
""")


@dataclass
class StandIn:
    """Options whose command is another program."""

    code: str
    drain_s: float = 5.0

    def command(self) -> list[str]:
        return [sys.executable, "-c", self.code]


def polite() -> StandIn:
    return StandIn(STAND_IN.format(on_term="lambda *_: sys.exit(0)"))


def test_the_router_understands_every_option_it_is_given() -> None:
    command = OPTIONS.command()
    parsed = _parser().parse_args(command[command.index("router.main") + 1 :])
    assert (parsed.registry, str(parsed.model)) == ("127.0.0.1:1", "/models/tiny")
    assert (parsed.max_model_len, parsed.block_size, parsed.drain_s) == (640, 16, 5.0)
    assert parsed.disaggregation == "always"
    assert parsed.die_with_parent


def test_the_router_is_told_the_slos_and_whose_names_to_use() -> None:
    options = replace(OPTIONS, slo_ttft_s=0.5, slo_tpot_s=0.025, vllm_names=True)
    arguments = options.command()
    settings = _settings(_parser().parse_args(arguments[arguments.index("router.main") + 1 :]))
    assert settings.rules.slo == SloTargets(0.5, 0.025)
    assert settings.vllm_names
    assert "--vllm-metric-names" not in OPTIONS.command()


def test_the_router_is_told_its_policy_and_what_to_predict_by() -> None:
    options = replace(OPTIONS, policy="round_robin", costs=COSTS)
    arguments = options.command()
    rules = _settings(_parser().parse_args(arguments[arguments.index("router.main") + 1 :])).rules
    assert rules == RoutingRules(Disaggregation.ALWAYS, PolicyName.ROUND_ROBIN, costs=COSTS)


@pytest.mark.processes
async def test_it_is_ready_when_it_says_so_over_http_and_ends_when_asked() -> None:
    router = await RouterProcess.start(polite())
    await router.wait_ready()
    assert router.grpc_address == "127.0.0.1:7"
    await router.stop()
    assert await router.wait_closed() == 0


@pytest.mark.processes
async def test_one_that_does_not_end_in_time_is_killed(monkeypatch) -> None:
    monkeypatch.setattr("cluster.router_process.STOP_GRACE_S", 0.2)
    router = await RouterProcess.start(
        StandIn(STAND_IN.format(on_term="signal.SIG_IGN"), drain_s=0.0)
    )
    await router.wait_ready()
    await router.stop()
    assert await router.wait_closed() == -9


@pytest.mark.processes
async def test_one_that_ends_before_it_is_ready_is_reported_with_its_exit_code() -> None:
    router = await RouterProcess.start(StandIn("raise SystemExit(3)"))
    with pytest.raises(Unavailable, match="exit code 3 before it was ready"):
        await router.wait_ready()
    await router.stop()


@pytest.mark.processes
async def test_one_that_never_becomes_ready_is_reported() -> None:
    silent = "import time\nprint('ready grpc=a:1 http=127.0.0.1:1', flush=True)\ntime.sleep(600)"
    router = await RouterProcess.start(StandIn(silent))
    with pytest.raises(Unavailable, match=r"not ready after 0.3 s"):
        await router.wait_ready(timeout_s=0.3)
    router.kill()
    assert await asyncio.wait_for(router.wait_closed(), 10) == -9
    await router.stop()
