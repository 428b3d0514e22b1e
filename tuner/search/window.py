"""How much of a trace a trial simulates: enough for the cluster to fill up, and then some.

An empty cluster answers quickly. A request stays for about a service time; only what arrives after
that meets a cluster as full as the rate makes it. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from tuner.simulate.requests import RequestTrace

# Too few to speak of a share of them.
_FEWEST = 100


@dataclass(frozen=True, slots=True)
class Window:
    """``trace`` at ``rate`` requests per second, for ``services`` service times of ``service_s``
    each after a first one that is not counted; at most ``most`` requests."""

    trace: RequestTrace
    rate: float
    service_s: float
    services: float
    most: int
    seed: int = 0

    def requests(self) -> tuple[RequestTrace, int]:
        """What is simulated, and how many of the first are not counted: at most half."""
        filling = ceil(self.rate * self.service_s)
        wanted = max(_FEWEST, ceil(filling * (1 + self.services)))
        count = min(len(self.trace), self.most, wanted)
        return self.trace.first(count).at_rate(self.rate), min(filling, count // 2)
