"""What one router knows of its workers' loads and caches, and where an attempt goes by that.

Pure: the clock is passed in. Used by the dispatcher and, in virtual time, by the simulator.
Covers: loads as reported and as sent since, the index of cached blocks, the choice of a placement.
Does not cover: which workers may get new requests at all and why not (``router.worker_pool``), the
costs (``router.policy``), what becomes of an attempt (``router.flow``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from core.block_hash import HashArray
from core.outputs import Load
from core.request import AttemptKey, Role
from router.placement import Disaggregation, Placement, WorkerId, WorkerView
from router.policy import PromptShape, choose
from router.prefix_index import PrefixIndex
from router.worker_load import LoadLedger


@dataclass(frozen=True, slots=True, eq=False)
class RoutedPrompt:
    """What routing needs of a request: ``hashes`` uint64 of its full blocks, n ``answers``."""

    shape: PromptShape
    hashes: HashArray
    answers: int = 1


@dataclass(frozen=True, slots=True)
class _Known:
    role: Role
    num_blocks: int
    max_num_seqs: int
    ledger: LoadLedger

    def takes(self, answers: int) -> bool:
        """Whether so many answers can run at a time; a prefill worker runs none."""
        return not self.role.decodes or answers <= max(1, self.max_num_seqs)


class RoutingState:
    """Loads and caches of attached workers. Times in seconds."""

    def __init__(self, disaggregation: Disaggregation, random: Random) -> None:
        self.prefixes = PrefixIndex()
        self._disaggregation = disaggregation
        self._random = random
        self._workers: dict[WorkerId, _Known] = {}

    # What workers say

    def attached(self, worker: WorkerId, role: Role, num_blocks: int, max_num_seqs: int) -> None:
        """Its load and its cached blocks are those of an empty worker until it tells more."""
        self._workers[worker] = _Known(role, num_blocks, max_num_seqs, LoadLedger(num_blocks))

    def lost(self, worker: WorkerId) -> None:
        """Its blocks and its load are unknown until it attaches again."""
        self._workers.pop(worker, None)
        self.prefixes.remove_worker(worker)

    def load_reported(self, worker: WorkerId, load: Load, now: float) -> None:
        known = self._workers.get(worker)
        if known is not None:
            known.ledger.reported(load, now)

    def cache_changed(
        self, worker: WorkerId, stored: HashArray, removed: HashArray, reset: bool = False
    ) -> None:
        """``reset``: forget first what it held before."""
        if reset:
            self.prefixes.reset(worker)
        self.prefixes.removed(worker, removed)
        self.prefixes.stored(worker, stored)

    # Where an attempt goes

    def views(self, usable: Iterable[WorkerId], answers: int = 1) -> list[WorkerView]:
        """Those of ``usable`` that are attached and can run so many answers of one request."""
        known = ((worker, self._workers.get(worker)) for worker in usable)
        return [
            WorkerView(worker, entry.role, entry.num_blocks, entry.ledger.current())
            for worker, entry in known
            if entry is not None and entry.takes(answers)
        ]

    def place(
        self, prompt: RoutedPrompt, usable: Iterable[WorkerId], avoid: frozenset[WorkerId]
    ) -> Placement:
        """The cheapest placement on ``usable`` workers; raises Unavailable."""
        views = self.views(usable, prompt.answers)
        overlap = self.prefixes.overlap(prompt.hashes, (view.worker for view in views))
        return choose(prompt.shape, views, overlap, avoid, self._disaggregation, self._random)

    def free_blocks(self, worker: WorkerId) -> int:
        """Of an attached worker, after all that was sent."""
        return self._workers[worker].ledger.current().free_blocks

    def most_sequences(self, worker: WorkerId) -> int:
        """Answers that an attached worker runs at a time."""
        return max(1, self._workers[worker].max_num_seqs)

    # What was sent

    def sent_open(
        self, key: AttemptKey, prompt: RoutedPrompt, worker: WorkerId, handoff: bool
    ) -> None:
        """``worker`` is to decode an attempt; without ``handoff`` it computes the prompt, too."""
        known = self._workers.get(worker)
        if known is not None:
            held = self._held_blocks(prompt, worker)
            tokens = 0 if handoff else prompt.shape.uncached_tokens(held)
            blocks = prompt.shape.num_blocks - held
            known.ledger.sent_open(key, tokens, blocks, prompt.answers)

    def sent_prefill(
        self, key: AttemptKey, prompt: RoutedPrompt, worker: WorkerId, now: float
    ) -> None:
        """``worker`` is to compute the prompt for another one."""
        known = self._workers.get(worker)
        if known is not None:
            tokens = prompt.shape.uncached_tokens(self._held_blocks(prompt, worker))
            known.ledger.sent_prefill(key, tokens, now)

    def settled(self, key: AttemptKey, workers: Iterable[WorkerId]) -> None:
        """The attempt gave its first output or ended: from now on reports tell the truth."""
        for worker in workers:
            known = self._workers.get(worker)
            if known is not None:
                known.ledger.settled(key)

    def _held_blocks(self, prompt: RoutedPrompt, worker: WorkerId) -> int:
        return self.prefixes.overlap(prompt.hashes, (worker,)).get(worker, 0)
