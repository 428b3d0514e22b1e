"""The worker that holds the longest prefix of the prompt; among those, the least busy one.

A hot prefix stays where it is, however long the queue there grows: to compare with.
"""

from __future__ import annotations

from random import Random
from typing import Any

import numpy.typing as npt

from router.prefix_index.held_blocks import Counts, Numbers
from router.routing.policies.policy import Choice, Eligible, lowest
from router.routing.predictions import Predictions


class PrefixAffinity:
    """Workers of the same prefix and load are as likely."""

    def choose(self, eligible: Eligible, predictions: Predictions, random: Random) -> Choice:
        loads, held = predictions.candidates.loads, predictions.candidates.held.blocks
        sequences = loads.sequences
        if eligible.handoff is not None:
            prefillers, receivers = eligible.handoff
            pending = loads.pending_prefill_tokens
            prefill = _nearest(prefillers, held, pending, random)
            return Choice(_nearest(receivers, held, sequences, random), prefill)
        assert eligible.local is not None
        return Choice(_nearest(eligible.local, held, sequences, random))


def _nearest(among: Numbers, held: Counts, busy: npt.NDArray[Any], random: Random) -> int:
    own = held[among]
    return lowest(among[own == own.max()], busy, random)
