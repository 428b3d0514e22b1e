"""A router process from its start to its end, with a stand-in that only knows the protocol."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.router_process import RouterProcess
from core.errors import Unavailable
from router.settings import RouterSettings

SETTINGS = RouterSettings("127.0.0.1:1", Path("tiny"), drain_s=5.0)

# Says where it listens, is ready at the third question, ends at SIGTERM unless it is stubborn.
STAND_IN = textwrap.dedent("""
    import http.server, json, signal, sys
    assert json.load(sys.stdin)["registry"] == "127.0.0.1:1"
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


async def started(code: str, drain_s: float = 5.0) -> RouterProcess:
    settings = replace(SETTINGS, drain_s=drain_s)
    return await RouterProcess.start(settings, [sys.executable, "-c", code])


@pytest.mark.processes
async def test_it_is_ready_when_it_says_so_over_http_and_ends_when_asked() -> None:
    router = await started(STAND_IN.format(on_term="lambda *_: sys.exit(0)"))
    await router.wait_ready()
    assert router.grpc_address == "127.0.0.1:7"
    await router.stop()
    assert await router.wait_closed() == 0


@pytest.mark.processes
async def test_one_that_does_not_end_in_time_is_killed(monkeypatch) -> None:
    monkeypatch.setattr("cluster.router_process.STOP_GRACE_S", 0.2)
    router = await started(STAND_IN.format(on_term="signal.SIG_IGN"), drain_s=0.0)
    await router.wait_ready()
    await router.stop()
    assert await router.wait_closed() == -9


@pytest.mark.processes
async def test_one_that_ends_before_it_is_ready_is_reported_with_its_exit_code() -> None:
    router = await started("raise SystemExit(3)")
    with pytest.raises(Unavailable, match="exit code 3 before it was ready"):
        await router.wait_ready()
    await router.stop()


@pytest.mark.processes
async def test_one_that_never_becomes_ready_is_reported() -> None:
    silent = "import time\nprint('ready grpc=a:1 http=127.0.0.1:1', flush=True)\ntime.sleep(600)"
    router = await started(silent)
    with pytest.raises(Unavailable, match=r"not ready after 0.3 s"):
        await router.wait_ready(timeout_s=0.3)
    router.kill()
    assert await asyncio.wait_for(router.wait_closed(), 10) == -9
    await router.stop()
