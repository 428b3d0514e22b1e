"""The pair with the lowest predicted cost: milliseconds until the first token, and of the others.

Of P: what waits there and the uncached part of the prompt. Of D: the transfer of the blocks that it
lacks, the wait for room, and the steps of a usual answer with this request in the batch. A
predicted miss of an SLO weighs as much as ten seconds. So a hot prefix stays with its holder until
that one is saturated, and spreads then.
"""

from __future__ import annotations

from random import Random

from router.policies.policy import Choice, Eligible, lowest
from router.predictions import ANSWER_TOKENS, Predictions, Times
from router.slo import SloTargets

MISS_MS = 10_000.0
# A millisecond of computing weighs so much more than one of waiting: it keeps those that come after
# waiting, and evicts what they would have found.
COMPUTING_WEIGHT = 4.0


class KvAware:
    """Equal costs are decided at random."""

    def __init__(self, slo: SloTargets) -> None:
        self._ttft_ms = slo.ttft_s * 1000
        self._tpot_ms = slo.tpot_s * 1000

    def choose(self, eligible: Eligible, predictions: Predictions, random: Random) -> Choice:
        if eligible.handoff is None:
            assert eligible.local is not None
            return Choice(lowest(eligible.local, self._local_cost(predictions), random))
        prefillers, receivers = eligible.handoff
        first = self._first_token(predictions.prefill_ms, predictions.prefill_own_ms)
        prefill = lowest(prefillers, first, random)
        taking = predictions.transfer_ms + predictions.room_ms + self._answer(predictions)
        return Choice(lowest(receivers, taking, random), prefill)

    def _local_cost(self, predictions: Predictions) -> Times:
        first = self._first_token(predictions.local_ms, predictions.local_own_ms)
        return first + self._answer(predictions)

    def _first_token(self, times: Times, computing: Times) -> Times:
        missed: Times = MISS_MS * (times > self._ttft_ms)
        return times + COMPUTING_WEIGHT * computing + missed

    def _answer(self, predictions: Predictions) -> Times:
        tpot = predictions.tpot_ms
        missed: Times = MISS_MS * (tpot > self._tpot_ms)
        return ANSWER_TOKENS * tpot + missed
