"""The arrays of decode steps, kept from step to step and changed in place.

A step of a running batch differs from the one before by a token, a position and a slot for each
sequence, now and then by a block, and rarely by who is in it. So each sequence keeps its row as
long as it is in each step; the row of one that left is taken by the last one, so that rows are not
in the order of the plan. Chunks of prompts come after these rows (``engine.batch`` makes their
arrays). Does not cover: how arrays get to the device (``engine.upload``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.step import Slice, StepPlan
from engine.batch import BatchArrays, Int32Array, Int64Array, batch_arrays, joined_arrays

_ROWS = 8
# Block tables are laid out anew when they use less than this share of their width.
_LEAST_USED = 1 / 8


@dataclass(frozen=True, slots=True)
class _Rows:
    """The first rows of all arrays, as `BatchArrays` has them. While neither their number nor the
    arrays change, these are the same objects in each step."""

    token_ids: Int64Array
    positions: Int64Array
    slots: Int64Array
    lengths: Int32Array
    block_tables: Int32Array
    first_rows: Int32Array
    numbers: Int64Array


class RunningBatch:
    """Rows of up to any number of sequences in a pool with blocks of ``block_size`` tokens.

    ``widest``: blocks of the longest sequence; block tables get no wider.
    """

    def __init__(self, block_size: int, widest: int) -> None:
        self._block_size = block_size
        self._widest = widest
        self._sequence_ids: list[int] = []
        # The sequences as the last plan named them, and which place among them each row has.
        self._planned_ids: list[int] = []
        self._places: list[int] = []
        # Of each row: the array that its block table is a view of, and how much of it is copied.
        self._sources: list[object] = []
        self._copied: list[int] = []
        self._tables: Int32Array = np.zeros((0, 1), np.int32)
        self._rows: _Rows | None = None
        self._resize(_ROWS)

    def arrays_of(self, plan: StepPlan) -> BatchArrays:
        """The arrays of a step, valid until the next call."""
        decodes = [part for part in plan.slices if len(part.tokens) == 1 and part.samples]
        if not decodes:
            return batch_arrays(plan, self._block_size)
        arrays = self._decode_arrays(decodes)
        if len(decodes) == len(plan.slices):
            return arrays
        others = [part for part in plan.slices if len(part.tokens) > 1 or not part.samples]
        return joined_arrays(arrays, batch_arrays(StepPlan(tuple(others)), self._block_size))

    def _decode_arrays(self, decodes: Sequence[Slice]) -> BatchArrays:
        parts = self._in_rows(decodes)
        starts = [part.start for part in parts]
        longest = max(starts) + 1
        self._update_tables(parts, -(-longest // self._block_size))
        rows = self._rows or self._first(len(parts))
        rows.positions[:] = starts
        np.add(rows.positions, 1, out=rows.lengths, casting="same_kind")
        np.concatenate([part.tokens for part in parts], out=rows.token_ids)
        self._update_slots(rows)
        return BatchArrays(
            token_ids=rows.token_ids,
            positions=rows.positions,
            slots=rows.slots,
            block_tables=rows.block_tables,
            lengths=rows.lengths,
            first_rows=rows.first_rows,
            sampled_rows=rows.numbers,
            sampled_slices=tuple(parts),
            num_decodes=len(parts),
            longest_query=1,
            longest=longest,
        )

    def _in_rows(self, decodes: Sequence[Slice]) -> list[Slice]:
        """The slices, each at its row."""
        ids = [part.sequence_id for part in decodes]
        if ids != self._planned_ids:
            self._change_rows(ids)
        return [decodes[place] for place in self._places]

    def _change_rows(self, planned: list[int]) -> None:
        places = {sequence_id: place for place, sequence_id in enumerate(planned)}
        for row in reversed(range(len(self._sequence_ids))):
            if self._sequence_ids[row] not in places:
                self._remove(row)
        known = set(self._sequence_ids)
        new = [sequence_id for sequence_id in planned if sequence_id not in known]
        self._sequence_ids += new
        self._sources += [None] * len(new)
        self._copied += [0] * len(new)
        if len(planned) > len(self._token_ids):
            self._resize(2 * len(planned))
        self._planned_ids = planned
        self._places = [places[sequence_id] for sequence_id in self._sequence_ids]
        self._rows = None

    def _first(self, count: int) -> _Rows:
        self._rows = _Rows(
            token_ids=self._token_ids[:count],
            positions=self._positions[:count],
            slots=self._slots[:count],
            lengths=self._lengths[:count],
            block_tables=self._tables[:count],
            first_rows=self._first_rows[: count + 1],
            numbers=self._numbers[:count],
        )
        return self._rows

    def _remove(self, row: int) -> None:
        """The last row takes the place of ``row``."""
        last = len(self._sequence_ids) - 1
        self._tables[row, : self._copied[last]] = self._tables[last, : self._copied[last]]
        self._sequence_ids[row] = self._sequence_ids[last]
        self._sources[row], self._copied[row] = self._sources[last], self._copied[last]
        del self._sequence_ids[last], self._sources[last], self._copied[last]

    def _update_tables(self, parts: list[Slice], needed: int) -> None:
        """Copies what was appended to a table, or all of one that is another array."""
        width = self._tables.shape[1]
        if not _LEAST_USED * width <= needed <= width:
            width = max(needed, min(2 * needed, self._widest))
            self._set_width(width)
        for row, part in enumerate(parts):
            table, copied = part.block_table, self._copied[row]
            if table.base is None or table.base is not self._sources[row]:
                self._sources[row], copied = table.base, 0
            if len(table) > copied < width or not copied:
                self._tables[row, copied : len(table)] = table[copied:width]
                self._copied[row] = min(len(table), width)

    def _update_slots(self, rows: _Rows) -> None:
        size, slots = self._block_size, rows.slots
        indices = rows.positions // size
        np.multiply(rows.block_tables[rows.numbers, indices] - indices, size, out=slots)
        slots += rows.positions

    def _set_width(self, width: int) -> None:
        kept = min(width, self._tables.shape[1])
        tables = np.zeros((len(self._tables), width), np.int32)
        tables[:, :kept] = self._tables[:, :kept]
        self._tables = tables
        self._rows = None
        self._copied = [min(copied, width) for copied in self._copied]

    def _resize(self, rows: int) -> None:
        """Room for ``rows`` rows. Only what is kept from step to step moves along."""
        tables = np.zeros((rows, self._tables.shape[1]), np.int32)
        tables[: len(self._tables)] = self._tables
        self._tables = tables
        self._rows = None
        self._token_ids: Int64Array = np.zeros(rows, np.int64)
        self._positions: Int64Array = np.zeros(rows, np.int64)
        self._slots: Int64Array = np.zeros(rows, np.int64)
        self._lengths: Int32Array = np.zeros(rows, np.int32)
        self._first_rows: Int32Array = np.arange(rows + 1, dtype=np.int32)
        self._numbers: Int64Array = np.arange(rows, dtype=np.int64)
