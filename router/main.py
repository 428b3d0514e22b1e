"""The router's process: ``python -m router.main`` with its settings as JSON on standard input.

Prints one line ``ready grpc=HOST:PORT http=HOST:PORT`` on stdout once it listens; whether there
are workers is told by ``/ready`` and gRPC health. SIGTERM and SIGINT drain, then exit with 0; so
does the death of the process that started it. Exit code 1: it can't start.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
import sys

import uvloop

from core.errors import CrossdockError
from router.server import RouterServer
from router.settings import RouterSettings, settings_from_json

_PR_SET_PDEATHSIG = 1
# About two hundred requests at a time; to look at so many takes about a millisecond.
_OBJECTS_TO_COLLECT = 20_000


def main() -> int:
    """For who starts it as a process of its own."""
    parent = os.getppid()
    die_with_parent(parent)
    try:
        settings = settings_from_json(sys.stdin.buffer.read())
    except CrossdockError as error:
        return _failed(error)
    return run(settings)


def run(settings: RouterSettings) -> int:
    """Serve until a signal comes. Gives the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    try:
        uvloop.run(_serve(settings))
    except CrossdockError as error:
        return _failed(error)
    return 0


def _failed(error: CrossdockError) -> int:
    print(f"error: {error.message}", file=sys.stderr)
    return 1


async def _serve(settings: RouterSettings) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server = RouterServer(settings)
    grpc_address, http_address = await server.start()
    spare_collector()
    print(f"ready grpc={grpc_address} http={http_address}", flush=True)
    await stopped.wait()
    await server.stop()


def spare_collector() -> None:
    """What is there now stays: the garbage collector need not look at it again and again. Requests
    leave it nothing: it comes after so many new objects that those which run don't make it come."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_TO_COLLECT)


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGTERM when the parent dies, also if it died before we could ask."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
