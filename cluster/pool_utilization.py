"""How much of each pool is used, and whether their ratio suits the traffic. Pure.

What limits the pools differs: prefill workers are full when they compute all the time; decode
workers always compute while anybody listens, and are full when sequences, KV blocks or the time of
a step (against ``slo.tpot``) are. Does not cover: changing the ratio.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from core.request import Role
from crossdock.v1 import worker_pb2 as pb

# Seconds that are looked back over, and that two readings are apart at least.
WINDOW_S = 30.0
_APART_S = 1.0


@dataclass(frozen=True, slots=True)
class Reading:
    """What a worker told at a time (seconds): totals, and shares of what it has."""

    at: float
    epoch: int
    busy_s: float
    steps: int
    sequences: float
    blocks: float

    @classmethod
    def of(cls, stats: pb.WorkerStats, now: float) -> Reading:
        available = stats.free_blocks + stats.cached_blocks
        return cls(
            at=now,
            epoch=stats.epoch,
            busy_s=stats.busy_s,
            steps=stats.steps,
            sequences=stats.load.running / max(1, stats.max_num_seqs),
            blocks=1.0 - available / max(1, stats.total_blocks),
        )


class PoolUtilization:
    """``tpot_s``: what a decode step may take at most."""

    def __init__(self, tpot_s: float) -> None:
        self._tpot_s = tpot_s
        self._readings: dict[str, deque[Reading]] = {}
        self._roles: dict[str, Role] = {}

    def told(self, stats: pb.WorkerStats, now: float) -> None:
        """A worker answered."""
        readings = self._readings.setdefault(stats.worker, deque())
        self._roles[stats.worker] = Role(stats.role)
        if readings and readings[-1].epoch != stats.epoch:
            readings.clear()
        if readings and now - readings[-1].at < _APART_S:
            return
        readings.append(Reading.of(stats, now))
        while len(readings) > 2 and now - readings[1].at >= WINDOW_S:
            readings.popleft()

    def of(self, pool: str, workers: Iterable[str]) -> float | None:
        """Mean over those ``workers`` of the pool that have told enough, 0 to 1; None if none.

        Others are forgotten: names are never used again.
        """
        self._keep(set(workers))
        prefills = pool == Role.PREFILL.value
        shares = [
            self._prefill(readings) if prefills else self._decode(readings)
            for worker, readings in self._readings.items()
            if len(readings) > 1 and (self._roles[worker] is Role.PREFILL) == prefills
        ]
        return sum(shares) / len(shares) if shares else None

    def _keep(self, workers: set[str]) -> None:
        for worker in self._readings.keys() - workers:
            del self._readings[worker], self._roles[worker]

    @staticmethod
    def _prefill(readings: deque[Reading]) -> float:
        first, last = readings[0], readings[-1]
        return min(1.0, (last.busy_s - first.busy_s) / (last.at - first.at))

    def _decode(self, readings: deque[Reading]) -> float:
        first, last = readings[0], readings[-1]
        steps = last.steps - first.steps
        step_s = (last.busy_s - first.busy_s) / steps if steps else 0.0
        sequences = sum(reading.sequences for reading in readings) / len(readings)
        blocks = sum(reading.blocks for reading in readings) / len(readings)
        return min(1.0, max(sequences, blocks, step_s / self._tpot_s))


def imbalance(prefill: float | None, decode: float | None) -> float | None:
    """-1 to 1, above 0 if prefill is the busier pool; None while one of them is unknown."""
    return None if prefill is None or decode is None else prefill - decode
