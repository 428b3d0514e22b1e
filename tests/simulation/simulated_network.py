"""Connections between processes in virtual time: late, in order, and broken now and then.

What is on its way when a connection breaks is lost, and each side hears of the break in its own
time. Messages that have rules against it are lost and doubled one by one, too.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

Message = TypeVar("Message")

_USUAL_DELAY_S = 0.0005


@dataclass
class Faults:
    """Chances. ``lose``, ``double``: of each cache event and each message of a handoff; ``late``:
    of each message; ``damage``: of each copied block; ``trouble``: that in a tenth of a second
    somebody dies, hangs, leaves, or a connection breaks."""

    lose: float = 0.0
    double: float = 0.0
    late: float = 0.0
    damage: float = 0.0
    trouble: float = 0.0


class Process(Protocol):
    """``stalled_until``: when it does anything again, seconds."""

    is_alive: bool
    stalled_until: float


class Network:
    """The clock, the dice and the journal of one world."""

    def __init__(self, seed: int, faults: Faults) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.journal: list[tuple[float, str]] = []
        self._loop = asyncio.get_running_loop()

    @property
    def now(self) -> float:
        return self._loop.time()

    def note(self, what: str) -> None:
        self.journal.append((self.now, what))

    def after(self, delay_s: float, act: Callable[..., None], *args: Any) -> None:
        self._loop.call_later(delay_s, act, *args)

    def delay(self) -> float:
        """Of one message, seconds."""
        if self.random.random() >= self.faults.late:
            return _USUAL_DELAY_S * (1 + self.random.random())
        return self.random.choice([0.02, 0.2, 1.0]) * self.random.random()

    def times(self) -> int:
        """How often an unreliable message arrives."""
        if self.random.random() < self.faults.lose:
            return 0
        return 2 if self.random.random() < self.faults.double else 1


class Pipe(Generic[Message]):
    """One direction of a connection to ``receiver``."""

    def __init__(
        self, network: Network, receiver: Process, receive: Callable[[Message], None]
    ) -> None:
        self._network = network
        self._receiver = receiver
        self._receive = receive
        self._under_way: deque[Message] = deque()
        self.is_broken = False

    def send(self, message: Message) -> None:
        if not self.is_broken:
            self._under_way.append(message)
            self._network.after(self._network.delay(), self._arrive)

    def send_astray(self, message: Message) -> None:
        """It may be lost, doubled, and overtake others."""
        for _ in range(self._network.times()):
            if self._network.random.random() < self._network.faults.late:
                self._network.after(self._network.random.random(), self._deliver, message)
            else:
                self.send(message)

    def _arrive(self) -> None:
        if self.is_broken:
            return
        stalled = self._receiver.stalled_until - self._network.now
        if stalled > 0:
            self._network.after(stalled, self._arrive)
        else:
            self._deliver(self._under_way.popleft())

    def _deliver(self, message: Message) -> None:
        if not self.is_broken and self._receiver.is_alive:
            self._receive(message)
