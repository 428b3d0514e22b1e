"""All metrics of a cluster, asked of one of its routers again and again.

Does not cover: what they mean (``cluster.live``).
"""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cluster.cli.http_call import explain, open_connection
from core.errors import Unavailable

if TYPE_CHECKING:
    from crossdock.client import Tls

_TIMEOUT_S = 10.0
_PATH = "/metrics/cluster"


class RouterMetrics:
    """Of the router at host:port. ``compare_names`` false: its certificate may be for any name.
    ``token``: what it asks for, None without one.

    Over one connection as long as it lasts: behind one address may be several routers, of which
    each counts requests of its own.
    """

    def __init__(
        self, address: str, tls: Tls | None, *, compare_names: bool, token: str | None = None
    ) -> None:
        self._url = f"{'http' if tls is None else 'https'}://{address}{_PATH}"
        self._connection = open_connection(address, tls, _TIMEOUT_S, compare_names=compare_names)
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def looks(self) -> Iterator[tuple[str, bool]]:
        """For each: the text, and whether it may be another router's than the one before.

        Raises ``Unavailable``.
        """
        try:
            while True:
                yield self._look()
        except (OSError, http.client.HTTPException) as error:
            raise self._no_metrics(explain(error)) from None
        finally:
            self._connection.close()

    def _look(self) -> tuple[str, bool]:
        was_open = self._connection.sock is not None
        try:
            return self._ask(), False
        except (OSError, http.client.HTTPException):
            if not was_open:
                raise
            # The router has ended, or found the pause too long.
            self._connection.close()
            return self._ask(), True

    def _ask(self) -> str:
        self._connection.request("GET", _PATH, headers=self._headers)
        response = self._connection.getresponse()
        text = response.read().decode("utf-8", "replace")
        if response.status == http.HTTPStatus.UNAUTHORIZED:
            raise self._no_metrics(
                "it asks for another token: give it by --metrics-token-file or "
                "CROSSDOCK_METRICS_TOKEN"
            )
        if response.status != http.HTTPStatus.OK:
            raise self._no_metrics(f"{response.status} {response.reason}")
        return text

    def _no_metrics(self, why: str) -> Unavailable:
        return Unavailable(f"no metrics from {self._url}: {why}", reason="NO_ANSWER")
