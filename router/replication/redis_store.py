"""One Redis, asked by one router: connections, and what is asked.

Each call is bounded in time and raises ``StoreLost`` when Redis does not answer as it should. Does
not cover: what that means and when to ask again (``router.replication.store_health``).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection
from redis.asyncio.connection import UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from core.errors import Incompatible
from core.request import RequestKey
from core.store_url import RedisPlace
from core.tenants import Tenant
from router.admission.shared_tenants import PlacesAsked
from router.admission.tenant_sums import BudgetsLeft
from router.admission.token_bucket import request_budget, token_budget
from router.replication import store_scripts as scripts
from router.replication.registry_mirror import LEASE_S, LeaseChange
from router.replication.router_news import RouterNews, news_from_text, news_to_text
from router.replication.shared_load import SILENT_AFTER_S
from router.replication.store_calls import BatchedScript, bounded

log = logging.getLogger(__name__)

# What a request waits for at most.
CALL_LIMIT_S = 0.05
# In the background, where only what others know gets older.
BACKGROUND_LIMIT_S = 1.0
# News are read in so far behind as others may have told everything at most.
_LOOK_BACK_MS = 3_000
_READ_BLOCK_MS = 1_000
_KEPT_NEWS = 4_096
# Stands in the place of the router at an id whose request has ended.
_ENDED = "-"
# Of a budget: a rate of 0, and nothing to look at then.
_NO_LIMIT = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a call needs: ``ids`` that the client chose, and of the tenant's budgets as much as all
    its ``prompts`` and their ``tokens``, answers included, cost. ``left`` of these, as far as this
    router knows: it counts where a store that was emptied knows nothing."""

    tenant: Tenant
    ids: Sequence[RequestKey]
    prompts: int
    tokens: int
    left: BudgetsLeft


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """``taken``: an id that is. Seconds to wait until the tenant's budget allows it; 0: it does."""

    taken: RequestKey | None
    requests_wait_s: float
    tokens_wait_s: float


@dataclass(frozen=True, slots=True)
class Leased:
    """``records``: of workers, as written; ``secret``: of the block hashes, b"": none."""

    records: Sequence[bytes]
    secret: bytes


