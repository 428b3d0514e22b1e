"""Whether workers take more, by what they told and by what was sent to them since. Pure.

Does not cover: which of them is best (``router.policies``).
"""

from __future__ import annotations

import numpy as np

from core.tenants import DoorLimits
from router.candidates import Mask
from router.placement import WorkerId
from router.routing_state import RoutingState


class WorkerRoom:
    """By ``limits`` on what a worker may have before it."""

    def __init__(self, routing: RoutingState, limits: DoorLimits) -> None:
        self._routing = routing
        self._limits = limits
        self.is_limited = (limits.prefill_backlog, limits.decode_backlog) != (None, None)

    def has_room(self) -> bool:
        """Whether some workers can begin with one more request. Without workers it waits for
        nothing: that there are none is said elsewhere."""
        if not self.is_limited:
            return True
        columns = self._routing.columns
        computes, decodes = ~self._busy(), ~self._full()
        if columns.prefill.any() and columns.receive.any():
            return bool((columns.prefill & computes).any() and (columns.receive & decodes).any())
        usable = columns.decode
        return not usable.any() or bool((usable & computes & decodes).any())

    def laden(self) -> frozenset[WorkerId]:
        """Workers that a new request should not go to. Nobody, if there is no room anywhere."""
        if not self.is_limited or not self.has_room():
            return frozenset()
        columns = self._routing.columns
        alone = columns.decode & ~columns.receive
        if not columns.prefill.any():
            alone = columns.decode
        laden = self._full() & columns.decode | self._busy() & (columns.prefill | alone)
        workers = columns.workers
        return frozenset(w for n in np.flatnonzero(laden) if (w := workers[n]) is not None)

    @property
    def decode_blocks(self) -> int:
        """Of all workers that decode."""
        return self._routing.columns.decode_blocks

    def _busy(self) -> Mask:
        pending, most = self._routing.loads.pending_prefill_tokens, self._limits.prefill_backlog
        return np.zeros(len(pending), dtype=np.bool_) if most is None else pending >= most

    def _full(self) -> Mask:
        sequences, more = self._routing.loads.sequences, self._limits.decode_backlog
        if more is None:
            return np.zeros(len(sequences), dtype=np.bool_)
        full: Mask = sequences >= self._routing.columns.max_num_seqs + more
        return full
