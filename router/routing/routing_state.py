"""What one router knows of its workers' loads and caches, and where an attempt goes by that.

Pure: the clock is passed in. Used by the dispatcher and, in virtual time, by the simulator.
Covers: loads as reported and as sent since, what is cached where, asking the policy.
Does not cover: which workers may get new requests at all and why not
(``router.workers.worker_pool``), the choice (``router.routing.choosing``,
``router.routing.policies``), what becomes of an attempt (``router.flow.flow``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random

from core.block_hash import HashArray
from core.config import DEFAULT_MAX_INDEX_BLOCKS
from core.outputs import Load
from core.request import AttemptKey, Role
from core.values import value
from router.placement import Placement, WorkerId, WorkerView
from router.prefix_index.held_blocks import HeldBlocks
from router.prefix_index.worker_caches import WorkerCaches
from router.routing.candidates import Candidates, KnownWorker, PromptShape, UsableWorkers
from router.routing.choosing import Eligibility, choose
from router.routing.cost_model import CostModel
from router.routing.policies.make import make_policy
from router.routing.predictions import Predictions
from router.routing.queued_context import QueuedContext
from router.routing.routing_rules import RoutingRules
from router.routing.worker_load import InFlight, LoadTable


@value(eq=False)
class RoutedPrompt:
    """What routing needs of a request: ``hashes`` uint64 of its full blocks, n ``answers``."""

    shape: PromptShape
    hashes: HashArray
    answers: int = 1


class RoutingState:
    """Loads and caches of attached workers. Times in seconds."""

    def __init__(
        self,
        rules: RoutingRules,
        random: Random,
        max_index_blocks: int = DEFAULT_MAX_INDEX_BLOCKS,
    ) -> None:
        self.caches = WorkerCaches(max_index_blocks)
        self.loads = LoadTable()
        self._disaggregation = rules.disaggregation
        self._policy = make_policy(rules.policy, rules.slo)
        self._costs = CostModel(rules.costs, rules.slo.ttft_s)
        self._queued_context = QueuedContext()
        self._random = random
        self._attached: dict[WorkerId, KnownWorker] = {}
        self._usable: dict[WorkerId, KnownWorker] = {}
        self._let(UsableWorkers.of({}, 0))

    # What workers say

    def attached(self, worker: WorkerId, role: Role, num_blocks: int, max_num_seqs: int) -> None:
        """Its load is that of an empty worker until it tells more."""
        number = self.caches.attached(worker, num_blocks)
        self._attached[worker] = KnownWorker(number, role, num_blocks, max_num_seqs)
        self.loads.add(number, num_blocks)

    def lost(self, worker: WorkerId) -> None:
        """Its load is unknown until it attaches again, and its attempts are aborted."""
        known = self._attached.pop(worker, None)
        if known is not None:
            self.caches.lost(worker)
            self.loads.remove(known.number)

    def gone(self, worker: WorkerId) -> None:
        """It is lost and does not come back: what it held went with it."""
        self.lost(worker)
        self.caches.forget(worker)

    def use(self, workers: Iterable[WorkerId]) -> None:
        """Only these may get new requests from now on. Those that are not attached can't."""
        self._usable = {w: self._attached[w] for w in workers if w in self._attached}
        self._let(UsableWorkers.of(self._usable, len(self.loads)))

    def _let(self, usable: UsableWorkers) -> None:
        self._columns = usable
        self._eligibility = Eligibility(usable, self._disaggregation)

    def number(self, worker: WorkerId) -> int:
        """Whose entry in `loads` is this attached worker's."""
        return self._attached[worker].number

    def load_reported(self, worker: WorkerId, load: Load, now: float) -> None:
        known = self._attached.get(worker)
        if known is not None:
            self.loads.reported(known.number, load, now)

    # What other routers say

    def in_flight(self) -> dict[WorkerId, InFlight]:
        """What this router has sent to each attached worker and no report includes."""
        return {w: self.loads.sent_here(known.number) for w, known in self._attached.items()}

    def sent_elsewhere(self, worker: WorkerId, sent: InFlight) -> None:
        """The same of all other routers together. Nothing, while it is not attached here."""
        known = self._attached.get(worker)
        if known is not None:
            self.loads.sent_elsewhere(known.number, sent)

    # Where an attempt goes

    @property
    def views(self) -> list[WorkerView]:
        """What is known of the usable workers."""
        return [
            WorkerView(worker, known.role, known.num_blocks, self.loads.current(known.number))
            for worker, known in self._usable.items()
        ]

    @property
    def columns(self) -> UsableWorkers:
        """The usable workers, by number."""
        return self._columns

    def overlaps(self, prompt: RoutedPrompt) -> HeldBlocks:
        """Leading blocks of the prompt that each worker holds or will hold soon."""
        return self.caches.overlaps(prompt.hashes, len(self.loads))

    def place(
        self, prompt: RoutedPrompt, avoid: frozenset[WorkerId], held: HeldBlocks | None = None
    ) -> Placement:
        """What the policy takes of the usable workers; raises Unavailable.

        ``held``: what `overlaps` says now, from who has asked already.
        """
        eligible = self._eligibility.of(prompt.shape, prompt.answers, avoid)
        held = self.overlaps(prompt) if held is None else held
        predictions = Predictions(
            self._costs,
            prompt.shape,
            Candidates(self._columns, self.loads, held),
            prompt.answers,
            self._queued_context.mean,
        )
        return choose(eligible, predictions, self._policy, self._random)

    # What was sent

    def sent(self, key: AttemptKey, prompt: RoutedPrompt, placement: Placement, now: float) -> None:
        """An attempt goes to the workers that `place` took just now, by what they held then."""
        forecast, prefill = placement.forecast, placement.prefill
        if prefill is None:
            self._sent_local(key, prompt, placement.decode, forecast.decode_held, now)
            return
        self._sent_open(key, prompt, placement.decode, forecast.decode_held, now)
        self._sent_prefill(key, prompt, prefill, forecast.prefill_held, now)

    def _sent_local(
        self, key: AttemptKey, prompt: RoutedPrompt, worker: WorkerId, held: int, now: float
    ) -> None:
        """It is to compute the prompt and to decode."""
        known = self._attached.get(worker)
        if known is not None:
            tokens, blocks = prompt.shape.uncached_tokens(held), prompt.shape.num_blocks - held
            self.loads.sent_local(known.number, key, tokens, blocks, prompt.answers, now)
            self._queued(known.number, key, prompt, tokens)
            self.caches.expect(key, worker, prompt.hashes, held, now)

    def _sent_open(
        self, key: AttemptKey, prompt: RoutedPrompt, worker: WorkerId, held: int, now: float
    ) -> None:
        """It is to decode what another one computes."""
        known = self._attached.get(worker)
        if known is not None:
            blocks = prompt.shape.num_blocks - held
            self.loads.sent_open(known.number, key, blocks, prompt.answers)
            self.caches.expect(key, worker, prompt.hashes, held, now)

    def _sent_prefill(
        self, key: AttemptKey, prompt: RoutedPrompt, worker: WorkerId, held: int, now: float
    ) -> None:
        """It is to compute the prompt for another one."""
        known = self._attached.get(worker)
        if known is not None:
            tokens = prompt.shape.uncached_tokens(held)
            self.loads.sent_prefill(known.number, key, tokens, now)
            self._queued(known.number, key, prompt, tokens)
            self.caches.expect(key, worker, prompt.hashes, held, now)

    def answered(
        self, key: AttemptKey, prompt: RoutedPrompt, workers: Sequence[WorkerId], now: float
    ) -> list[WorkerId]:
        """The attempt gave its first output: from now on reports tell the truth.

        Returns workers that give no cache events, as this shows.
        """
        hashes = prompt.hashes
        silent = [w for w in workers if self.caches.answered(key, w, hashes, now)]
        self._load_settled(key, workers)
        return silent

    def _queued(self, number: int, key: AttemptKey, prompt: RoutedPrompt, tokens: int) -> None:
        """So many tokens of a prompt wait there from now on."""
        length = prompt.shape.num_tokens
        self._queued_context.add(tokens, length)
        if self._costs.is_late(self._costs.prefill.prompt_ms(tokens, length)):
            self.loads.sent_late(number, key, tokens)

    def settled(self, key: AttemptKey, workers: Iterable[WorkerId]) -> None:
        """The attempt ended: from now on reports tell the truth."""
        for worker in workers:
            self.caches.settled(key, worker)
        self._load_settled(key, workers)

    def _load_settled(self, key: AttemptKey, workers: Iterable[WorkerId]) -> None:
        for worker in workers:
            known = self._attached.get(worker)
            if known is not None:
                self.loads.settled(known.number, key)
