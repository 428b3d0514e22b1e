"""What a policy is asked: a prompt, and columns of what is known of the workers.

Does not cover: where the columns come from (``router.routing.routing_state``), times that follow
from them (``router.routing.predictions``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from core.request import Role
from core.values import value
from router.placement import WorkerId
from router.prefix_index.held_blocks import HeldBlocks

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_NO_LIMIT = 2**31


@value()
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


@dataclass(frozen=True, slots=True)
class KnownWorker:
    """``number``: its place in all columns. ``num_blocks``: of its KV pool."""

    number: int
    role: Role
    num_blocks: int
    max_num_seqs: int


@dataclass(frozen=True, slots=True, eq=False)
class UsableWorkers:
    """Those that may get new requests, by number; nobody's number has no role.

    ``decode``, ``receive``, ``prefill`` (bool): who may get an attempt as what. ``num_blocks``: of
    the KV pool; ``max_num_seqs``: answers at a time, ``most_others``: beside one more; int64.
    ``has_pairs``: whether somebody prefills for others. ``fewest_blocks``, ``fewest_places``:
    of anybody. ``largest_pool``: blocks of the largest worker that decodes, ``most_sequences``:
    answers that one of them runs at a time; None while there is none. ``decode_blocks``: of all of
    them.
    """

    workers: list[WorkerId | None]
    decode: Mask
    receive: Mask
    prefill: Mask
    num_blocks: Counts
    max_num_seqs: Counts
    most_others: Counts
    has_pairs: bool
    fewest_blocks: int
    fewest_places: int
    largest_pool: int | None
    most_sequences: int | None
    decode_blocks: int

    @classmethod
    def of(cls, usable: Mapping[WorkerId, KnownWorker], count: int) -> UsableWorkers:
        """Columns with ``count`` entries."""
        by_number: list[tuple[WorkerId, KnownWorker] | None] = [None] * count
        for worker, known in usable.items():
            by_number[known.number] = (worker, known)

        def mask(fits: Callable[[Role], bool]) -> Mask:
            return np.array([x is not None and fits(x[1].role) for x in by_number], dtype=np.bool_)

        places = [_NO_LIMIT if x is None else _places(x[1]) for x in by_number]
        max_num_seqs = np.array(places, dtype=np.int64)
        receive = mask(lambda role: role.takes_handoffs)
        prefill = mask(lambda role: role.prefills_for_others)
        decoding = [known for known in usable.values() if known.role.decodes]
        return cls(
            [None if x is None else x[0] for x in by_number],
            mask(lambda role: role.decodes),
            receive,
            prefill,
            np.array([0 if x is None else x[1].num_blocks for x in by_number], dtype=np.int64),
            max_num_seqs,
            max_num_seqs - 1,
            bool(prefill.any() and receive.any()),
            min((known.num_blocks for known in usable.values()), default=0),
            min(places, default=0),
            max((known.num_blocks for known in decoding), default=None),
            max((max(1, known.max_num_seqs) for known in decoding), default=None),
            sum(known.num_blocks for known in decoding),
        )

    def among(self, workers: frozenset[WorkerId]) -> Mask:
        """Which ones are of ``workers``."""
        return np.array([worker in workers for worker in self.workers], dtype=np.bool_)


def _places(known: KnownWorker) -> int:
    """Answers at a time. Who streams none is never short of places for them."""
    return known.max_num_seqs if known.role.decodes else _NO_LIMIT


class Loads(Protocol):
    """Columns of what workers do: ``sequences``: running and waiting; ``context_blocks``:
    roughly what they attend to; of ``pending_prefill_tokens``, ``late_tokens`` are of prompts that
    will be late anyway."""

    @property
    def sequences(self) -> Counts: ...
    @property
    def context_blocks(self) -> Floats: ...
    @property
    def free_blocks(self) -> Counts: ...
    @property
    def pending_prefill_tokens(self) -> Floats: ...
    @property
    def late_tokens(self) -> Counts: ...


@value(eq=False)
class Candidates:
    """The workers among which to choose, one entry each in every column. ``held``: of the prompt's
    blocks."""

    usable: UsableWorkers
    loads: Loads
    held: HeldBlocks
