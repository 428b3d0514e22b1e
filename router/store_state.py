"""How a router gets on with the store, for metrics, `status` and tests. A plain value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoreState:
    """``is_shared``: else each router goes by what it knows itself, ``why`` says why. ``peers``:
    other routers that live, as far as known. ``failures``: times that the store failed."""

    is_shared: bool
    why: str
    peers: int
    failures: int
