"""What a router tells the others through the stream of the store, as JSON. Pure.

Nearly all of it is state, not change: sums that replace earlier ones and totals that only grow. So
news that are lost, late or doubled are made good by the next ones, and nobody has to keep them.
(Only what clients ask of another router may be lost: an abort, a relay.)
Does not cover: what is done with them (``router.replication.shared_load``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from core.errors import Incompatible
from core.request import RequestKey
from router.admission.tenant_sums import Charged, Paid, Share
from router.placement import WorkerId
from router.routing.worker_load import InFlight

_MAX_WORKERS = 65_536
_MOST = 2**53


class AskedRelay(NamedTuple):
    """A client wants the rest of an attempt, after ``position``, by the router that runs it."""

    key: RequestKey
    attempt: int
    position: int


@dataclass(frozen=True, slots=True)
class RouterNews:
    """``in_flight``: what this router has sent to a worker and no report includes yet.
    ``is_full``: workers that are not named have nothing of it. ``paid``: for fair shares.
    ``charged``: by tenant, of those with budgets. ``aborts``: requests that run elsewhere and that
    a client wants to end. ``relays``: those whose tokens it can't read. ``leaves``: it is the last
    of its news."""

    router: str
    is_full: bool = False
    in_flight: Mapping[WorkerId, InFlight] = field(default_factory=dict)
    paid: Mapping[Share, Paid] = field(default_factory=dict)
    charged: Mapping[str, Charged] = field(default_factory=dict)
    aborts: tuple[RequestKey, ...] = ()
    relays: tuple[AskedRelay, ...] = ()
    leaves: bool = False


def news_to_text(news: RouterNews) -> bytes:
    told: dict[str, Any] = {"router": news.router}
    if news.is_full:
        told["full"] = True
    if news.leaves:
        told["leaves"] = True
    if news.in_flight:
        told["workers"] = [[w.name, w.epoch, *sent] for w, sent in news.in_flight.items()]
    if news.aborts:
        told["aborts"] = news.aborts
    if news.relays:
        told["relays"] = [[*key, attempt, position] for key, attempt, position in news.relays]
    if news.paid:
        told["paid"] = [[*share, *paid] for share, paid in news.paid.items()]
    if news.charged:
        told["charged"] = [[tenant, *charged] for tenant, charged in news.charged.items()]
    return json.dumps(told, separators=(",", ":")).encode()


def news_from_text(text: bytes) -> RouterNews:
    """Raises ``Incompatible`` for what no router of this version says."""
    try:
        told = json.loads(text)
        workers, paid, charged = (told.get(name, []) for name in ("workers", "paid", "charged"))
        if len(workers) > _MAX_WORKERS:
            raise ValueError("too many workers")
        return RouterNews(
            str(told["router"]),
            bool(told.get("full")),
            {WorkerId(str(row[0]), int(row[1])): _in_flight(row[2:]) for row in workers},
            {(int(row[0]), str(row[1])): Paid(*map(_cost, row[2:4])) for row in paid},
            {str(row[0]): Charged(_count(row[1]), _count(row[2])) for row in charged},
            tuple(RequestKey(str(row[0]), str(row[1])) for row in told.get("aborts", [])),
            tuple(_relay(row) for row in told.get("relays", [])),
            bool(told.get("leaves")),
        )
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise Incompatible(
            f"news of another router can't be read: {error}", reason="STRANGE_NEWS"
        ) from None


def _in_flight(row: list[Any]) -> InFlight:
    numbers = [int(number) for number in row]
    if len(numbers) != len(InFlight._fields) or not all(0 <= n < _MOST for n in numbers):
        raise ValueError(f"{numbers} is no load")
    return InFlight(*numbers)


def _relay(row: list[Any]) -> AskedRelay:
    return AskedRelay(RequestKey(str(row[0]), str(row[1])), _count(row[2]), _count(row[3]))


def _count(number: Any) -> int:
    count = int(number)
    if not 0 <= count < _MOST:
        raise ValueError(f"{count} is no number of anything")
    return count


def _cost(number: object) -> float:
    cost = float(str(number))
    if not 0 <= cost < _MOST:
        raise ValueError(f"{cost} is no cost")
    return cost
