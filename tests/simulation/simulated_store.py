"""A Redis in virtual time, as `router.replication.redis_store` asks it: late, away, emptied.

What it decides is what the scripts decide, in Python. An answer that comes too late is lost, what
was asked is done all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TypeVar

from simulated_network import Network

from core.request import RequestKey
from router.admission.shared_tenants import NO_PLACES, Places, PlacesAsked
from router.admission.token_bucket import Budget, TokenBucket, request_budget, token_budget
from router.replication.redis_store import (
    BACKGROUND_LIMIT_S,
    CALL_LIMIT_S,
    Claim,
    ClaimResult,
    Leased,
)
from router.replication.registry_mirror import LeaseChange
from router.replication.router_news import RouterNews, news_from_text, news_to_text
from router.replication.shared_load import SILENT_AFTER_S
from router.replication.store_calls import StoreLost

Answer = TypeVar("Answer")
_LOOK_BACK_S = 3.0
_NOBODY = "-"


class SimRedis:
    """What all routers see. ``is_away``: it answers nobody."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.is_away = False
        self.told = asyncio.Event()
        self.wipe()

    def wipe(self) -> None:
        """FLUSHALL."""
        self.ids: dict[RequestKey, tuple[str, float]] = {}
        self.buckets: dict[tuple[str, str], TokenBucket] = {}
        # By tenant and router: what it has and wants, since when, and when it said so.
        self.asked: dict[str, dict[str, tuple[Places, Places, float, float]]] = {}
        self.news: list[tuple[float, bytes]] = []

    def claim(self, router: str, claim: Claim, kept_s: float) -> ClaimResult:
        now = self.network.now
        for key in claim.ids:
            if self.owner(key) is not None:
                return ClaimResult(key, 0.0, 0.0)
        limits, left = claim.tenant.limits, claim.left
        costs = []
        for kind, budget, believed, cost in (
            ("requests", request_budget(limits), left.requests, claim.prompts),
            ("tokens", token_budget(limits), left.tokens, claim.tokens),
        ):
            bucket = self._bucket(claim.tenant.name, kind, budget, believed)
            costs.append((bucket, cost, 0.0 if bucket is None else bucket.wait_s(cost, now)))
        if not any(wait for *_, wait in costs):
            for bucket, cost, _ in costs:
                if bucket is not None:
                    bucket.take(cost, now)
            self.keep(router, dict.fromkeys(claim.ids, True), kept_s)
        return ClaimResult(None, *(wait for *_, wait in costs))

    def _bucket(
        self, tenant: str, kind: str, budget: Budget | None, left: float
    ) -> TokenBucket | None:
        if budget is None:
            return None
        if (tenant, kind) not in self.buckets:
            bucket = self.buckets[tenant, kind] = TokenBucket(*budget)
            bucket.take(budget.burst - left, self.network.now)
        return self.buckets[tenant, kind]

    def keep(self, router: str, requests: Mapping[RequestKey, bool], kept_s: float) -> None:
        for key, runs in requests.items():
            self.ids[key] = router if runs else _NOBODY, self.network.now + kept_s

    def owner(self, key: RequestKey) -> str | None:
        owner, until = self.ids.get(key, ("", 0.0))
        return owner if until > self.network.now else None

    def give_back(self, tokens: Mapping[str, int]) -> None:
        for tenant, count in tokens.items():
            if (tenant, "tokens") in self.buckets:
                self.buckets[tenant, "tokens"].take(-count, self.network.now)

    def places(self, router: str, asked: PlacesAsked) -> bool:
        now, routers = self.network.now, self.asked.setdefault(asked.tenant, {})
        for name in [n for n, told in routers.items() if now - told[3] > SILENT_AFTER_S]:
            del routers[name]
        mine = routers.pop(router, None)
        since = now if mine is None or mine[1] == NO_PLACES else mine[2]
        others = sum((has for has, *_ in routers.values()), asked.has)
        before = sum((w for _, w, s, _ in routers.values() if s < since), NO_PLACES)
        granted = asked.wants != NO_PLACES and (
            others + before == NO_PLACES or _fits(others + before + asked.wants, asked.most)
        )
        has, wants = (asked.has + asked.wants, NO_PLACES) if granted else (asked.has, asked.wants)
        if (has, wants) != (NO_PLACES, NO_PLACES):
            routers[router] = has, wants, since, now
        return granted

    def tell(self, news: RouterNews) -> None:
        self.news.append((self.network.now, news_to_text(news)))
        self.told.set()
        self.told = asyncio.Event()


def _fits(places: Places, most: Places) -> bool:
    pairs = (places.sequences, most.sequences), (places.blocks, most.blocks)
    return all(limit < 0 or count <= limit for count, limit in pairs)


class SimStore:
    """One router's way to it."""

    def __init__(self, redis: SimRedis) -> None:
        self._redis = redis
        self._network = redis.network
        self._read_till: float | None = None

    async def _ask(self, act: Callable[[], Answer], limit_s: float) -> Answer:
        delay = self._network.delay()
        if self._redis.is_away or delay > limit_s:
            if not self._redis.is_away:
                self._network.after(delay, act)
            await asyncio.sleep(limit_s)
            raise StoreLost(f"no answer within {limit_s:g} s")
        await asyncio.sleep(delay)
        return act()

    async def probe(self) -> None:
        await self._ask(lambda: None, CALL_LIMIT_S)

    async def close(self) -> None:
        pass

    async def claim(self, router: str, claim: Claim, kept_s: float) -> ClaimResult:
        return await self._ask(lambda: self._redis.claim(router, claim, kept_s), CALL_LIMIT_S)

    async def keep(self, router: str, requests: Mapping[RequestKey, bool], kept_s: float) -> None:
        if requests:
            act = lambda: self._redis.keep(router, requests, kept_s)  # noqa: E731
            await self._ask(act, BACKGROUND_LIMIT_S)

    async def owner(self, key: RequestKey) -> str | None:
        owner = await self._ask(lambda: self._redis.owner(key), CALL_LIMIT_S)
        return None if owner == _NOBODY else owner

    async def give_back(self, tokens: Mapping[str, int]) -> None:
        if tokens:
            await self._ask(lambda: self._redis.give_back(tokens), BACKGROUND_LIMIT_S)

    async def places(self, router: str, asked: PlacesAsked) -> bool:
        return await self._ask(lambda: self._redis.places(router, asked), BACKGROUND_LIMIT_S)

    async def tell(self, news: RouterNews) -> None:
        await self._ask(lambda: self._redis.tell(news), BACKGROUND_LIMIT_S)

    async def hear(self) -> list[RouterNews]:
        if self._read_till is None:
            self._read_till = self._network.now - _LOOK_BACK_S
        heard = await self._ask(self._unread, BACKGROUND_LIMIT_S)
        if not heard:
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._redis.told.wait()
            heard = await self._ask(self._unread, BACKGROUND_LIMIT_S)
        if heard:
            self._read_till = heard[-1][0]
        return [news_from_text(text) for _, text in heard]

    def _unread(self) -> list[tuple[float, bytes]]:
        till = self._read_till or 0.0
        unread = []
        for at, text in reversed(self._redis.news):
            if at <= till:
                break
            unread.append((at, text))
        return unread[::-1]

    def hear_anew(self) -> None:
        self._read_till = None

    async def renew(self, change: LeaseChange, secret: bytes) -> None:
        await self._ask(lambda: None, BACKGROUND_LIMIT_S)

    async def leased(self) -> Leased:
        return Leased([], b"")
