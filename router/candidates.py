"""What a policy is asked: a prompt, and columns of what is known of the workers.

Does not cover: where the columns come from (``router.routing_state``), times that follow from them
(``router.predictions``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from router.placement import WorkerId

Counts = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PromptShape:
    """All that routing needs of a prompt, beside its overlap with the workers' caches."""

    num_tokens: int
    block_size: int

    @property
    def num_blocks(self) -> int:
        return -(-self.num_tokens // self.block_size)

    def uncached_tokens(self, held_blocks: int) -> int:
        """At least one: the last token is always computed, to get logits."""
        return max(1, self.num_tokens - held_blocks * self.block_size)


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """What is known of the workers among which to choose, one entry each in every column.

    ``decode``, ``receive``, ``prefill`` (bool): who may get an attempt as what. ``num_blocks``: of
    the KV pool. ``max_num_seqs``: answers at a time. ``held``: leading blocks of the prompt.
    ``sequences``: running and waiting; ``context_blocks``: roughly what they attend to. These are
    int64, like ``free_blocks`` and ``pending_prefill_tokens``, of which ``late_tokens`` are of
    prompts that will be late anyway.
    """

    workers: Sequence[WorkerId | None]
    decode: Mask
    receive: Mask
    prefill: Mask
    num_blocks: Counts
    max_num_seqs: Counts
    held: Counts
    sequences: Counts
    context_blocks: Counts
    free_blocks: Counts
    pending_prefill_tokens: Counts
    late_tokens: Counts

    def avoided(self, avoid: frozenset[WorkerId]) -> Mask:
        mask = np.zeros(len(self.workers), dtype=np.bool_)
        if avoid:
            mask[:] = [worker in avoid for worker in self.workers]
        return mask
