"""One of several routers: what it tells the others by way of the store, and hears from them.

Covers: the tasks that do so, what changes while the store is lost, and until it is back. Each task
goes round for ever, and waits while the store is lost; a lost store ends nothing.
Does not cover: what is decided (the pure modules beside this one), the calls (``redis_store``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from core.errors import NotFound
from core.request import RequestKey
from core.tenants import Tenant
from crossdock.v1.registry_pb2 import WorkerRecord
from router.admission.shared_tenants import NO_PLACES, SharedTenants
from router.placement import WorkerId
from router.replication.redis_store import RedisStore
from router.replication.registry_mirror import RENEW_S as LEASES_S
from router.replication.registry_mirror import RegistryMirror
from router.replication.request_claims import RENEW_S as IDS_S
from router.replication.request_claims import RequestClaims
from router.replication.router_news import AskedRelay, RouterNews
from router.replication.shared_load import BEAT_S, SILENT_AFTER_S, Heard, SharedLoad
from router.replication.store_calls import StoreLost
from router.replication.store_health import StoreHealth
from router.requests.dispatcher import Dispatcher
from router.store_state import StoreState

log = logging.getLogger(__name__)

# What happens meanwhile is told together.
TELL_S = 0.02
# While leases are what workers are known by.
_LOOK_S = 0.5
_AFTER_A_DEFECT_S = 1.0


class Replication:
    """Of the router called ``router``. ``listed`` and ``use_secret``: where a list of workers and
    the secret of block hashes go that the controller did not give. ``took``: seconds that a request
    waited for the store. ``clock`` gives seconds, monotonic."""

    def __init__(
        self,
        router: str,
        store: RedisStore,
        dispatcher: Dispatcher,
        tenants: SharedTenants,
        tenant: Callable[[str], Tenant],
        *,
        listed: Callable[[Sequence[WorkerRecord]], None],
        use_secret: Callable[[bytes], None],
        took: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._router = router
        self._store = store
        self._dispatcher = dispatcher
        self._tenants = tenants
        self._listed = listed
        self._use_secret = use_secret
        # Is called when the store is lost or back.
        self.changed: Callable[[], None] = lambda: None
        self._health = StoreHealth()
        self._failures = 0
        self._back, self._gone = asyncio.Event(), asyncio.Event()
        self._wake = asyncio.Event()
        self._load = SharedLoad(router)
        self._mirror = RegistryMirror(self._clock())
        self._claims = RequestClaims(
            router, store, self._health, dispatcher, tenant, self._lost, took
        )
        self.claim = self._claims.claim
        tenants.asked = self._wake.set
        dispatcher.ended = self._claims.ended
        self._tasks: list[asyncio.Task[None]] = []

    async def abort_elsewhere(self, key: RequestKey) -> bool:
        """End a request of another router. False: none is known to run it."""
        return await self._ask(key, RouterNews(self._router, aborts=(key,)))

    async def relay_elsewhere(self, key: RequestKey, attempt: int, position: int) -> bool:
        """The same of one whose tokens its client can't read."""
        asked = AskedRelay(key, attempt, position)
        return await self._ask(key, RouterNews(self._router, relays=(asked,)))

    async def _ask(self, key: RequestKey, news: RouterNews) -> bool:
        if not await self._claims.is_elsewhere(key):
            return False
        await self._try(partial(self._store.tell, news))
        return self._health.is_shared

    def start(self) -> None:
        loops = (self._look_after, self._keep_telling, self._keep_hearing, self._keep_leases)
        self._tasks = [asyncio.create_task(loop(), name=loop.__name__) for loop in loops]

    async def close(self) -> None:
        """The others forget at once what this router had under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._health.is_shared:
            await self._try(self._leave)
        await self._store.close()

    async def _leave(self) -> None:
        await self._claims.tell(all_of_them=False)
        await self._store.tell(RouterNews(self._router, leaves=True))

    @property
    def state(self) -> StoreState:
        health = self._health
        return StoreState(health.is_shared, health.why, self._load.peers, self._failures)

    # What the controller says

    def controller_listed(self, records: Sequence[WorkerRecord], secret: bytes) -> None:
        self._mirror.controller_listed(records, secret)

    def controller_lost(self) -> None:
        self._mirror.controller_lost(self._clock())

    # The store lost and back

    async def _look_after(self) -> None:
        while True:
            await self._try(self._probe)
            if self._health.is_shared:
                await self._gone.wait()
            await asyncio.sleep(self._health.next_pause_s())

    async def _probe(self) -> None:
        await self._store.probe()
        await self._claims.tell(all_of_them=True)
        self._store.hear_anew()
        self._load.begin_anew(self._clock())
        self._tenants.not_told()
        if self._health.answered(self._clock()):
            log.warning("the store answers: %s shares with the other routers", self._router)
            self._tenants.is_shared = True
            self._gone.clear()
            self._back.set()
            self._dispatcher.allow(1.0)
            self.changed()

    def _lost(self, error: StoreLost) -> None:
        self._failures += 1
        if self._health.failed(str(error), self._clock()):
            routers = 1 + self._load.peers
            log.warning(
                "the store is lost (%s): this router goes by what it knows itself, with one part "
                "in %d of each tenant's limits",
                error,
                routers,
            )
            self._tenants.is_shared = False
            self._back.clear()
            self._gone.set()
            # What others had under way is getting old; workers tell the most of it.
            for forgotten in self._load.forget_running():
                self._apply(forgotten)
            self._dispatcher.allow(1 / routers)
            self.changed()

    async def _try(self, call: Callable[[], Awaitable[None]]) -> None:
        try:
            await call()
        except StoreLost as error:
            self._lost(error)
        except Exception:
            # A defect must not end what the other requests need.
            log.exception("sharing with other routers failed")
            await asyncio.sleep(_AFTER_A_DEFECT_S)

    # What is told

    async def _keep_telling(self) -> None:
        ids_at = beat_at = 0.0
        while True:
            await self._back.wait()
            now = self._clock()
            is_beat, with_ids = now - beat_at >= BEAT_S, now - ids_at >= IDS_S
            beat_at, ids_at = now if is_beat else beat_at, now if with_ids else ids_at
            self._wake.clear()
            await self._try(partial(self._tell, with_ids, is_beat))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TELL_S):
                    await self._wake.wait()

    async def _tell(self, all_ids: bool, is_beat: bool) -> None:
        await self._ask_places(is_beat)
        in_flight, now = self._dispatcher.routing.in_flight(), self._clock()
        tenants = self._tenants
        news = self._load.news(in_flight, tenants.paid, tenants.charged, now)
        if news is not None:
            await self._store.tell(news)
        all_ids = all_ids or (is_beat and await self._claims.are_forgotten())
        await self._claims.tell(all_of_them=all_ids)
        await self._store.give_back(tenants.take_given_back())
        for forgotten in self._load.forget_silent(now):
            self._apply(forgotten)

    async def _ask_places(self, is_beat: bool) -> None:
        for asked in self._tenants.places_asked(all_of_them=is_beat):
            if await self._store.places(self._router, asked) and asked.wants != NO_PLACES:
                self._tenants.granted(asked.tenant, asked.wants)
                self._dispatcher.room_changed()

    # What is heard

    async def _keep_hearing(self) -> None:
        anew_at = 0.0
        while True:
            await self._back.wait()
            await self._try(self._hear)
            now = self._clock()
            if now - max(anew_at, self._load.own_heard_at) > SILENT_AFTER_S:
                # Not even its own news: numbers go on from another clock.
                self._store.hear_anew()
                anew_at = now

    async def _hear(self) -> None:
        for news in await self._store.hear():
            self._apply(self._load.take(news, self._clock()))

    def _apply(self, heard: Heard) -> None:
        for worker in heard.workers:
            self._dispatcher.routing.sent_elsewhere(worker, self._load.elsewhere(worker))
        for share, paid in heard.paid.items():
            self._dispatcher.paid_elsewhere(share, paid)
        for tenant, charged in heard.charged.items():
            self._dispatcher.charged_elsewhere(tenant, charged)
        for key in heard.aborts:
            with contextlib.suppress(NotFound):
                self._dispatcher.abort(key)
        for asked in heard.relays:
            with contextlib.suppress(NotFound):
                self._dispatcher.relay(*asked)
        if heard.workers:
            self._dispatcher.room_changed()

    # Who is there

    async def _keep_leases(self) -> None:
        while True:
            await self._back.wait()
            await self._try(self._lease)
            by_leases = self._mirror.goes_by_leases(self._clock())
            await asyncio.sleep(_LOOK_S if by_leases or not self._attached() else LEASES_S)

    async def _lease(self) -> None:
        change = self._mirror.change(self._attached())
        await self._store.renew(change, self._mirror.secret)
        self._mirror.told(change)
        if not self._mirror.goes_by_leases(self._clock()):
            return
        told = await self._store.leased()
        # The controller may be there by now.
        if self._mirror.goes_by_leases(self._clock()):
            if told.secret and not self._mirror.secret:
                self._mirror.secret = told.secret
                self._use_secret(told.secret)
            records = self._mirror.leased(told.records, self._attached())
            if records is not None:
                log.warning("the controller is away: %d workers by their leases", len(records))
                self._listed(records)

    def _attached(self) -> list[WorkerId]:
        return [pooled.worker for pooled in self._dispatcher.pool.attached_workers()]
