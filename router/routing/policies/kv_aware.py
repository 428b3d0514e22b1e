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

from router.prefix_index.held_blocks import Numbers
from router.routing.candidates import Mask
from router.routing.policies.policy import Choice, Eligible, all_lowest, lowest, one_of
from router.routing.predictions import ANSWER_TOKENS, Predictions, Times
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
        if eligible.handoff is None:
            assert eligible.local is not None
            costs = self._local_cost(predictions) + self._answer(predictions)
            return Choice(lowest(eligible.local, costs, random))
        prefillers, receivers = eligible.handoff
        prefill = self._prefill(prefillers, predictions, random)
        decode = self._decode(receivers, predictions, random)
        if eligible.local is not None:
            limit = self._pair_cost(predictions, prefill, decode)
            alone = self._cheaper_alone(eligible.local, predictions, limit, random)
            if alone is not None:
                return Choice(alone)
        return Choice(decode, prefill)

    def _prefill(self, among: Numbers, predictions: Predictions, random: Random) -> int:
        """Whose first token costs least. A miss only adds to a cost: where those who are best
        without any miss nothing, what others miss need not be looked at."""
        costs = predictions.weighted_prefill_ms(1 + COMPUTING_WEIGHT)
        best = all_lowest(among, costs)
        # A time that counts but once is no longer than this.
        if costs.item(best[0]) <= self._ttft_ms:
            return one_of(best, random)
        if len(best) <= _FEW and all(predictions.prefill_of(n) <= self._ttft_ms for n in best):
            return one_of(best, random)
        return lowest(among, _with_misses(costs, predictions.prefill_ms > self._ttft_ms), random)

    def _decode(self, among: Numbers, predictions: Predictions, random: Random) -> int:
        """Who takes the blocks over and streams the answer at the least cost; likewise with misses
        and with the wait for room."""
        # For each token of the answer, which saves a multiplication.
        costs = predictions.transfer_ms(ANSWER_TOKENS)
        costs += predictions.joined_ms
        best = all_lowest(among, costs)
        # Without a part of the transfer a step is no longer than this.
        in_time = costs.item(best[0]) + predictions.context_ms <= self._tpot_ms
        if in_time and len(best) <= _FEW and all(map(predictions.has_room, best)):
            return one_of(best, random)
        costs = predictions.transfer_ms() + predictions.room_ms + self._answer(predictions)
        return lowest(among, costs, random)

    def _cheaper_alone(
        self, local: Numbers, predictions: Predictions, limit: float, random: Random
    ) -> int | None:
        """The D that costs least alone, if that is less than ``limit``."""
        # Where nothing waits and nothing is late: most are out by that.
        near = local[predictions.least_alone_ms(1 + COMPUTING_WEIGHT)[local] < limit]
        if not len(near):
            return None
        if len(near) <= _FEW:
            costs = [self._alone(predictions, number) for number in near.tolist()]
        else:
            costs = self._all_alone(predictions).take(near).tolist()
        least = min(costs)
        best = [number for number, cost in zip(near.tolist(), costs, strict=True) if cost == least]
        chosen = one_of(best, random)
        return chosen if least < limit else None

    def _alone(self, predictions: Predictions, number: int) -> float:
        """What one D costs alone, with the others that wait for it; infinite if that would keep
        answers from their TPOT."""
        own_ms, stall_ms = predictions.local_own_of(number)
        running = predictions.candidates.loads.sequences.item(number)
        alone, tpot = predictions.alone(number), predictions.tpot_of(number)
        stall = (alone.waiting_ms + stall_ms) / ANSWER_TOKENS
        if running and tpot + stall > self._tpot_ms:
            return math.inf
        missed = MISS_MS if alone.first_ms > self._ttft_ms else 0.0
        first = alone.first_ms + COMPUTING_WEIGHT * own_ms + missed
        # Somebody's answer waits for it: if there is none, that of who comes next.
        return first + stall_ms * max(1, running) + self._answer_ms(tpot)

    def _all_alone(self, predictions: Predictions) -> Times:
        """The same of all."""
        costs = self._local_cost(predictions) + self._answer(predictions)
        costs += predictions.stall_ms * np.maximum(predictions.candidates.loads.sequences, 1)
        return np.where(self._spares_answers(predictions), costs, math.inf)

    def _pair_cost(self, predictions: Predictions, prefill: int, decode: int) -> float:
        """Of a handoff and the answer."""
        first_ms = predictions.handoff_ms(prefill, decode)
        computing = COMPUTING_WEIGHT * predictions.prefill_own_of(prefill)
        missed = MISS_MS if first_ms > self._ttft_ms else 0.0
        return first_ms + computing + missed + self._answer_ms(predictions.tpot_of(decode))

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

    def _answer_ms(self, tpot: float) -> float:
        """The same of one worker."""
        return ANSWER_TOKENS * tpot + (MISS_MS if tpot > self._tpot_ms else 0.0)

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
