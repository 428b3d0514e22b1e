"""`crossdock status --watch`: the same live, until it is interrupted."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from cluster.cli.admin_call import fetch_status
from cluster.cli.identity import door_tls, metrics_token
from cluster.cli.output import Output, plain
from cluster.cli.router_metrics import RouterMetrics
from core.errors import Unavailable

if TYPE_CHECKING:
    from cluster.live.scrape import Interval, Scrape

DEFAULT_INTERVAL_S = 2.0
# Rates and percentiles are of so long: a shorter time has too few requests to say much.
_WINDOW_S = 30.0
# Until there is something to show.
_FIRST_WAIT_S = 1.0
_ANY_HOST = ("0.0.0.0", "[::]")


@dataclass(frozen=True, slots=True)
class Watched:
    """``admin``: host:port of the operators' door; ``router``: HTTP address of a router, host:port,
    None: that of the cluster's own. ``interval_s``: seconds between two looks."""

    admin: str
    router: str | None
    interval_s: float


def watch(watched: Watched, refreshes: int | None, output: Output) -> None:
    """Shows the cluster ``refreshes`` times (None: until it is interrupted); as JSON a line each.
    Raises ``Unavailable``."""
    frames = islice(_frames(watched), refreshes)
    if output is Output.JSON:
        for frame in frames:
            print(json.dumps(frame), flush=True)
        return
    _show(frames)


def _show(frames: Iterator[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.live import Live

    from cluster.live.tables import draw

    console = Console()
    if not console.is_terminal:
        for frame in frames:
            console.print(draw(frame))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for frame in frames:
            live.update(draw(frame), refresh=True)


def _frames(watched: Watched) -> Iterator[dict[str, Any]]:
    from cluster.live.frame import make_frame

    for status, interval in _intervals(watched):
        yield make_frame(status, interval)


def _intervals(watched: Watched) -> Iterator[tuple[dict[str, Any], Interval]]:
    """The status, and what was scraped then and some time before, at most the window."""
    from cluster.live.scrape import Interval

    scrapes: deque[Scrape] = deque()
    for status, scrape, is_other_router in _looks(watched):
        if is_other_router:
            scrapes.clear()
        scrapes.append(scrape)
        while len(scrapes) > 2 and scrapes[-1].at - scrapes[1].at >= _WINDOW_S:
            scrapes.popleft()
        if len(scrapes) > 1:
            yield status, Interval(scrapes[0], scrapes[-1])
        wait_s = watched.interval_s
        time.sleep(wait_s if len(scrapes) > 1 else min(wait_s, _FIRST_WAIT_S))


def _looks(watched: Watched) -> Iterator[tuple[dict[str, Any], Scrape, bool]]:
    """Endless: the status, the metrics, and whether they may be those of another router."""
    status = plain(fetch_status(watched.admin))
    for text, is_other_router in _router_metrics(watched, status).looks():
        yield status, _parse(text), is_other_router
        status = plain(fetch_status(watched.admin))


def _parse(text: str) -> Scrape:
    from cluster.live.scrape import Scrape

    try:
        return Scrape.parse(text, time.monotonic())
    except ValueError as error:
        fix = "name the HTTP address of a router with --router"
        raise Unavailable(f"what came is no metrics ({error}); {fix}", reason="NO_ANSWER") from None


def _router_metrics(watched: Watched, status: dict[str, Any]) -> RouterMetrics:
    http_address: str = watched.router or status["http_address"]
    if not http_address:
        raise Unavailable(
            "the cluster has no router of its own yet; try again, or name one with --router",
            reason="NOT_READY",
        )
    host, _, port = http_address.rpartition(":")
    if host in _ANY_HOST:
        host = watched.admin.rpartition(":")[0]
    address = f"{host}:{port}"
    tls = door_tls(address, status["doors_tls"])
    # The operators' port has told the address, and a door's certificate is for what clients call.
    named = watched.router is not None or (tls is not None and tls.server_name != "")
    return RouterMetrics(address, tls, compare_names=named, token=metrics_token())
