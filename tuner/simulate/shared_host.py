"""One host in virtual time on which several workers compute: each is slower while others do, too.

Those on other cores take some of the memory's bandwidth, those on the same core most of its time:
Linux shares a core out fairly among those that want it (EEVDF), and within a step of an engine many
time slices pass, so the share may be taken as even. Does not cover: which workers share a core
(``tuner.simulate.core_shares``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from core.latency_profile import StepModel, StepWork
from tuner.simulate.agenda import Agenda
from tuner.simulate.cluster_model import HostShare


@dataclass(slots=True)
class _Step:
    """Times of the whole step in femtoseconds: ``alone``, ``beside`` others on other cores,
    ``crowded`` by one other on the same core. ``decodes``: nothing else. ``left``: 1 at its start,
    0 at its end."""

    share: HostShare
    decodes: bool
    alone: int
    beside: int
    crowded: int
    on_end: Callable[[None], None]
    left: float = 1.0


class SharedHost:
    """Steps that are under way on one host, at most one of each worker."""

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda
        self._steps: dict[int, _Step] = {}
        self._since = 0
        # Ends that were put down before this number was raised no longer hold.
        self._order = 0

    def start(
        self,
        worker: int,
        share: HostShare,
        alone: StepModel,
        work: StepWork,
        on_end: Callable[[None], None],
    ) -> None:
        """A step begins now; ``alone``: how long it takes while nobody else computes."""
        self._advance()
        self._steps[worker] = _Step(
            share=share,
            decodes=work.rows == work.decodes,
            alone=max(1, alone.time(work)),
            beside=max(1, share.beside.time(work)),
            crowded=max(1, share.crowded.time(work)),
            on_end=on_end,
        )
        self._put_down_ends()

    def _advance(self) -> None:
        elapsed = self._agenda.now - self._since
        self._since = self._agenda.now
        if elapsed:
            for step in self._steps.values():
                step.left = max(0.0, step.left - elapsed / self._time(step))

    def _time(self, step: _Step) -> float:
        """Of the whole step, if all went on as it is now."""
        if (on_core := self._on_core(step)) > 1:
            return step.crowded * on_core / 2
        interference = step.share.interference
        others = [other for other in self._steps.values() if other is not step]
        if interference is None:
            return step.beside if others else step.alone
        # Of those that share a core only one computes at a time.
        added = sum(
            other.share.part
            / self._on_core(other)
            * interference.added(step.decodes, other.decodes)
            for other in others
        )
        return step.alone * (1 + added)

    def _on_core(self, step: _Step) -> int:
        """How many compute on its core, itself included."""
        core = step.share.core
        if core is None:
            return 1
        return sum(other.share.core == core for other in self._steps.values())

    def _put_down_ends(self) -> None:
        self._order += 1
        for worker, step in self._steps.items():
            end = self._agenda.now + max(1, round(step.left * self._time(step)))
            self._agenda.at_step_end(end, worker, self._on_end, (self._order, worker))

    def _on_end(self, ended: tuple[int, int]) -> None:
        order, worker = ended
        if order != self._order:
            return
        self._advance()
        step = self._steps.pop(worker)
        self._put_down_ends()
        step.on_end(None)
