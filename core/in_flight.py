"""Which sequences are part of steps under way, and of how many.

Blocks of a sequence that ended may be given up only when no step under way touches them any
more. Does not cover: the steps themselves, which their plans describe (``core.step``).
"""

from __future__ import annotations

from collections.abc import Iterator

from core.sequence import Sequence


class InFlight:
    """Counts, for each sequence, the plans under way that hold a slice of it."""

    def __init__(self) -> None:
        self._sequences: dict[int, Sequence] = {}
        self._num_plans: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._sequences)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence.sequence_id in self._sequences

    def __getitem__(self, sequence_id: int) -> Sequence:
        return self._sequences[sequence_id]

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences.values())

    def add(self, sequence: Sequence) -> None:
        """A plan with a slice of ``sequence`` was made."""
        sequence_id = sequence.sequence_id
        self._sequences[sequence_id] = sequence
        self._num_plans[sequence_id] = self._num_plans.get(sequence_id, 0) + 1

    def remove(self, sequence_id: int) -> Sequence:
        """One of the plans with a slice of this sequence is complete."""
        sequence = self._sequences[sequence_id]
        left = self._num_plans.pop(sequence_id) - 1
        if left:
            self._num_plans[sequence_id] = left
        else:
            del self._sequences[sequence_id]
        return sequence
