"""Bits that nobody owns any more, cleared from the prefix index a slice at a time.

To look at a million blocks takes tens of milliseconds, in which a router would give no token to
anybody. So a worker that starts over gets another bit at once, and its old one, which no lookup
asks for, is cleared as other changes arrive; that of several workers together, as the blocks have
to be listed first (a third of those milliseconds). Does not cover: whose a bit is
(``router.prefix_index.python_index``).
"""

from __future__ import annotations

# Clearing begins when this part of all blocks may be nobody's, or when there are so many bits.
_DUE_SHARE, _DUE_BITS = 1 / 16, 32


class StaleBits:
    """Of ``masks`` (block hash to a mask of bits); masks without any bit are dropped.
    ``slice_blocks``: so many are looked at at a time."""

    def __init__(self, masks: dict[int, int], slice_blocks: int) -> None:
        self._masks = masks
        self._slice = slice_blocks
        self._waiting = self._num_blocks = 0
        # What is being cleared, and where it is still to be looked for.
        self._clearing = 0
        self._blocks: list[int] = []

    @property
    def is_due(self) -> bool:
        """Whether `clear_some` is to be called."""
        if self._clearing or not self._waiting:
            return bool(self._clearing)
        is_much = self._num_blocks >= _DUE_SHARE * len(self._masks)
        return is_much or self._waiting.bit_count() >= _DUE_BITS

    def add(self, bit: int, num_blocks: int) -> None:
        """From now on nobody sets it; so many blocks have it."""
        self._waiting |= bit
        self._num_blocks += num_blocks

    def clear_some(self) -> int:
        """Goes on by a slice. Returns the bits that are nowhere any more, as a mask."""
        if not self._clearing:
            self._clearing, self._waiting, self._num_blocks = self._waiting, 0, 0
            self._blocks = list(self._masks)
        blocks = self._blocks[-self._slice :]
        del self._blocks[-self._slice :]
        masks, kept = self._masks, ~self._clearing
        for block in blocks:
            mask = masks.get(block, 0)
            if mask & kept != mask:
                if mask & kept:
                    masks[block] = mask & kept
                else:
                    del masks[block]
        if self._blocks:
            return 0
        cleared, self._clearing = self._clearing, 0
        return cleared
