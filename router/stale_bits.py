"""Bits that nobody owns any more, cleared from the prefix index a slice at a time.

To look at a million blocks takes tens of milliseconds, in which a router would give no token to
anybody. So a worker that starts over gets another bit at once, and its old one, which no lookup
asks for, is cleared as other changes arrive. Does not cover: whose a bit is
(``router.prefix_index``).
"""

from __future__ import annotations


class StaleBits:
    """Of ``masks`` (block hash to a mask of bits); masks without any bit are dropped.
    ``slice_blocks``: so many are looked at at a time."""

    def __init__(self, masks: dict[int, int], slice_blocks: int) -> None:
        self._masks = masks
        self._slice = slice_blocks
        self._waiting = 0
        # What is being cleared, and where it is still to be looked for.
        self._clearing = 0
        self._blocks: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._waiting | self._clearing)

    def add(self, bit: int) -> None:
        """From now on nobody sets it."""
        self._waiting |= bit

    def clear_some(self) -> int:
        """Goes on by a slice. Returns the bits that are nowhere any more, as a mask."""
        if not self._clearing:
            self._clearing, self._waiting = self._waiting, 0
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
