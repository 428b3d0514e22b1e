"""The fewest prompt tokens to compute and the fewest answers to stream, whatever is cached."""

from __future__ import annotations

from random import Random

from router.routing.policies.policy import Choice, Eligible, lowest
from router.routing.predictions import Predictions


class LeastLoaded:
    """Workers of the same load are as likely."""

    def choose(self, eligible: Eligible, predictions: Predictions, random: Random) -> Choice:
        loads = predictions.candidates.loads
        pending, sequences = loads.pending_prefill_tokens, loads.sequences
        if eligible.handoff is not None:
            prefillers, receivers = eligible.handoff
            prefill = lowest(prefillers, pending, random)
            return Choice(lowest(receivers, sequences, random), prefill)
        assert eligible.local is not None
        # An answer that waits is a prompt that waits, too.
        return Choice(lowest(eligible.local, sequences, random))
