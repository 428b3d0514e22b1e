"""The workers that all routers know of, for those that can't reach the controller. Pure.

A lease says that some router is attached to a worker: routers renew them, so they end with the
workers, whether a controller is there or not. As long as the controller is there its list is what
counts; without it a router goes by the leases and keeps whoever it is attached to.
Does not cover: the controller's list on its way here (``router.workers.directory``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from crossdock.v1.registry_pb2 import WorkerRecord
from router.placement import WorkerId

LEASE_S = 30.0
RENEW_S = 5.0
# How long the controller is waited for before the leases count.
PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class LeaseChange:
    """``renewed``: records to keep for another ``LEASE_S``; ``ended``: keys to drop now.
    ``is_first_hand``: the controller says so, else what the store has of a worker stays."""

    is_first_hand: bool
    renewed: dict[str, bytes] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)


class RegistryMirror:
    """Times in seconds. ``now``: when the router starts."""

    def __init__(self, now: float) -> None:
        self._away_since: float | None = now
        self._records: dict[WorkerId, WorkerRecord] = {}
        self._ended: set[str] = set()
        self.secret = b""

    def controller_listed(self, records: Sequence[WorkerRecord], secret: bytes) -> None:
        self._away_since = None
        if secret:
            self.secret = secret
        listed = {WorkerId(record.worker, record.epoch): record for record in records}
        self._ended |= {_key(worker) for worker in self._records if worker not in listed}
        self._ended -= {_key(worker) for worker in listed}
        self._records = listed

    def controller_lost(self, now: float) -> None:
        if self._away_since is None:
            self._away_since = now

    def goes_by_leases(self, now: float) -> bool:
        """Whether the store is to be asked which workers there are."""
        return self._away_since is not None and now - self._away_since >= PATIENCE_S

    def change(self, attached: Collection[WorkerId]) -> LeaseChange:
        """What the store is to be told now. ``attached``: to this router."""
        here = set(attached)
        renewed = {
            _key(worker): record.SerializeToString()
            for worker, record in self._records.items()
            if worker in here
        }
        first_hand = self._away_since is None
        return LeaseChange(first_hand, renewed, sorted(self._ended - set(renewed)))

    def told(self, change: LeaseChange) -> None:
        """The store has taken it."""
        self._ended -= set(change.ended)

    def leased(
        self, told: Sequence[bytes], attached: Collection[WorkerId]
    ) -> list[WorkerRecord] | None:
        """The workers to go by from now on; None: the same as before."""
        here = set(attached)
        found = {w: record for w, record in self._records.items() if w in here}
        for record in filter(None, map(_readable, told)):
            found[WorkerId(record.worker, record.epoch)] = record
        if found == self._records:
            return None
        self._records = found
        return list(found.values())


def _readable(told: bytes) -> WorkerRecord | None:
    """None for what no router of ours wrote: one such lease must not hide the others."""
    try:
        return WorkerRecord.FromString(told)
    except DecodeError:
        return None


def _key(worker: WorkerId) -> str:
    return f"{worker.name}@{worker.epoch}"
