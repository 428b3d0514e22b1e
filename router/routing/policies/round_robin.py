"""One worker after the other, whatever they hold and however busy they are."""

from __future__ import annotations

from random import Random

import numpy as np

from router.prefix_index.held_blocks import Numbers
from router.routing.policies.policy import Choice, Eligible
from router.routing.predictions import Predictions


class RoundRobin:
    """Each role has its own turn."""

    def __init__(self) -> None:
        self._last_prefill = self._last_decode = -1

    def choose(self, eligible: Eligible, predictions: Predictions, random: Random) -> Choice:
        if eligible.handoff is not None:
            prefillers, receivers = eligible.handoff
            self._last_prefill = _after(self._last_prefill, prefillers)
            self._last_decode = _after(self._last_decode, receivers)
            return Choice(self._last_decode, self._last_prefill)
        assert eligible.local is not None
        self._last_decode = _after(self._last_decode, eligible.local)
        return Choice(self._last_decode)


def _after(last: int, among: Numbers) -> int:
    """The next one by number; after the last one comes the first."""
    return int(among[np.searchsorted(among, last, side="right") % len(among)])
