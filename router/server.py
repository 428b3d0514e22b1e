"""Puts the router together: workers behind, two doors in front; start, drain, stop."""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from random import Random

import grpc.aio
from aiohttp import web
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from core.errors import Unavailable
from core.store_url import RedisPlace, clear_store_warning, redis_place
from core.tenants import DEFAULT_TENANT
from core.tls_files import server_files
from crossdock.v1 import inference_pb2
from crossdock.v1.inference_pb2_grpc import add_InferenceServicer_to_server
from crossdock.v1.registry_pb2 import WorkerRecord
from router.admission.shared_tenants import SharedTenants
from router.doors.cluster_metrics import ClusterMetricsDoor
from router.doors.grpc_decoding import RefuseUnreadable
from router.doors.grpc_limits import SERVER_OPTIONS
from router.doors.http_access import access_middleware
from router.doors.http_bodies import MAX_BODY_BYTES
from router.doors.http_errors import answer_errors, certificate_missing
from router.doors.openai_door import OpenAIDoor
from router.doors.service import InferenceService
from router.doors.status_door import PROBED_PATHS, StatusDoor
from router.doors.tokenize_door import TokenizeDoor
from router.intake.authentication import require_token
from router.intake.model_info import ModelInfo
from router.intake.prompt_reader import PromptReader
from router.intake.request_intake import RequestIntake
from router.metrics.metrics import Metrics
from router.placement import WorkerId
from router.replication.redis_store import RedisStore
from router.replication.replication import Replication
from router.requests.dispatcher import Dispatcher
from router.requests.read_tickets import ReadTickets
from router.settings import RouterSettings
from router.store_state import StoreState
from router.workers.directory import Directory
from router.workers.router_reports import RouterReports
from router.workers.worker_link import LinkListener, WorkerLink
from text.chat_template import ChatTemplate
from text.tokenizer import Tokenizer
from wire.http_certificates import require_certificate
from wire.tls_contexts import server_context
from wire.tls_grpc import open_port

log = logging.getLogger(__name__)

# Each router draws one of so many ranges of 2^32 numbers; a request has far fewer attempts.
_ATTEMPTS = 2**12
_NUMBERINGS = 2**32 // _ATTEMPTS
_SERVICE = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name


