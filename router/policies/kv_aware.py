"""The pair with the lowest predicted cost: milliseconds until the first token, and of the others.

Of P: what waits there and the uncached part of the prompt. Of D: the transfer of the blocks that it
lacks, the wait for room, and the steps of a usual answer with this request in the batch. A
predicted miss of an SLO weighs as much as ten seconds. So a hot prefix stays with its holder until
that one is saturated, and spreads then.

Conditional disaggregation: D alone, which computes the prompt in chunks beside its answers, is
compared with the best pair. The steps that others there wait for count as well, and no D is asked
whose answers would miss their TPOT by that.
"""

from __future__ import annotations

import math
from random import Random

import numpy as np

from router.candidates import Mask
from router.held_blocks import Numbers
from router.policies.policy import Choice, Eligible, lowest
from router.predictions import ANSWER_TOKENS, Predictions, Times
from router.slo import SloTargets

MISS_MS = 10_000.0
# A millisecond of computing weighs so much more than one of waiting: it keeps those that come after
# waiting, and evicts what they would have found.
COMPUTING_WEIGHT = 5.0
# So many workers are looked at one by one; more are faster together.
_FEW = 12


class KvAware:
    """Equal costs are decided at random."""

    def __init__(self, slo: SloTargets) -> None:
        self._ttft_ms = slo.ttft_s * 1000
        self._tpot_ms = slo.tpot_s * 1000

    def choose(self, eligible: Eligible, predictions: Predictions, random: Random) -> Choice:
        answer = self._answer(predictions)
        if eligible.handoff is None:
            assert eligible.local is not None
            return Choice(lowest(eligible.local, self._local_cost(predictions) + answer, random))
        prefillers, receivers = eligible.handoff
        first = self._first_token(predictions.prefill_ms, predictions.prefill_own_ms)
        prefill = lowest(prefillers, first, random)
        taking = predictions.transfer_ms + answer
        if not predictions.all_have_room:
            taking += predictions.room_ms
        decode = lowest(receivers, taking, random)
        if eligible.local is not None:
            limit = self._pair_cost(predictions, prefill, decode) + answer.item(decode)
            alone = self._cheaper_alone(eligible.local, predictions, answer, limit, random)
            if alone is not None:
                return Choice(alone)
        return Choice(decode, prefill)

    def _cheaper_alone(
        self, local: Numbers, predictions: Predictions, answer: Times, limit: float, random: Random
    ) -> int | None:
        """The D that costs least alone, if that is less than ``limit``."""
        # Most prompts are too long, which two numbers tell.
        answers = answer.take(local)
        left = limit - answers.item(answers.argmin())
        near = predictions.that_compute_within(local, left / (1 + COMPUTING_WEIGHT))
        if not len(near):
            return None
        if len(near) <= _FEW:
            costs = np.array(
                [self._alone(predictions, n, answer.item(n), limit) for n in near.tolist()]
            )
        else:
            costs = self._all_alone(predictions, answer).take(near)
        chosen = lowest(np.arange(len(near)), costs, random)
        return int(near[chosen]) if costs[chosen] < limit else None

    def _alone(self, predictions: Predictions, number: int, answer: float, limit: float) -> float:
        """What one D costs alone, with the others that wait for it; it may not keep answers from
        their TPOT. Infinite if that is ``limit`` or more."""
        own_ms, stall_ms = predictions.local_own_of(number)
        running = predictions.candidates.loads.sequences.item(number)
        # Somebody's answer waits for it: if there is none, that of who comes next.
        least = answer + (1 + COMPUTING_WEIGHT) * own_ms + stall_ms * max(1, running)
        if least >= limit:
            return math.inf
        alone = predictions.alone(number)
        stall = (alone.waiting_ms + stall_ms) / ANSWER_TOKENS
        if running and predictions.tpot_ms.item(number) + stall > self._tpot_ms:
            return math.inf
        missed = MISS_MS if alone.first_ms > self._ttft_ms else 0.0
        return least - own_ms + alone.first_ms + missed

    def _all_alone(self, predictions: Predictions, answer: Times) -> Times:
        """The same of all."""
        others = np.maximum(predictions.candidates.loads.sequences, 1)
        costs = self._local_cost(predictions) + answer + predictions.stall_ms * others
        return np.where(self._spares_answers(predictions), costs, math.inf)

    def _pair_cost(self, predictions: Predictions, prefill: int, decode: int) -> float:
        """To the first token."""
        first_ms = predictions.handoff_ms(prefill, decode)
        computing: float = COMPUTING_WEIGHT * predictions.prefill_own_ms.item(prefill)
        return first_ms + computing + (MISS_MS if first_ms > self._ttft_ms else 0.0)

    def _local_cost(self, predictions: Predictions) -> Times:
        """To the first token."""
        return self._first_token(predictions.local_ms, predictions.local_own_ms)

    def _first_token(self, times: Times, computing: Times) -> Times:
        costs: Times = COMPUTING_WEIGHT * computing
        costs += times
        return _with_misses(costs, times > self._ttft_ms)

    def _answer(self, predictions: Predictions) -> Times:
        tpot = predictions.tpot_ms
        return _with_misses(ANSWER_TOKENS * tpot, tpot > self._tpot_ms)

    def _spares_answers(self, predictions: Predictions) -> Mask:
        """Whose answers would still get their tokens in time, with all that waits there and this
        prompt computed between them."""
        stalls = (predictions.local_waiting_ms + predictions.stall_ms) / ANSWER_TOKENS
        in_time = predictions.tpot_ms + stalls <= self._tpot_ms
        spared: Mask = in_time | (predictions.candidates.loads.sequences == 0)
        return spared


def _with_misses(costs: Times, missed: Mask) -> Times:
    """The same column, changed. Mostly nobody misses anything."""
    if np.count_nonzero(missed):
        costs += MISS_MS * missed
    return costs
