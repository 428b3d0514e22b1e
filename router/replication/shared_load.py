"""What this router and the others have under way that no worker's report includes yet. Pure.

Each router tells its own sums for each worker, when they change and all of them once a beat; a
worker's load is what it reports and the sums of all routers. Of a router that has said nothing for
a while, or that leaves, everything is forgotten.
Does not cover: the wire (``router.replication.router_news``), what loads are for
(``router.routing.worker_load``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from core.request import RequestKey
from router.admission.tenant_sums import Charged, Paid, Share
from router.placement import WorkerId
from router.replication.router_news import AskedRelay, RouterNews
from router.routing.worker_load import NOTHING_SENT, InFlight

BEAT_S = 1.0
# So many beats may be lost before a router counts as dead.
SILENT_AFTER_S = 4 * BEAT_S


@dataclass(slots=True)
class _Peer:
    heard_at: float
    in_flight: dict[WorkerId, InFlight] = field(default_factory=dict)
    paid: dict[Share, Paid] = field(default_factory=dict)
    charged: dict[str, Charged] = field(default_factory=dict)

    def forget_running(self) -> Heard:
        """It has nothing under way, as far as known."""
        workers, running = frozenset(self.in_flight), dict(self.paid)
        self.in_flight.clear()
        self.paid = {share: Paid(paid.ended) for share, paid in running.items()}
        return Heard(workers, {s: Paid(0.0, -p.running) for s, p in running.items() if p.running})


@dataclass(frozen=True, slots=True)
class Heard:
    """What news have changed: ``workers``, whose `elsewhere` may be another one; ``paid``,
    ``charged``: by how much more or less; ``aborts``, ``relays``: what clients ask of requests, if
    they are this router's."""

    workers: frozenset[WorkerId] = frozenset()
    paid: Mapping[Share, Paid] = field(default_factory=dict)
    charged: Mapping[str, Charged] = field(default_factory=dict)
    aborts: tuple[RequestKey, ...] = ()
    relays: tuple[AskedRelay, ...] = ()


class SharedLoad:
    """Of the router called ``router``. Times in seconds."""

    def __init__(self, router: str) -> None:
        self._router = router
        self._peers: dict[str, _Peer] = {}
        self._told: dict[WorkerId, InFlight] = {}
        self._told_paid: dict[Share, Paid] = {}
        self._told_charged: dict[str, Charged] = {}
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
        paid: Mapping[Share, Paid],
        charged: Mapping[str, Charged],
        now: float,
    ) -> RouterNews | None:
        """What is to be told now; None if nothing has changed and no beat is due."""
        sums = {worker: sent for worker, sent in in_flight.items() if sent != NOTHING_SENT}
        if now - self._full_at >= BEAT_S:
            self._full_at = now
            news = RouterNews(self._router, True, sums, dict(paid), dict(charged))
        else:
            ended = {worker: NOTHING_SENT for worker in self._told if worker not in sums}
            changed = {w: sent for w, sent in sums.items() if self._told.get(w) != sent}
            more = dict(paid.items() - self._told_paid.items())
            taken = dict(charged.items() - self._told_charged.items())
            if not (ended or changed or more or taken):
                return None
            news = RouterNews(self._router, False, ended | changed, more, taken)
        self._told, self._told_paid, self._told_charged = sums, dict(paid), dict(charged)
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
            return self._forget(news.router)
        is_new = news.router not in self._peers
        peer = self._peers.setdefault(news.router, _Peer(now))
        peer.heard_at = now
        workers = set(news.in_flight) | (set(peer.in_flight) if news.is_full else set())
        if news.is_full:
            peer.in_flight.clear()
        peer.in_flight.update(news.in_flight)
        if is_new:
            # What was paid before this router knew of it has been paid in another time.
            peer.paid = {share: Paid(paid.ended) for share, paid in news.paid.items()}
            peer.charged = dict(news.charged)
        paid = dict(_changed_paid(news.paid, peer.paid))
        charged = dict(_changed_charged(news.charged, peer.charged))
        return Heard(frozenset(workers), paid, charged, news.aborts, news.relays)

    def forget_running(self) -> list[Heard]:
        """Of all others, which are not heard any more."""
        return [peer.forget_running() for peer in self._peers.values()]

    def forget_silent(self, now: float) -> list[Heard]:
        silent = [r for r, p in self._peers.items() if now - p.heard_at > SILENT_AFTER_S]
        return [self._forget(router) for router in silent]

    def elsewhere(self, worker: WorkerId) -> InFlight:
        """The sums of all others."""
        return _sum(peer.in_flight.get(worker, NOTHING_SENT) for peer in self._peers.values())

    def _forget(self, router: str) -> Heard:
        peer = self._peers.pop(router, None)
        return Heard() if peer is None else peer.forget_running()


def _changed_paid(
    told: Mapping[Share, Paid], known: dict[Share, Paid]
) -> Iterator[tuple[Share, Paid]]:
    """What has ended only grows: less is old news. Writes it into ``known``."""
    for share, paid in told.items():
        before = known.get(share, Paid())
        now = known[share] = Paid(max(before.ended, paid.ended), paid.running)
        if now != before:
            yield share, Paid(now.ended - before.ended, now.running - before.running)


def _changed_charged(
    told: Mapping[str, Charged], known: dict[str, Charged]
) -> Iterator[tuple[str, Charged]]:
    """What is old news is made good by the next. Writes it into ``known``."""
    for tenant, charged in told.items():
        before = known.get(tenant, Charged())
        known[tenant] = charged
        if charged != before:
            requests, tokens = charged.requests - before.requests, charged.tokens - before.tokens
            yield tenant, Charged(requests, tokens)


def _sum(parts: Iterable[InFlight]) -> InFlight:
    return InFlight(*(sum(column) for column in zip(NOTHING_SENT, *parts, strict=True)))
