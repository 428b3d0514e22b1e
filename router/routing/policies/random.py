"""Any worker, each as likely as the others."""

from __future__ import annotations

from random import Random

from router.prefix_index.held_blocks import Numbers
from router.routing.policies.policy import Choice, Eligible
from router.routing.predictions import Predictions


class AnyWorker:
    """Roles are drawn apart."""

    def choose(self, eligible: Eligible, predictions: Predictions, random: Random) -> Choice:
        if eligible.handoff is not None:
            prefillers, receivers = eligible.handoff
            return Choice(_any(receivers, random), _any(prefillers, random))
        assert eligible.local is not None
        return Choice(_any(eligible.local, random))


def _any(among: Numbers, random: Random) -> int:
    return int(among[random.randrange(len(among))])
