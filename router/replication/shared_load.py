"""What this router and the others have under way that no worker's report includes yet. Pure.

Each router tells its own sums for each worker, when they change and all of them once a beat; a
worker's load is what it reports and the sums of all routers. Of a router that has said nothing for
a while, or that leaves, everything is forgotten.
Does not cover: the wire (``router.replication.router_news``), what loads are for
(``router.worker_load``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from core.request import RequestKey
from router.placement import WorkerId
from router.replication.router_news import AskedRelay, RouterNews, Share
from router.worker_load import NOTHING_SENT, InFlight

BEAT_S = 1.0
# So many beats may be lost before a router counts as dead.
SILENT_AFTER_S = 4 * BEAT_S


@dataclass(slots=True)
class _Peer:
    heard_at: float
    in_flight: dict[WorkerId, InFlight] = field(default_factory=dict)
    paid: dict[Share, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Heard:
    """What news have changed: ``workers``, whose `elsewhere` may be another one; ``paid``: what
    tenants have paid at that router since its last news; ``aborts``, ``relays``: what clients ask
    of requests, if they are this router's."""

    workers: frozenset[WorkerId] = frozenset()
    paid: Mapping[Share, float] = field(default_factory=dict)
    aborts: tuple[RequestKey, ...] = ()
    relays: tuple[AskedRelay, ...] = ()


class SharedLoad:
    """Of the router called ``router``. Times in seconds."""

    def __init__(self, router: str) -> None:
        self._router = router
        self._peers: dict[str, _Peer] = {}
        self._told: dict[WorkerId, InFlight] = {}
        self._told_paid: dict[Share, float] = {}
        self._full_at = -math.inf
        # When news of this router itself came back from the store.
        self.own_heard_at = 0.0

    @property
    def peers(self) -> int:
        """Other routers that live."""
        return len(self._peers)

    def news(
        self,
        in_flight: Mapping[WorkerId, InFlight],
        paid: Mapping[Share, float],
        now: float,
    ) -> RouterNews | None:
        """What is to be told now; None if nothing has changed and no beat is due."""
        sums = {worker: sent for worker, sent in in_flight.items() if sent != NOTHING_SENT}
        if now - self._full_at >= BEAT_S:
            self._full_at = now
            news = RouterNews(self._router, True, sums, dict(paid))
        else:
            ended = {worker: NOTHING_SENT for worker in self._told if worker not in sums}
            changed = {w: sent for w, sent in sums.items() if self._told.get(w) != sent}
            more = {s: cost for s, cost in paid.items() if self._told_paid.get(s) != cost}
            if not (ended or changed or more):
                return None
            news = RouterNews(self._router, False, ended | changed, more)
        self._told, self._told_paid = sums, dict(paid)
        return news

    def begin_anew(self, now: float) -> None:
        """Nobody was heard for a while, and what was told may be lost: the next news are a beat,
        and the others get the time for one."""
        self._full_at = now - BEAT_S
        for peer in self._peers.values():
            peer.heard_at = now

    def take(self, news: RouterNews, now: float) -> Heard:
        if news.router == self._router:
            self.own_heard_at = now
            return Heard()
        if news.leaves:
            return Heard(self._forget(news.router))
        is_new = news.router not in self._peers
        peer = self._peers.setdefault(news.router, _Peer(now))
        peer.heard_at = now
        workers = set(news.in_flight) | (set(peer.in_flight) if news.is_full else set())
        if news.is_full:
            peer.in_flight.clear()
        peer.in_flight.update(news.in_flight)
        # What it paid before this router knew of it has been paid in another time.
        more = {} if is_new else _growth(news.paid, peer.paid)
        peer.paid.update(news.paid)
        return Heard(frozenset(workers), more, news.aborts, news.relays)

    def forget_loads(self) -> frozenset[WorkerId]:
        """Of all others, which are not heard any more. Gives what `forget_silent` does."""
        workers: set[WorkerId] = set()
        for peer in self._peers.values():
            workers |= set(peer.in_flight)
            peer.in_flight.clear()
        return frozenset(workers)

    def forget_silent(self, now: float) -> frozenset[WorkerId]:
        """Workers whose `elsewhere` may be another one."""
        silent = [r for r, p in self._peers.items() if now - p.heard_at > SILENT_AFTER_S]
        return frozenset().union(*(self._forget(router) for router in silent))

    def elsewhere(self, worker: WorkerId) -> InFlight:
        """The sums of all others."""
        return _sum(peer.in_flight.get(worker, NOTHING_SENT) for peer in self._peers.values())

    def _forget(self, router: str) -> frozenset[WorkerId]:
        peer = self._peers.pop(router, None)
        return frozenset() if peer is None else frozenset(peer.in_flight)


def _growth(paid: Mapping[Share, float], before: Mapping[Share, float]) -> dict[Share, float]:
    more = {share: cost - before.get(share, 0.0) for share, cost in paid.items()}
    return {share: cost for share, cost in more.items() if cost > 0}


def _sum(parts: Iterable[InFlight]) -> InFlight:
    return InFlight(*(sum(column) for column in zip(NOTHING_SENT, *parts, strict=True)))
