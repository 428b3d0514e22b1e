"""Whether a request met its SLOs: the goodput of the field counts those that met all of them.

Pure. Does not cover: what follows from the targets for routing
(``router.routing.policies.kv_aware``) and for the order at the door
(``router.admission.admission``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.config import DEFAULT_TPOT_S
from core.lifecycle import State
from core.prefill_order import DEFAULT_TTFT_S
from router.flow.messages import Finish

# Of all requests that ask for no later one.
DEFAULT_CLASS = "default"
TTFT, TPOT = "ttft", "tpot"
# By whether each of them was met.
_MET = {
    (ttft, tpot): frozenset([TTFT] * ttft + [TPOT] * tpot)
    for ttft in (False, True)
    for tpot in (False, True)
}


def slo_class(priority: int) -> str:
    """Requests of one priority are counted together."""
    return f"priority-{priority}" if priority else DEFAULT_CLASS


@dataclass(frozen=True, slots=True)
class SloTargets:
    """Seconds: arrival to first token, and for each further token of an answer on average."""

    ttft_s: float = DEFAULT_TTFT_S
    tpot_s: float = DEFAULT_TPOT_S

    def met(self, finishes: Sequence[Finish]) -> frozenset[str]:
        """Which of TTFT and TPOT a finished request met, in all of its answers' tokens.
        ``finishes``: at least one."""
        first_s = min([finish.ttft_s for finish in finishes])
        slowest_s = max([tpot_s(finish) or 0.0 for finish in finishes])
        return _MET[first_s <= self.ttft_s, slowest_s <= self.tpot_s]


def tpot_s(finish: Finish) -> float | None:
    """Seconds per token after the first; None for an answer of one token or none."""
    if finish.completion_tokens < 2:
        return None
    return (finish.total_s - finish.ttft_s) / (finish.completion_tokens - 1)


def counts(outcome: State) -> bool:
    """A request that its client gave up says nothing about us."""
    return outcome is not State.CANCELLED
