"""What each draw of a step asks for, as arrays that numpy, C++ and a GPU read alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# A token less likely than this share of the likeliest is never drawn: all of them together, in a
# vocabulary of 2¹⁸, are less than the smallest step of a draw (2⁻⁵³).
_NEGLIGIBLE = -72 * math.log(2)
# Below the difference of any two float32 numbers, and finite, so that -inf is always cut off.
_LOWEST_CUTOFF = -1e300

# Lines of ``SamplingArrays.values``: these hold int64, the rest float64.
ROW, TOP_K, SEED, SEQUENCE_INDEX, POSITION = range(5)
TEMPERATURE, TOP_P, CUTOFF = range(5, 8)
LINES = 8


@dataclass(frozen=True, slots=True)
class DrawSpec:
    """One draw: from logits row ``row``; temperature 0 is greedy, top_k 0 no limit."""

    row: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    sequence_index: int = 0
    position: int = 0


@dataclass(frozen=True, slots=True)
class SamplingArrays:
    """D draws, column by column: ``values`` int64 [8, D], the last three lines float64 by bits.

    One block of memory, so that it goes to a GPU in one copy. Draws of the same row with the same
    settings stand beside each other (the row is then prepared once for all of them).
    ``num_rows``: how many rows of logits there must be. ``cutoffs``: temperature · ln(min_p), the
    lowest difference to the largest logit that min_p leaves; never lower than what is negligible.
    """

    values: Ints
    num_rows: int

    @classmethod
    def of(cls, draws: Sequence[DrawSpec]) -> SamplingArrays:
        """Arrays for ``draws`` in their order."""
        arrays = cls.of_settings(
            [draw.row for draw in draws],
            [(draw.temperature, draw.top_p, draw.min_p, draw.top_k, draw.seed) for draw in draws],
        )
        arrays.sequence_indices[:] = [draw.sequence_index for draw in draws]
        arrays.positions[:] = [draw.position for draw in draws]
        return arrays

    @classmethod
    def of_settings(
        cls, rows: Sequence[int], settings: Sequence[tuple[float, float, float, int, int]]
    ) -> SamplingArrays:
        """For draws of (temperature, top_p, min_p, top_k, seed) from ``rows``; sequence indices and
        positions are to be set. Raises ValueError for a negative row."""
        if min(rows, default=0) < 0:
            raise ValueError(f"rows are counted from 0, not from {min(rows)}")
        arrays = cls(np.empty((LINES, len(settings)), np.int64), max(rows, default=-1) + 1)
        arrays.rows[:] = rows
        columns = zip(*settings, strict=True) if settings else iter([()] * 5)
        temperatures, top_ps, min_ps, top_ks, seeds = columns
        arrays.temperatures[:], arrays.top_ps[:] = temperatures, top_ps
        arrays.top_ks[:], arrays.seeds[:] = top_ks, seeds
        with np.errstate(divide="ignore", over="ignore"):
            lowest = np.maximum(np.log(np.array(min_ps, np.float64)), _NEGLIGIBLE)
            arrays.cutoffs[:] = np.maximum(arrays.temperatures * lowest, _LOWEST_CUTOFF)
        return arrays

    def __len__(self) -> int:
        return len(self.values[ROW])

    @property
    def rows(self) -> Ints:
        return self._ints(ROW)

    @property
    def top_ks(self) -> Ints:
        return self._ints(TOP_K)

    @property
    def seeds(self) -> Ints:
        return self._ints(SEED)

    @property
    def sequence_indices(self) -> Ints:
        return self._ints(SEQUENCE_INDEX)

    @property
    def positions(self) -> Ints:
        return self._ints(POSITION)

    @property
    def temperatures(self) -> Floats:
        return self._floats(TEMPERATURE)

    @property
    def top_ps(self) -> Floats:
        return self._floats(TOP_P)

    @property
    def cutoffs(self) -> Floats:
        return self._floats(CUTOFF)

    def _ints(self, line: int) -> Ints:
        values: Ints = self.values[line]
        return values

    def _floats(self, line: int) -> Floats:
        values: Floats = self.values[line].view(np.float64)
        return values

    def on(self, device: torch.device) -> torch.Tensor:
        """int64 [8, D] there; the copy is enqueued, not waited for."""
        return on_device(self.values, device)


def on_device(values: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy there, enqueued on the current stream (on a CPU the same memory)."""
    tensor = torch.from_numpy(values)
    # Torch keeps pinned memory for the next time, and till the copy is done.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
