"""The process of `crossdock serve` and `crossdock controller`: its event loop, signals, ready line.

Does not cover: the cluster that it serves (``cluster.serving_cluster``).
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from typing import TextIO

import uvloop

from cluster.progress import Progress
from cluster.serving_cluster import ServeOptions, ServingCluster
from cluster.stop_signal import StopSignal, first_of

# Is told the gRPC, HTTP and admin addresses (host:port).
TellReady = Callable[[str, str, str], None]


async def serve(
    options: ServeOptions,
    progress: Progress,
    stdout: TextIO,
    tell_ready: TellReady | None = None,
) -> None:
    """Runs until a signal. Prints the ready line on ``stdout``. Raises ``CrossdockError``."""
    stop = StopSignal()
    stop.install()
    cluster = ServingCluster(options, progress, after_ray=stop.install)
    try:
        if not await first_of(asyncio.create_task(cluster.start()), stop.drain):
            return
        if tell_ready is not None:
            tell_ready(cluster.grpc_address, cluster.http_address, cluster.admin_address)
        print(f"ready {cluster.addresses}", file=stdout, flush=True)
        await first_of(asyncio.create_task(cluster.watch()), stop.drain)
    finally:
        progress.step("stopping")
        if not await first_of(asyncio.create_task(cluster.stop()), stop.at_once):
            await cluster.kill()


def run_serve(
    options: ServeOptions, progress: Progress, tell_ready: TellReady | None = None
) -> None:
    """``serve`` on an event loop of its own; blocks.

    Stdout is for the ready line alone: Ray prints its warnings there, too.
    """
    stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        uvloop.run(serve(options, progress, stdout, tell_ready))
