"""One core in virtual time on which several workers compute: each is slower while others do, too.

Linux shares a core out fairly among those that want it (EEVDF); within a step of an engine many
time slices pass, so the share may be taken as even. Does not cover: which workers share a core
(``tuner.simulate.core_shares``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tuner.simulate.agenda import Agenda


@dataclass(slots=True)
class _Step:
    """``left``: 1 at its start, 0 at its end. Times in femtoseconds."""

    alone: int
    crowded: int
    on_end: Callable[[None], None]
    left: float = 1.0

    def time(self, computing: int) -> float:
        """Of a whole step beside ``computing`` - 1 others; measured with one."""
        return self.alone if computing == 1 else self.crowded * computing / 2


class CrowdedCore:
    """Steps that are under way on one core, at most one of each worker."""

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda
        self._steps: dict[int, _Step] = {}
        self._since = 0
        # Ends that were put down before this number was raised no longer hold.
        self._order = 0

    def start(self, worker: int, alone: int, crowded: int, on_end: Callable[[None], None]) -> None:
        """A step that takes ``alone`` femtoseconds by itself, ``crowded`` beside another one."""
        self._advance()
        self._steps[worker] = _Step(alone, crowded, on_end)
        self._put_down_ends()

    def _advance(self) -> None:
        elapsed = self._agenda.now - self._since
        self._since = self._agenda.now
        computing = len(self._steps)
        for step in self._steps.values():
            step.left = max(0.0, step.left - elapsed / step.time(computing))

    def _put_down_ends(self) -> None:
        self._order += 1
        computing = len(self._steps)
        for worker, step in self._steps.items():
            end = self._agenda.now + max(1, round(step.left * step.time(computing)))
            self._agenda.at_step_end(end, worker, self._on_end, (self._order, worker))

    def _on_end(self, ended: tuple[int, int]) -> None:
        order, worker = ended
        if order != self._order:
            return
        self._advance()
        step = self._steps.pop(worker)
        self._put_down_ends()
        step.on_end(None)