class RouterServer:
    """One router. ``start``, then ``stop``; both once. Everything runs on one event loop."""

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self._router_id = f"router-{secrets.token_hex(8)}"
        model = ModelInfo.load(settings.model, settings.served_model_name, settings.max_model_len)
        vllm_model = model.name if settings.vllm_names else ""
        certificates = {"member": server_files(settings.tls), "door": settings.doors}
        self._metrics = Metrics(DEFAULT_TENANT, settings.rules.slo, vllm_model, certificates)
        self._tokenizer = Tokenizer.load(settings.model)
        template = ChatTemplate.load(settings.model)
        self._prompts = PromptReader(model, self._tokenizer, template)
        place = redis_place(settings.store)
        shared = None if place is None else SharedTenants()
        self._tickets = ReadTickets(self._router_id)
        self.dispatcher = Dispatcher(
            block_size=settings.block_size,
            open_link=self._open_link,
            rules=settings.rules,
            metrics=self._metrics,
            random=Random(),
            limits=settings.limits,
            access=settings.access,
            tickets=self._tickets,
            max_index_blocks=settings.max_index_blocks,
            attempts_after=_ATTEMPTS * secrets.randbelow(_NUMBERINGS),
            shared=shared,
        )
        self._intake = RequestIntake(
            model,
            self._prompts,
            self.dispatcher,
            self._metrics,
            settings.access,
        )
        self._replication: Replication | None = None
        if place is not None and shared is not None:
            self._replication = self._share(place, shared, model.digest)
        self._reports: RouterReports | None = None
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._health_updates: set[asyncio.Task[None]] = set()

    async def start(self) -> tuple[str, str]:
        """Listen and follow the registry. Gives the (gRPC, HTTP) addresses as host:port."""
        settings = self._settings
        await self._set_health(False)
        self.dispatcher.workers.ready_changed = self._ready_changed
        self._directory = Directory(settings.registry, self._router_id, self._listed, settings.tls)
        http = await self._start_http()
        grpc_address = await self._start_grpc()
        self._directory.start()
        self._start_reports(grpc_address)
        if self._replication is not None:
            self._directory.lost = self._replication.controller_lost
            self._replication.start()
        return grpc_address, http

    def _share(self, place: RedisPlace, tenants: SharedTenants, model: str) -> Replication:
        settings = self._settings
        replication = Replication(
            self._router_id,
            RedisStore(place, model),
            self.dispatcher,
            tenants,
            settings.access.tenant,
            listed=self.dispatcher.workers.on_listed,
            use_secret=self._intake.salts.use,
            took=self._metrics.asked_store,
        )
        self._metrics.store_state = lambda: replication.state
        self._intake.claim = replication.claim
        self._intake.abort_elsewhere = replication.abort_elsewhere
        self._intake.relay_elsewhere = replication.relay_elsewhere
        return replication

    def _start_reports(self, grpc_address: str) -> None:
        place = redis_place(self._settings.store)
        exposed = clear_store_warning(
            self._settings.store, encrypted=self._settings.tls is not None
        )
        if exposed:
            log.warning("%s", exposed)
        self._reports = RouterReports(
            self._directory,
            self._router_id,
            grpc_address,
            "" if place is None else str(place),
            lambda: self.store_state,
            in_clear=bool(exposed),
        )
        if self._replication is not None:
            self._replication.changed = self._reports.changed
        self._reports.start()

    def _listed(self, records: Sequence[WorkerRecord], secret: bytes) -> None:
        if secret:
            self._intake.salts.use(secret)
        if self._replication is not None:
            self._replication.controller_listed(records, secret)
        self.dispatcher.workers.on_listed(records)

    @property
    def store_state(self) -> StoreState | None:
        """Of the store that it shares by; None: it has none."""
        return None if self._replication is None else self._replication.state

    async def stop(self) -> None:
        """Take no more requests, wait for those that run, then close everything."""
        self._intake.draining = True
        await self._set_health(False)
        try:
            async with asyncio.timeout(self._settings.drain_s):
                await self.dispatcher.idle.wait()
        except TimeoutError:
            log.warning("requests still run after %g s and are cut", self._settings.drain_s)
            self.dispatcher.cancel_all()
        # The doors still have to write what the requests ended with.
        await self._grpc.stop(grace=1.0)
        await self._http.cleanup()
        await self._directory.close()
        if self._reports is not None:
            await self._reports.close()
        if self._replication is not None:
            await self._replication.close()
        await self.dispatcher.pool.close()
        await asyncio.gather(*self._health_updates)

    def _open_link(self, worker: WorkerId, endpoint: str, listener: LinkListener) -> WorkerLink:
        settings, ticket_key = self._settings, self._tickets.key
        return WorkerLink(worker, endpoint, self._router_id, listener, settings.tls, ticket_key)

    async def _start_grpc(self) -> str:
        settings = self._settings
        self._grpc = grpc.aio.server(
            interceptors=(RefuseUnreadable(_SERVICE),), options=SERVER_OPTIONS
        )
        service = InferenceService(self._intake, settings.block_size)
        add_InferenceServicer_to_server(service, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        names = (_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._grpc)
        try:
            address = f"{settings.host}:{settings.grpc_port}"
            port = open_port(self._grpc, address, settings.doors)
        except RuntimeError as error:
            await self._http.cleanup()
            raise _port_taken("grpc", settings.host, settings.grpc_port) from error
        await self._grpc.start()
        return f"{settings.host}:{port}"

    async def _start_http(self) -> str:
        settings = self._settings
        self._http = web.AppRunner(
            self._http_app(),
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=1.0,
            # A compressed body is refused by name, and none can grow on its way in.
            auto_decompress=False,
        )
        await self._http.setup()
        doors = settings.doors
        context = None if doors is None else server_context(doors, open_paths=True)
        site = web.TCPSite(self._http, settings.host, settings.http_port, ssl_context=context)
        try:
            await site.start()
        except OSError as error:
            await self._http.cleanup()
            if error.errno != errno.EADDRINUSE:
                raise
            raise _port_taken("http", settings.host, settings.http_port) from error
        return f"{settings.host}:{self._http.addresses[0][1]}"

    def _http_app(self) -> web.Application:
        version = metadata.version("crossdock")
        doors = (
            OpenAIDoor(self._intake, self._tokenizer.token_bytes, version),
            TokenizeDoor(self._intake.model, self._tokenizer, self._prompts),
            StatusDoor(self._intake, self.dispatcher, self._metrics, version),
            ClusterMetricsDoor(
                self.dispatcher,
                self._metrics,
                self._directory,
                doors_tls=self._settings.doors is not None,
                workers_tls=self._settings.tls is not None,
            ),
        )
        may_watch = partial(require_token, hashes=self._settings.metrics_tokens)
        middlewares = [answer_errors, access_middleware(self._intake.tenant, may_watch)]
        if self._settings.doors is not None and self._settings.doors.client_ca is not None:
            middlewares.insert(1, require_certificate(PROBED_PATHS, certificate_missing))
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=middlewares)
        for door in doors:
            app.add_routes(door.routes())
        return app

    def _ready_changed(self, ready: bool) -> None:
        update = asyncio.create_task(self._set_health(ready and not self._intake.draining))
        self._health_updates.add(update)
        update.add_done_callback(self._health_updates.discard)

    async def _set_health(self, serving: bool) -> None:
        statuses = health_pb2.HealthCheckResponse
        status = statuses.SERVING if serving else statuses.NOT_SERVING
        for name in ("", _SERVICE):
            await self._health.set(name, status)


def _port_taken(door: str, host: str, port: int) -> Unavailable:
    return Unavailable(
        f"the {door} port {host}:{port} is taken or not allowed; stop what listens there, or "
        f"choose another one with --{door}-port (0 takes any free one)",
        reason="PORT_TAKEN",
        metadata={"field": f"{door}_port", "value": str(port)},
    )
