"""How long workers take, as their latency profile says: the numbers that routing computes with.

All times are milliseconds as floats. Does not cover: where a profile comes from
(``cluster.router_costs``), what is added up to what (``router.routing.predictions``).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from core.latency_profile import RowCurve, StepModel, TransferModel
from core.prefill_order import DEFAULT_TTFT_S, PREFILL_SHARE

# A number, or a column of them.
Amounts = Any
# Columns with an entry for each worker.
Counts = npt.NDArray[np.int64]
Times = npt.NDArray[Any]

_FEMTOSECONDS_OF_MS = 10**12
# Larger batches are taken to be of this size.
_LARGEST_BATCH = 4096
_BEYOND_ALL_PROMPTS = 2**31


@dataclass(frozen=True, slots=True)
class EngineCosts:
    """One replica of a pool. ``step``: through all ``stages`` of its pipeline;
    ``max_num_batched_tokens``: of one step, so also of a chunk."""

    step: StepModel
    max_num_batched_tokens: int
    stages: int = 1


@dataclass(frozen=True, slots=True)
class ClusterCosts:
    """What a router is told of both pools when it starts. ``message_s``: seconds that a control
    message takes from one process to another and through it."""

    prefill: EngineCosts
    decode: EngineCosts
    transfer: TransferModel
    message_s: float


def _ms(value: float) -> int:
    return round(value * _FEMTOSECONDS_OF_MS)


_SMALL_MODEL = EngineCosts(
    StepModel(
        RowCurve(((1, _ms(18.0)), (64, _ms(24.0)), (1024, _ms(264.0)))),
        per_sampled=_ms(0.5),
        per_prefill_pair=_ms(20e-6),
        per_decode_context=_ms(2e-3),
    ),
    max_num_batched_tokens=256,
)
# A model of 135 million parameters on a CPU core: for who starts a router by itself and says
# nothing. Wrong as these times may be, they weigh what is cached against what waits.
ROUGH_COSTS = ClusterCosts(
    _SMALL_MODEL, _SMALL_MODEL, TransferModel(_ms(0.5), _ms(0.003)), message_s=0.5e-3
)


class EngineTimes:
    """The curves of one engine, made ready for columns of workers.

    A prompt is computed in chunks of a step's size, the last one shorter: between whole numbers of
    chunks its time is taken to rise evenly. Stages of a pipeline compute chunks at the same time.
    """

    def __init__(self, costs: EngineCosts) -> None:
        step, budget = costs.step, costs.max_num_batched_tokens
        known = [rows for rows, _ in step.rows.points if 1 < rows < budget]
        rows = sorted({1, *known, budget})
        times = [step.rows.at(number) for number in rows]
        whole = times[-1]
        self._rows = [*rows, _BEYOND_ALL_PROMPTS]
        chunk = whole / costs.stages
        far = whole + chunk * (_BEYOND_ALL_PROMPTS - budget) / budget
        self._row_ms = [time / _FEMTOSECONDS_OF_MS for time in (*times, far)]
        rises = [(after - before) for before, after in pairwise(self._row_ms)]
        widths = [(after - before) for before, after in pairwise(self._rows)]
        self._slopes = [rise / width for rise, width in zip(rises, widths, strict=True)]
        self._pair_ms = step.per_prefill_pair / costs.stages / _FEMTOSECONDS_OF_MS
        self._token_ms = chunk / budget / _FEMTOSECONDS_OF_MS
        batches = range(min(budget, _LARGEST_BATCH) + 1)
        sampled = [step.rows.at(size) + step.per_sampled * size for size in batches]
        self._batch_ms = np.array(sampled) / _FEMTOSECONDS_OF_MS
        self.context_ms = step.per_decode_context / _FEMTOSECONDS_OF_MS
        self.budget = budget
        # What a step takes however little it computes.
        self.least_ms = self._row_ms[0]

    def prompt_ms(self, uncached: int, prompt_tokens: int) -> float:
        """To compute the last ``uncached`` tokens of a prompt, 1 or more, alone."""
        return self.prompts_ms([uncached], prompt_tokens)[0]

    def prompts_ms(self, uncached: Iterable[int], prompt_tokens: int) -> list[float]:
        """`prompt_ms` of each."""
        rows, row_ms, slopes, pair_ms = self._rows, self._row_ms, self._slopes, self._pair_ms
        return [
            row_ms[i := bisect_right(rows, tokens) - 1]
            + slopes[i] * (tokens - rows[i])
            + pair_ms * tokens * (prompt_tokens + 0.5 - 0.5 * tokens)
            for tokens in uncached
        ]

    def waiting_ms(self, tokens: Amounts, context: float) -> Amounts:
        """To compute ``tokens`` of prompts in full chunks, each after ``context`` others."""
        return tokens * (self._token_ms + self._pair_ms * context)

    def step_ms(self, sequences: Counts, context_tokens: Counts) -> Times:
        """A step of so many decoding sequences with so much context together: a new column."""
        times = self.joined_step_ms(sequences, 0)
        times += self.context_ms * context_tokens
        return times

    def joined_step_ms(self, sequences: Counts, more: int) -> Times:
        """The same without their context, when so many ``more`` have joined each."""
        times: Times = self._batch_ms[more:].take(sequences, mode="clip")
        return times


class CostModel:
    """Both pools, and what is between them. ``ttft_s``: when a first token is late."""

    def __init__(self, costs: ClusterCosts = ROUGH_COSTS, ttft_s: float = DEFAULT_TTFT_S) -> None:
        self.prefill = EngineTimes(costs.prefill)
        same = costs.decode == costs.prefill
        self.decode = self.prefill if same else EngineTimes(costs.decode)
        self.message_ms = costs.message_s * 1000
        self.batch_ms = costs.transfer.per_batch / _FEMTOSECONDS_OF_MS
        self.token_ms = costs.transfer.per_token / _FEMTOSECONDS_OF_MS
        self._prompt_limit_ms = PREFILL_SHARE * ttft_s * 1000

    def is_late(self, prompt_ms: float) -> bool:
        """Whether a prompt that takes so long is late even alone: workers let others pass it
        (``core.prefill_order``)."""
        return prompt_ms > self._prompt_limit_ms