class RedisStore:
    """``model``: what tells this model from others, which may be in the same Redis."""

    def __init__(self, place: RedisPlace, model: str) -> None:
        self._keys = scripts.StoreKeys(place.namespace, model)
        # A call has its own limit here, and what is tried again is decided elsewhere.
        self._redis = Redis(connection_pool=_pool(place))
        register = self._redis.register_script
        self._claim, self._places = register(scripts.CLAIM), register(scripts.PLACES)
        self._claims = BatchedScript(self._redis, self._claim.sha)
        self._give_back = register(scripts.GIVE_BACK)
        self._renew, self._leased = register(scripts.RENEW), register(scripts.LEASED)
        self._read_till = b""

    async def close(self) -> None:
        await self._redis.aclose()

    async def probe(self) -> None:
        """Answers if everything that is asked later can be, and as soon as a request would wait."""
        for script in (self._claim, self._places, self._give_back, self._renew, self._leased):
            await bounded(self._redis.script_load(script.script), BACKGROUND_LIMIT_S)
        await bounded(self._redis.ping(), CALL_LIMIT_S)

    # Requests

    async def claim(self, router: str, claim: Claim, kept_s: float) -> ClaimResult:
        """All of it, or nothing if something is refused. Ids are taken for ``kept_s`` seconds."""
        limits, left = claim.tenant.limits, claim.left
        of_requests, of_tokens = request_budget(limits), token_budget(limits)
        keys = [*map(self._keys.request, claim.ids), self._keys.budget(claim.tenant.name)]
        args = (
            router,
            round(kept_s * 1000),
            *(_NO_LIMIT if of_requests is None else (*of_requests, claim.prompts, left.requests)),
            *(_NO_LIMIT if of_tokens is None else (*of_tokens, claim.tokens, left.tokens)),
        )
        number, *waits_ms = await self._claims.call(keys, args, CALL_LIMIT_S)
        taken = claim.ids[number - 1] if number else None
        return ClaimResult(taken, *(wait / 1000 for wait in waits_ms))

    async def keep(self, router: str, requests: Mapping[RequestKey, bool], kept_s: float) -> None:
        """These ids stay taken for so many seconds from now on; whether they run still."""
        if not requests:
            return
        calls = self._redis.pipeline(transaction=False)
        for request, runs in requests.items():
            whose = router if runs else _ENDED
            calls.set(self._keys.request(request), whose, px=round(kept_s * 1000))
        await bounded(calls.execute(), BACKGROUND_LIMIT_S)

    async def owner(self, request: RequestKey) -> str | None:
        """The router that runs it; None: nobody, as far as known."""
        found: Any = await bounded(self._redis.get(self._keys.request(request)), CALL_LIMIT_S)
        owner = "" if found is None else found.decode()
        return None if owner in ("", _ENDED) else owner

    async def give_back(self, tokens: Mapping[str, int]) -> None:
        """To budgets, by tenant."""
        for tenant, count in tokens.items():
            call = self._give_back(keys=[self._keys.budget(tenant)], args=[count])
            await bounded(call, BACKGROUND_LIMIT_S)

    async def places(self, router: str, asked: PlacesAsked) -> bool:
        """Whether what it wants is granted; it has that from now on."""
        has, wants, most = asked.has, asked.wants, asked.most
        numbers = (has.sequences, has.blocks, wants.sequences, wants.blocks)
        limits = (most.sequences, most.blocks, round(SILENT_AFTER_S * 1000))
        call = self._places(
            keys=[self._keys.places(asked.tenant)], args=[router, *numbers, *limits]
        )
        return bool(await bounded(call, BACKGROUND_LIMIT_S))

    # News of routers

    async def tell(self, news: RouterNews) -> None:
        call = self._redis.xadd(
            self._keys.news, {b"news": news_to_text(news)}, maxlen=_KEPT_NEWS, approximate=True
        )
        await bounded(call, BACKGROUND_LIMIT_S)

    async def hear(self) -> list[RouterNews]:
        """The next ones of all routers, in the order in which they came; waits for some, but not
        for ever. What makes no sense is left out, with a warning."""
        if not self._read_till:
            seconds, _ = await bounded(self._redis.time(), BACKGROUND_LIMIT_S)
            self._read_till = b"%d-0" % max(0, seconds * 1000 - _LOOK_BACK_MS)
        call = self._redis.xread({self._keys.news: self._read_till}, None, _READ_BLOCK_MS)
        found: Any = await bounded(call, BACKGROUND_LIMIT_S + _READ_BLOCK_MS / 1000)
        heard = []
        for number, fields in found[0][1] if found else ():
            self._read_till = number
            try:
                heard.append(news_from_text(fields.get(b"news", b"")))
            except Incompatible as error:
                log.warning("%s", error.message)
        return heard

    def hear_anew(self) -> None:
        """From the latest news on: the store may be another one, with another clock."""
        self._read_till = b""

    # Who is there

    async def renew(self, change: LeaseChange, secret: bytes) -> None:
        pairs = [part for lease in change.renewed.items() for part in lease]
        call = self._renew(
            keys=[self._keys.leases, self._keys.secret],
            args=[
                round(LEASE_S * 1000),
                int(change.is_first_hand),
                secret,
                len(change.renewed),
                *pairs,
                *change.ended,
            ],
        )
        await bounded(call, BACKGROUND_LIMIT_S)

    async def leased(self) -> Leased:
        records = await bounded(self._leased(keys=[self._keys.leases]), BACKGROUND_LIMIT_S)
        secret: Any = await bounded(self._redis.get(self._keys.secret), BACKGROUND_LIMIT_S)
        return Leased(records, secret or b"")


def _pool(place: RedisPlace) -> ConnectionPool:
    common: dict[str, Any] = {
        "db": place.database,
        "username": place.username,
        "password": place.password,
        "socket_connect_timeout": BACKGROUND_LIMIT_S,
        "retry": Retry(NoBackoff(), 0),
        "client_name": "crossdock-router",
        # What Redis of all ages speaks.
        "protocol": 2,
    }
    if place.path:
        return ConnectionPool(
            connection_class=UnixDomainSocketConnection, path=place.path, **common
        )
    common |= {"host": place.host, "port": place.port, "socket_keepalive": True}
    if not place.tls:
        return ConnectionPool(connection_class=Connection, **common)
    return ConnectionPool(
        connection_class=SSLConnection,
        ssl_ca_certs=place.ca or None,
        ssl_certfile=place.cert or None,
        ssl_keyfile=place.key or None,
        **common,
    )
