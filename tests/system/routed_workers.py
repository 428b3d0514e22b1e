"""Workers and routers as processes of their own, without Ray: quick to start, and easy to kill."""

from __future__ import annotations

import asyncio
import multiprocessing
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import grpc
import uvloop

from cluster.worker_host import WorkerPlace
from crossdock.v1 import registry_pb2, registry_pb2_grpc
from router.placement import Disaggregation
from router.routing.routing_rules import RoutingRules
from router.server import RouterServer
from router.settings import RouterSettings
from waiting import wait_until

_forks = multiprocessing.get_context("forkserver")
_START_LIMIT_S = 60.0


class FixedRegistry(registry_pb2_grpc.RegistryServicer):
    """The same workers for ever."""

    def __init__(self, places: Sequence[WorkerPlace]) -> None:
        self._list = registry_pb2.WorkerList(
            workers=[
                registry_pb2.WorkerRecord(
                    worker=place.worker,
                    endpoint=place.endpoint,
                    epoch=place.epoch,
                    role=place.role,
                )
                for place in places
            ]
        )

    def Watch(self, request: object, context: Any) -> Iterator[registry_pb2.WorkerList]:
        ended = threading.Event()
        context.add_callback(ended.set)
        yield self._list
        ended.wait()


@contextmanager
def registry_of(*places: WorkerPlace) -> Iterator[str]:
    """Gives its address."""
    server = grpc.server(ThreadPoolExecutor(8))
    registry_pb2_grpc.add_RegistryServicer_to_server(FixedRegistry(places), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@dataclass(frozen=True, slots=True)
class RunningRouter:
    grpc_address: str
    http_url: str
    process: BaseProcess

    def get(self, path: str) -> str:
        """Whoever the certificate is for, if it has one."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with urllib.request.urlopen(self.http_url + path, timeout=10, context=context) as response:
            return str(response.read().decode())

    def is_ready(self) -> bool:
        try:
            return bool(self.get("/ready"))
        except urllib.error.HTTPError:
            return False


@contextmanager
def start_router(model: Path, registry: str, **settings: Any) -> Iterator[RunningRouter]:
    """Ready: it has attached to workers that decode. Every prompt is handed off if it can be."""
    rules = RoutingRules(disaggregation=Disaggregation.PREFER)
    options = {"rules": rules, "served_model_name": "tiny", **settings}
    ours, theirs = _forks.Pipe()
    process = _forks.Process(
        target=_serve_router, args=(RouterSettings(registry, model, **options), theirs)
    )
    process.start()
    theirs.close()
    try:
        assert ours.poll(_START_LIMIT_S), "the router says nothing"
        grpc_address, http_address = ours.recv()
        scheme = "https" if settings.get("doors") else "http"
        router = RunningRouter(grpc_address, f"{scheme}://{http_address}", process)
        wait_until(router.is_ready)
        yield router
    finally:
        process.kill()
        process.join()


def _serve_router(settings: RouterSettings, parent: Connection) -> None:
    async def serve() -> None:
        parent.send(await RouterServer(settings).start())
        await asyncio.Event().wait()

    uvloop.run(serve())
