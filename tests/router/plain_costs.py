"""What `kv_aware` weighs, worker by worker in plain Python: to compare the columns with.

As ARCHITECTURE.md and ``router.routing.policies.kv_aware`` describe it; no numpy, nothing shared,
nothing left out because it can't matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from predicted_workers import BLOCK, MS, Worker

from core.prefill_order import PREFILL_SHARE
from router.routing.cost_model import ClusterCosts, EngineCosts
from router.routing.policies.kv_aware import COMPUTING_WEIGHT, MISS_MS
from router.routing.predictions import ANSWER_TOKENS
from router.slo import SloTargets


@dataclass(frozen=True)
class PlainCosts:
    """Of one prompt; milliseconds."""

    costs: ClusterCosts
    slo: SloTargets
    tokens: int
    answers: int
    context: float

    def _prompt_ms(self, engine: EngineCosts, uncached: int) -> float:
        step, budget = engine.step, engine.max_num_batched_tokens
        rows = step.rows.at(min(uncached, budget))
        more = max(0, uncached - budget) * step.rows.at(budget) / budget / engine.stages
        attended = (self.tokens - uncached / 2 + 0.5) * uncached
        return (rows + more + attended * step.per_prefill_pair / engine.stages) / MS

    def _ahead_ms(self, engine: EngineCosts, worker: Worker, own_ms: float) -> float:
        step, budget = engine.step, engine.max_num_batched_tokens
        tokens = worker.pending
        if own_ms <= PREFILL_SHARE * self.slo.ttft_s * 1000:
            tokens = worker.pending - worker.late + min(worker.late, budget)
        each = step.rows.at(budget) / budget + step.per_prefill_pair * self.context
        return tokens * each / engine.stages / MS

    def _uncached(self, worker: Worker) -> int:
        return max(1, self.tokens - BLOCK * worker.held)

    def _lacking(self, worker: Worker) -> int:
        return -(-self.tokens // BLOCK) - worker.held

    def _missed(self, first_ms: float) -> float:
        return MISS_MS if first_ms > self.slo.ttft_s * 1000 else 0.0

    def tpot(self, worker: Worker) -> float:
        step = self.costs.decode.step
        batch = min(worker.busy + self.answers, worker.places)
        context = BLOCK * worker.used + self.tokens * self.answers
        time = step.rows.at(batch) + step.per_sampled * batch + step.per_decode_context * context
        return time / MS

    def answer(self, worker: Worker) -> float:
        tpot = self.tpot(worker)
        return ANSWER_TOKENS * tpot + (MISS_MS if tpot > self.slo.tpot_s * 1000 else 0.0)

    def room(self, worker: Worker) -> float:
        free = worker.blocks - worker.used
        blocks = (self._lacking(worker) - free) / max(1, worker.used)
        places = (worker.busy + self.answers - worker.places) / max(1, worker.places)
        return max(0.0, blocks, places) * ANSWER_TOKENS * self.tpot(worker)

    def shipping(self, worker: Worker) -> float:
        transfer = self.costs.transfer
        return (transfer.per_batch + transfer.per_token * BLOCK * self._lacking(worker)) / MS

    def prefill_own(self, worker: Worker) -> float:
        return self._prompt_ms(self.costs.prefill, self._uncached(worker))

    def prefill(self, worker: Worker) -> float:
        own = self.prefill_own(worker)
        return self._ahead_ms(self.costs.prefill, worker, own) + own

    def first_at_prefill(self, worker: Worker) -> float:
        time = self.prefill(worker)
        return time + COMPUTING_WEIGHT * self.prefill_own(worker) + self._missed(time)

    def taking(self, worker: Worker) -> float:
        return self.shipping(worker) + self.room(worker) + self.answer(worker)

    def handoff(self, prefill: Worker, decode: Worker) -> float:
        costs, shipping = self.costs, self.shipping(decode)
        last = min(self._uncached(prefill), costs.prefill.max_num_batched_tokens)
        tail = (costs.transfer.per_batch + costs.transfer.per_token * last) / MS
        hidden = max(min(tail, shipping), shipping - self.prefill_own(prefill))
        return self.prefill(prefill) + hidden + self.room(decode) + 2000 * costs.message_s

    def pair(self, prefill: Worker, decode: Worker) -> float:
        first = self.handoff(prefill, decode)
        computing = COMPUTING_WEIGHT * self.prefill_own(prefill)
        return first + computing + self._missed(first) + self.answer(decode)

    def local_own(self, worker: Worker) -> float:
        return self._prompt_ms(self.costs.decode, self._uncached(worker))

    def local_waiting(self, worker: Worker) -> float:
        return self._ahead_ms(self.costs.decode, worker, self.local_own(worker))

    def _least(self) -> float:
        return self.costs.decode.step.rows.at(1) / MS

    def local(self, worker: Worker) -> float:
        budget = self.costs.decode.max_num_batched_tokens
        steps = math.ceil((worker.pending + self._uncached(worker)) / budget)
        beside = steps * (self.tpot(worker) - self._least())
        return self.local_waiting(worker) + self.local_own(worker) + beside + self.room(worker)

    def alone(self, worker: Worker) -> float:
        first = self.local(worker)
        computing = COMPUTING_WEIGHT * self.local_own(worker)
        return first + computing + self._missed(first) + self.answer(worker)

    def alone_beside_others(self, worker: Worker) -> float:
        stall = self.local_own(worker) - self._least()
        return self.alone(worker) + stall * max(1, worker.busy)

    def spares_answers(self, worker: Worker) -> bool:
        stall = self.local_waiting(worker) + self.local_own(worker) - self._least()
        tpot = self.tpot(worker) + stall / ANSWER_TOKENS
        return worker.busy == 0 or tpot <= self.slo.tpot_s * 1000
