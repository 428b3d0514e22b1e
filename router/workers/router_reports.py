"""Tells the controller, for `status`, that this router is there and how it gets on with the store.

On each change, and now and again: a controller that was restarted knows nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import grpc.aio

from crossdock.v1.registry_pb2 import RouterReport
from router.store_state import StoreState
from router.workers.directory import Directory

log = logging.getLogger(__name__)

REPORT_S = 5.0
_LIMIT_S = 2.0


class RouterReports:
    """``store``: its URL without password, "" for none; ``state``: of that. ``in_clear``: it should
    not be reached so. ``grpc_address``: of this router, host:port."""

    def __init__(
        self,
        directory: Directory,
        router: str,
        grpc_address: str,
        store: str,
        state: Callable[[], StoreState | None],
        *,
        in_clear: bool,
    ) -> None:
        self._directory = directory
        self._router = router
        self._grpc_address = grpc_address
        self._store = store
        self._in_clear = in_clear
        self._state = state
        self._changed = asyncio.Event()
        self.changed = self._changed.set

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_reporting(), name="reports")

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_reporting(self) -> None:
        while True:
            self._changed.clear()
            try:
                await self._directory.report(self._report(), _LIMIT_S)
            except grpc.aio.AioRpcError as error:
                log.info("the registry takes no report: %s", error.details())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_S):
                    await self._changed.wait()

    def _report(self) -> RouterReport:
        report = RouterReport(router_id=self._router, grpc_address=self._grpc_address)
        state = self._state()
        if state is not None:
            report.store, report.store_in_clear = self._store, self._in_clear
            report.degraded = "" if state.is_shared else state.why
            report.peers = state.peers
        return report
