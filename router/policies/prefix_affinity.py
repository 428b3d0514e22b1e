"""The worker that holds the longest prefix of the prompt; among those, the least busy one.

A hot prefix stays where it is, however long the queue there grows: to compare with.
"""

from __future__ import annotations

from random import Random

import numpy as np

from router.candidates import Counts, Mask
from router.policies.policy import Choice, Eligible, lowest
from router.predictions import Predictions


class PrefixAffinity:
    """Workers of the same prefix and load are as likely."""

    def choose(self, eligible: Eligible, predictions: Predictions, random: Random) -> Choice:
        columns = predictions.candidates
        held, sequences = columns.held, columns.sequences
        if eligible.handoff is not None:
            prefillers, receivers = eligible.handoff
            pending = columns.pending_prefill_tokens
            prefill = _nearest(prefillers, held, pending, random)
            return Choice(_nearest(receivers, held, sequences, random), prefill)
        assert eligible.local is not None
        return Choice(_nearest(eligible.local, held, sequences, random))


def _nearest(among: Mask, held: Counts, busy: Counts, random: Random) -> int:
    most = held[among].max()
    return lowest(np.logical_and(among, held == most), busy, random)
