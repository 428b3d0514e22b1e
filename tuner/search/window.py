"""How much of a trace a trial simulates: enough for the cluster to fill up, and then some.

An empty cluster answers quickly. A request stays for about a service time; only what arrives after
that meets a cluster as full as the rate makes it. A pool that gets a little more than it can serve
falls behind by that little in each second, so what is counted must be many times as long as the
limit that is missed in the end.

At thousands of requests per second that would be tens of thousands of requests for each trial. As
many are not needed to see whether a cluster falls behind: the trend of some thousand shows it, and
what would come of it in the time that is left out is computed (``trend``). Time is left out only
where the answers are so short that many of them fit into what stays.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

# Not when it is first used, as numpy would: a Ctrl-C that comes while it is imported is lost.
from numpy.random import default_rng

from tuner.simulate.requests import RequestTrace

# Too few to speak of a share of them.
_FEWEST = 100
# Limits for the first token that fit into what is counted, for one service.
_TTFTS = 8
# Requests of a window that show a trend, for one service: so many fill the cluster, so many count;
# and of each at least those of so many times that an answer takes, for it to be full and to last.
_FILLING, _COUNTED = 300, 1200
_ANSWERS = 2


@dataclass(frozen=True, slots=True)
class Counted:
    """Seconds of traffic: ``filling_s`` before anything is counted, then ``counted_s``. Of either
    time may be left out at high rates, but not below twice ``answer_s``, for which an answer takes,
    nor below some number of requests, which grows with ``services``."""

    filling_s: float
    counted_s: float
    answer_s: float
    services: float = 1.0

    @classmethod
    def of(cls, service_s: float, ttft_s: float, services: float) -> Counted:
        """``services`` times a service time or eight TTFTs, whichever is longer. ``service_s``:
        the TTFT and the time that an answer takes."""
        counted_s = services * max(service_s, _TTFTS * ttft_s)
        return cls(service_s, counted_s, max(0.0, service_s - ttft_s), services)

    def is_shortened(self, rate: float) -> bool:
        """Whether time is left out at ``rate`` requests per second."""
        return self._enough(rate, self.counted_s, _COUNTED) < ceil(rate * self.counted_s)

    def filling(self, rate: float) -> int:
        """Requests that come before those that count."""
        return self._enough(rate, self.filling_s, _FILLING)

    def counting(self, rate: float) -> int:
        """Requests that count."""
        return max(_FEWEST, self._enough(rate, self.counted_s, _COUNTED))

    def _enough(self, rate: float, seconds: float, requests: int) -> int:
        """Requests in ``seconds``; fewer if many answers fit into a part of that time."""
        shown = max(requests * self.services, rate * _ANSWERS * self.answer_s)
        return ceil(min(rate * seconds, shown))


@dataclass(frozen=True, slots=True)
class Excerpt:
    """What is simulated of a trace. The first ``filling`` requests are not counted; after the last
    one the traffic would go on for ``further_s`` seconds, which count, too."""

    trace: RequestTrace
    filling: int
    further_s: float

    @property
    def counted(self) -> int:
        return len(self.trace) - self.filling


@dataclass(frozen=True, slots=True)
class Window:
    """``source``, as ``source_of`` gives it, at ``rate`` requests per second."""

    source: RequestTrace
    rate: float
    counted: Counted
    seed: int = 0

    def excerpt(self) -> Excerpt:
        """What is simulated."""
        filling, counting = self.counted.filling(self.rate), self.counted.counting(self.rate)
        count = filling + counting
        repeats = -(-count // len(self.source))
        source = self.source if repeats == 1 else self.source.repeated(repeats)
        beginning = source.first(count)
        if not beginning.rate:  # A burst: only the whole trace has a rate.
            return Excerpt(source.at_rate(self.rate).first(count), filling, 0.0)
        is_whole = not self.counted.is_shortened(self.rate)
        further_s = 0.0 if is_whole else self.counted.counted_s - counting / self.rate
        return Excerpt(beginning.at_rate(self.rate), filling, further_s)


def source_of(trace: RequestTrace, seed: int) -> RequestTrace:
    """Windows are cut from its beginning. Where prompts share nothing, the lengths of any beginning
    are like those of the whole trace; where they do, order matters and stays."""
    return trace if len(trace.shared) else trace.reordered(default_rng(seed))
