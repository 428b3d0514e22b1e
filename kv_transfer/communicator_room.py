"""How many communicators live in this process at once, and which edge gives its one up for another.

Each holds GPU memory and a few threads, so there is a cap. An edge that needs one while the cap is
reached lets the edge that was used longest ago, and is idle, close. Does not cover: closing itself
(both sides must agree that nothing is under way: ``kv_transfer.nccl_receiver_rules``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

DEFAULT_CAP = 64


class Tenant(Protocol):
    """An edge with a communicator."""

    @property
    def is_idle(self) -> bool: ...

    def ask_to_close(self) -> None:
        """Returns at once; the edge closes when both of its sides are idle."""


class CommunicatorRoom:
    """``cap``: live communicators at most. Used from all threads of the process."""

    def __init__(self, cap: int = DEFAULT_CAP, clock: Callable[[], float] = time.monotonic) -> None:
        self._cap = cap
        self._clock = clock
        self._changed = threading.Condition()
        # In the order of their last use, the oldest first.
        self._live: dict[Tenant, None] = {}

    def enter(self, tenant: Tenant, limit_s: float) -> bool:
        """Waits so long for room; False if there is none. `leave` it again."""
        deadline = self._clock() + limit_s
        asked: set[Tenant] = set()
        while True:
            with self._changed:
                if len(self._live) < self._cap:
                    self._live[tenant] = None
                    return True
                candidates = [other for other in self._live if other not in asked]
            # Not under the lock: asking takes the other edge's own.
            oldest = next((other for other in candidates if other.is_idle), None)
            if oldest is not None:
                asked.add(oldest)
                oldest.ask_to_close()
            with self._changed:
                left = deadline - self._clock()
                if left <= 0:
                    return False
                if len(self._live) >= self._cap:
                    # Edges become idle without telling: look again soon.
                    self._changed.wait(min(left, 0.05))

    def touch(self, tenant: Tenant) -> None:
        """It was used."""
        with self._changed:
            if tenant in self._live:
                del self._live[tenant]
                self._live[tenant] = None

    def leave(self, tenant: Tenant) -> None:
        """Its communicator is gone. Without effect if it had none."""
        with self._changed:
            self._live.pop(tenant, None)
            self._changed.notify_all()


# Of this process: both roles of a mixed worker share it.
ROOM = CommunicatorRoom()
