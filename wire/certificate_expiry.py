"""When the certificates that a process shows run out, as Prometheus reads it.

Does not cover: renewing them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from core.metric_spec import CERTIFICATE_EXPIRY
from core.tls_files import ServerFiles
from wire.exposition import family
from wire.renewal import Renewal
from wire.tls_check import expires_at


class CertificateExpiry(Collector):
    """``shown``: the files of each certificate by its name, None if there is none. Raises
    ``InvalidField`` if one can't be used."""

    def __init__(self, shown: Mapping[str, ServerFiles | None]) -> None:
        self._known = {name: _renewal(files) for name, files in shown.items() if files is not None}

    def collect(self) -> Iterator[Metric]:
        if self._known:
            expiries = [((name,), known.newest()) for name, known in self._known.items()]
            yield family(CERTIFICATE_EXPIRY, expiries)


def _renewal(files: ServerFiles) -> Renewal[float]:
    return Renewal(files.paths, lambda: expires_at(files))
