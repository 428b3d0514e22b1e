"""What came over each edge, for `status`: of streams that live, and of those lost last."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kv_transfer.rank_ports import EdgeChoice, EdgeTraffic

_log = logging.getLogger(__name__)
# Names of workers are never used again: without a limit, counters of those gone would pile up.
_MAX_GONE = 64
# What stands in the place of a transport for a prefill worker that was refused.
REFUSED = "refused"


@dataclass(slots=True)
class EdgeCounters:
    """What came over one edge: from a rank of a prefill worker, all its lives, to one of ours.

    ``detail``: why no faster transport was taken.
    """

    peer: str
    transport: str
    source: int
    destination: int
    detail: str = ""
    bytes: int = 0
    blocks: int = 0
    seconds: float = 0.0
    resent_blocks: int = 0

    def add(self, traffic: EdgeTraffic) -> None:
        self.bytes += traffic.bytes
        self.blocks += traffic.blocks
        self.seconds += traffic.seconds
        self.resent_blocks += traffic.damaged


# Counters of one stream, by the edge's source and destination rank.
StreamCounters = dict[tuple[int, int], EdgeCounters]


class EdgeBook:
    """Counters of all edges into one decode worker."""

    def __init__(self) -> None:
        self._peers: dict[str, dict[tuple[int, int, str], EdgeCounters]] = {}
        self._live: Counter[str] = Counter()
        self._refused: dict[str, EdgeCounters] = {}

    @property
    def counters(self) -> list[EdgeCounters]:
        """Those of prefill workers whose last try was refused come last, with the reason."""
        edges = [edge for edges in self._peers.values() for edge in edges.values()]
        return [*edges, *self._refused.values()]

    def refused(self, peer: str, reason: str) -> None:
        """This prefill worker's stream came to nothing."""
        known = self._refused.pop(peer, None)
        if known is None or known.detail != reason:
            _log.warning("refused prefill worker %s: %s", peer, reason)
        self._refused[peer] = EdgeCounters(peer, REFUSED, 0, 0, reason)
        for name in list(self._refused)[:-_MAX_GONE]:
            del self._refused[name]

    def opened(self, peer: str, choices: Sequence[EdgeChoice]) -> StreamCounters:
        """A stream of this prefill worker begins; tell of its end with `lost`."""
        self._live[peer] += 1
        self._refused.pop(peer, None)
        edges = self._peers.setdefault(peer, {})
        stream: StreamCounters = {}
        for choice in choices:
            fresh = EdgeCounters(peer, choice.transport, choice.source, choice.destination)
            key = (choice.source, choice.destination, choice.transport)
            counters = edges.setdefault(key, fresh)
            if counters is fresh or choice.detail != counters.detail:
                _tell(peer, choice)
            counters.detail = choice.detail
            stream[choice.source, choice.destination] = counters
        return stream

    def lost(self, peer: str) -> None:
        """One of its streams has ended. Workers that were lost last are kept, in that order."""
        self._live[peer] -= 1
        if self._live[peer] > 0:
            return
        del self._live[peer]
        self._peers[peer] = self._peers.pop(peer)
        gone = [name for name in self._peers if name not in self._live]
        for name in gone[:-_MAX_GONE]:
            del self._peers[name]


def _tell(peer: str, choice: EdgeChoice) -> None:
    level = logging.WARNING if choice.detail else logging.INFO
    why = f": {choice.detail}" if choice.detail else ""
    edge = f"rank {choice.source} of {peer} to rank {choice.destination}"
    _log.log(level, "KV blocks from %s come over %s%s", edge, choice.transport, why)
