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
from router.placement import WorkerId
from router.worker_load import InFlight

_MAX_WORKERS = 65_536
_MOST = 2**53

# A tenant's of one priority class: (class, tenant).
Share = tuple[int, str]


class AskedRelay(NamedTuple):
    """A client wants the rest of an attempt, after ``position``, by the router that runs it."""

    key: RequestKey
    attempt: int
    position: int


@dataclass(frozen=True, slots=True)
class RouterNews:
    """``in_flight``: what this router has sent to a worker and no report includes yet.
    ``is_full``: workers that are not named have nothing of it. ``paid``: weighted costs of all
    requests that have ended, since this router started. ``aborts``: requests that run elsewhere
    and that a client wants to end. ``relays``: those whose tokens it can't read. ``leaves``: it is
    the last of its news."""

    router: str
    is_full: bool = False
    in_flight: Mapping[WorkerId, InFlight] = field(default_factory=dict)
    paid: Mapping[Share, float] = field(default_factory=dict)
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
        told["paid"] = [[priority, name, cost] for (priority, name), cost in news.paid.items()]
    return json.dumps(told, separators=(",", ":")).encode()


def news_from_text(text: bytes) -> RouterNews:
    """Raises ``Incompatible`` for what no router of this version says."""
    try:
        told = json.loads(text)
        workers, paid = told.get("workers", []), told.get("paid", [])
        if len(workers) > _MAX_WORKERS:
            raise ValueError("too many workers")
        return RouterNews(
            str(told["router"]),
            bool(told.get("full")),
            {WorkerId(str(row[0]), int(row[1])): _in_flight(row[2:]) for row in workers},
            {(int(row[0]), str(row[1])): _cost(row[2]) for row in paid},
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
    attempt, position = int(row[2]), int(row[3])
    if not (0 <= attempt < _MOST and 0 <= position < _MOST):
        raise ValueError(f"{row[2:]} is no place in an attempt")
    return AskedRelay(RequestKey(str(row[0]), str(row[1])), attempt, position)


def _cost(number: object) -> float:
    cost = float(str(number))
    if not 0 <= cost < _MOST:
        raise ValueError(f"{cost} is no cost")
    return cost
