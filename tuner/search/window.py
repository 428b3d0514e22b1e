"""How much of a trace a trial simulates: enough for the cluster to fill up, and then some.

An empty cluster answers quickly. A request stays for about a service time; only what arrives after
that meets a cluster as full as the rate makes it. A pool that gets a little more than it can serve
falls behind by that little in each second, so what is counted must be many times as long as the
limit that is missed in the end. Nothing else limits the number of requests: a trace that is too
short is repeated.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from tuner.simulate.requests import RequestTrace

# Too few to speak of a share of them.
_FEWEST = 100
# Limits for the first token that fit into what is counted, for one service.
_TTFTS = 8


@dataclass(frozen=True, slots=True)
class Counted:
    """Seconds of traffic: ``filling_s`` before anything is counted, then ``counted_s``."""

    filling_s: float
    counted_s: float

    @classmethod
    def of(cls, service_s: float, ttft_s: float, services: float) -> Counted:
        """``services`` times a service time or eight TTFTs, whichever is longer."""
        return cls(service_s, services * max(service_s, _TTFTS * ttft_s))


@dataclass(frozen=True, slots=True)
class Window:
    """``source``, as ``source_of`` gives it, at ``rate`` requests per second."""

    source: RequestTrace
    rate: float
    counted: Counted
    seed: int = 0

    def requests(self) -> tuple[RequestTrace, int]:
        """What is simulated, and how many of the first are not counted."""
        filling = ceil(self.rate * self.counted.filling_s)
        count = filling + max(_FEWEST, ceil(self.rate * self.counted.counted_s))
        repeats = -(-count // len(self.source))
        source = self.source if repeats == 1 else self.source.repeated(repeats)
        beginning = source.first(count)
        if not beginning.rate:  # A burst: only the whole trace has a rate.
            return source.at_rate(self.rate).first(count), filling
        return beginning.at_rate(self.rate), filling


def source_of(trace: RequestTrace, seed: int) -> RequestTrace:
    """Windows are cut from its beginning. Where prompts share nothing, the lengths of any beginning
    are like those of the whole trace; where they do, order matters and stays."""
    return trace if len(trace.shared) else trace.reordered(np.random.default_rng(seed))
