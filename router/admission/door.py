"""Carries out what the door decides, one thing after the other.

What one command leads to (a request that can't be placed ends, which makes room for another) is
told to the door when the command is done: so thousands that end at once nest no deeper than one.
Does not cover: the decisions (``router.admission.admission``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from core.errors import CrossdockError
from core.request import RequestKey
from router.admission.admission import Admission
from router.admission.messages import Admit, DoorEvent, RoomChanged


class Door:
    """``admit`` sends a request to workers, ``refuse`` ends it."""

    def __init__(
        self,
        admission: Admission,
        admit: Callable[[RequestKey], None],
        refuse: Callable[[RequestKey, CrossdockError], None],
    ) -> None:
        self._admission = admission
        self._admit = admit
        self._refuse = refuse
        self._events: deque[DoorEvent] = deque()
        self._is_busy = False

    def tell(self, event: DoorEvent, now: float) -> None:
        self._events.append(event)
        if self._is_busy:
            return
        self._is_busy = True
        try:
            while self._events:
                self._handle(self._events.popleft(), now)
        finally:
            # What a defect in one request left is done with the next event.
            self._is_busy = False

    def _handle(self, event: DoorEvent, now: float) -> None:
        commands = self._admission.handle(event, now)
        for command in commands:
            if isinstance(command, Admit):
                self._admit(command.key)
            else:
                self._refuse(command.key, command.error)
        if commands and self._admission.queued:
            self._events.append(RoomChanged())

    def room_changed(self, now: float) -> None:
        """Costs nothing while nobody waits."""
        if self._admission.queued:
            self.tell(RoomChanged(), now)
