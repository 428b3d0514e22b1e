"""Workers with round times, as columns for the policies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.latency_profile import FEMTOSECONDS, RowCurve, StepModel, TransferModel
from core.prefill_order import DEFAULT_TTFT_S
from core.request import Role
from router.placement import WorkerId
from router.prefix_index.held_blocks import HeldBlocks
from router.routing.candidates import (
    Candidates,
    Counts,
    Floats,
    KnownWorker,
    PromptShape,
    UsableWorkers,
)
from router.routing.cost_model import ClusterCosts, CostModel, EngineCosts
from router.routing.predictions import Predictions

MS = FEMTOSECONDS // 1000
BLOCK = 16

# 10 ms for a step and 0.1 ms for each row, 1 ms for a draw, 1 µs for a token of context; nothing
# for pairs.
STEP = StepModel(RowCurve(((0, 10 * MS), (1000, 110 * MS))), MS, 0, MS // 1000)
ENGINE = EngineCosts(STEP, max_num_batched_tokens=200)
# 1 ms for a batch and 0.01 ms for each token.
COSTS = ClusterCosts(ENGINE, ENGINE, TransferModel(MS, MS // 100), message_s=0.001)


@dataclass(frozen=True)
class Worker:
    """``busy``: answers that run there; ``pending``: prompt tokens that wait; ``used``: blocks."""

    name: str
    role: Role
    busy: int = 0
    pending: int = 0
    late: int = 0
    used: int = 0
    blocks: int = 1000
    held: int = 0
    places: int = 32

    @property
    def worker(self) -> WorkerId:
        return WorkerId(self.name, 1)


def prefill(name: str, pending: int = 0, *, held: int = 0, blocks: int = 1000) -> Worker:
    return Worker(name, Role.PREFILL, pending=pending, held=held, blocks=blocks, places=2**31)


def decode(name: str, busy: int = 0, *, used: int = 0, held: int = 0, pending: int = 0) -> Worker:
    return Worker(name, Role.DECODE, busy, pending, used=used, held=held)


def mixed(name: str, busy: int = 0, *, used: int = 0, held: int = 0, pending: int = 0) -> Worker:
    return Worker(name, Role.MIXED, busy, pending, used=used, held=held)


@dataclass(frozen=True)
class PlainLoads:
    sequences: Counts
    context_blocks: Floats
    free_blocks: Counts
    pending_prefill_tokens: Floats
    late_tokens: Counts


def usable(*workers: Worker) -> UsableWorkers:
    known = {
        worker.worker: KnownWorker(number, worker.role, worker.blocks, worker.places)
        for number, worker in enumerate(workers)
    }
    return UsableWorkers.of(known, len(workers))


def columns(*workers: Worker) -> Candidates:
    def counts(name: str) -> Counts:
        return np.array([getattr(worker, name) for worker in workers], dtype=np.int64)

    used = counts("used")
    loads = PlainLoads(
        counts("busy"),
        used.astype(np.float64),
        counts("blocks") - used,
        counts("pending").astype(np.float64),
        counts("late"),
    )
    levels = sorted({0, *(worker.held for worker in workers)})
    level_of = np.array([levels.index(worker.held) for worker in workers], dtype=np.intp)
    return Candidates(usable(*workers), loads, HeldBlocks(levels, level_of))


def predict(
    *workers: Worker,
    tokens: int = 100,
    costs: ClusterCosts = COSTS,
    context: float = 0.0,
    answers: int = 1,
    ttft_s: float = DEFAULT_TTFT_S,
) -> Predictions:
    model, prompt = CostModel(costs, ttft_s), PromptShape(tokens, BLOCK)
    return Predictions(model, prompt, columns(*workers), answers, context)
