"""Whether workers take more, by what they told and by what was sent to them since. Pure.

Where all prefill workers have enough before them, a decode worker that computes the prompt itself
makes room, too, if its answers still come in time. Does not cover: which worker is best
(``router.routing.policies``).
"""

from __future__ import annotations

import numpy as np

from core.tenants import DoorLimits
from router.placement import Disaggregation, WorkerId
from router.routing.candidates import Mask
from router.routing.cost_model import EngineTimes
from router.routing.predictions import ANSWER_TOKENS
from router.routing.routing_rules import RoutingRules
from router.routing.routing_state import RoutingState


class WorkerRoom:
    """By ``limits`` on what a worker may have before it. ``rules``: whether decode workers compute
    prompts that others could, and how long they take. ``block_size`` in tokens."""

    def __init__(
        self, routing: RoutingState, limits: DoorLimits, rules: RoutingRules, block_size: int
    ) -> None:
        self._routing = routing
        self._limits = limits
        self._block_size = block_size
        self._may_be_alone = rules.disaggregation is Disaggregation.AUTO
        self._decode_times = EngineTimes(rules.costs.decode)
        self._tpot_ms = rules.slo.tpot_s * 1000
        self.is_limited = (limits.prefill_backlog, limits.decode_backlog) != (None, None)

    def has_room(self, prompt_tokens: int) -> bool:
        """Whether some workers can begin with one more request. Without workers it waits for
        nothing: that there are none is said elsewhere."""
        if not self.is_limited:
            return True
        if self._routing.columns.has_pairs:
            return self._pair_has_room() or bool(self._alone(prompt_tokens).any())
        usable = self._routing.columns.decode
        return not usable.any() or bool((usable & ~self._busy() & ~self._full()).any())

    def laden(self, prompt_tokens: int) -> frozenset[WorkerId]:
        """Workers that a new request should not go to. Nobody, if there is no room anywhere."""
        if not self.is_limited or not self.has_room(prompt_tokens):
            return frozenset()
        columns = self._routing.columns
        if not columns.has_pairs:
            laden = (self._full() | self._busy()) & columns.decode
        elif self._pair_has_room():
            alone = columns.decode & ~columns.receive
            laden = self._full() & columns.decode | self._busy() & (columns.prefill | alone)
        else:
            laden = columns.prefill | columns.decode & ~self._alone(prompt_tokens)
        workers = columns.workers
        return frozenset(w for n in np.flatnonzero(laden) if (w := workers[n]) is not None)

    @property
    def decode_blocks(self) -> int:
        """Of all workers that decode."""
        return self._routing.columns.decode_blocks

    def _pair_has_room(self) -> bool:
        columns = self._routing.columns
        computes, decodes = columns.prefill & ~self._busy(), columns.receive & ~self._full()
        return bool(computes.any() and decodes.any())

    def _alone(self, prompt_tokens: int) -> Mask:
        """Decode workers that may compute such a prompt, too: nothing of it cached, full pools."""
        columns, loads = self._routing.columns, self._routing.loads
        if not self._may_be_alone:
            return np.zeros_like(columns.decode)
        times = self._decode_times
        context = columns.num_blocks * self._block_size
        own = times.prompt_ms(prompt_tokens, prompt_tokens) - times.least_ms
        stalls = times.waiting_ms(loads.pending_prefill_tokens, prompt_tokens) + own
        tpot = times.step_ms(loads.sequences + 1, context) + stalls / ANSWER_TOKENS
        spares = (tpot <= self._tpot_ms) | (loads.sequences == 0)
        able: Mask = columns.decode & ~self._busy() & ~self._full() & spares
        return able

    def _busy(self) -> Mask:
        pending, most = self._routing.loads.pending_prefill_tokens, self._limits.prefill_backlog
        return np.zeros(len(pending), dtype=np.bool_) if most is None else pending >= most

    def _full(self) -> Mask:
        sequences, more = self._routing.loads.sequences, self._limits.decode_backlog
        if more is None:
            return np.zeros(len(sequences), dtype=np.bool_)
        full: Mask = sequences >= self._routing.columns.max_num_seqs + more
        return full
