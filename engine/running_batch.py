"""The arrays of decode steps, kept from step to step and changed in place.

A step of a running batch differs from the one before by a token, a position and a slot for each
sequence, now and then by a block, and rarely by who is in it. So each sequence keeps its row as
long as it is in each step; the row of one that left is taken by the last one, so that rows are not
in the order of the plan. Does not cover: steps with more than one token of a sequence in them
(``engine.batch`` makes their arrays), how arrays get to the device (``engine.upload``).
"""

from __future__ import annotations

import numpy as np

from core.errors import InternalError
from core.step import Slice, StepPlan
from engine.batch import BatchArrays, Int32Array, Int64Array, batch_arrays

_ROWS = 8
# Block tables are laid out anew when they use less than this share of their width.
_LEAST_USED = 1 / 8


class RunningBatch:
    """Rows of up to any number of sequences in a pool with blocks of ``block_size`` tokens.

    ``widest``: blocks of the longest sequence; block tables get no wider.
    """

    def __init__(self, block_size: int, widest: int) -> None:
        self._block_size = block_size
        self._widest = widest
        self._sequence_ids: list[int] = []
        # Of each row: the array that its block table is a view of, and how much of it is copied.
        self._sources: list[object] = []
        self._copied: list[int] = []
        self._tables: Int32Array = np.zeros((0, 1), np.int32)
        self._resize(_ROWS)

    def arrays_of(self, plan: StepPlan) -> BatchArrays:
        """The arrays of a step; those of a decode step are valid until the next call."""
        if not all(len(part.tokens) == 1 and part.samples for part in plan.slices):
            return batch_arrays(plan, self._block_size)
        parts = self._in_rows(plan)
        count = len(parts)
        positions, lengths = self._positions[:count], self._lengths[:count]
        positions[:] = [part.start for part in parts]
        np.add(positions, 1, out=lengths, casting="same_kind")
        np.concatenate([part.tokens for part in parts], out=self._token_ids[:count])
        self._update_tables(parts, int(positions.max()) // self._block_size + 1)
        return BatchArrays(
            token_ids=self._token_ids[:count],
            positions=positions,
            slots=self._update_slots(positions),
            block_tables=self._tables[:count],
            lengths=lengths,
            first_rows=self._first_rows[: count + 1],
            sampled_rows=self._rows[:count],
            sampled_slices=tuple(parts),
            num_decodes=count,
            longest_query=1,
        )

    def validate(self) -> None:
        """Raises `InternalError` if the rows are not one for each sequence."""
        ids, count = self._sequence_ids, len(self._sequence_ids)
        if len(set(ids)) != count or not len(self._sources) == len(self._copied) == count:
            raise InternalError(f"rows of sequences {ids} do not fit together", reason="INVARIANT")
        if max(self._copied, default=0) > self._tables.shape[1]:
            raise InternalError("a row is wider than its table", reason="INVARIANT")

    def _in_rows(self, plan: StepPlan) -> list[Slice]:
        """The slices of the plan, each at its row."""
        by_id = {part.sequence_id: part for part in plan.slices}
        if len(by_id) != len(self._sequence_ids) or not by_id.keys() >= set(self._sequence_ids):
            self._change_rows(by_id)
        return [by_id[sequence_id] for sequence_id in self._sequence_ids]

    def _change_rows(self, by_id: dict[int, Slice]) -> None:
        for row in reversed(range(len(self._sequence_ids))):
            if self._sequence_ids[row] not in by_id:
                self._remove(row)
        known = set(self._sequence_ids)
        new = [sequence_id for sequence_id in by_id if sequence_id not in known]
        self._sequence_ids += new
        self._sources += [None] * len(new)
        self._copied += [0] * len(new)
        if len(self._sequence_ids) > len(self._rows):
            self._resize(2 * len(self._sequence_ids))

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

    def _update_slots(self, positions: Int64Array) -> Int64Array:
        count, size = len(positions), self._block_size
        slots = self._slots[:count]
        indices = positions // size
        np.multiply(self._tables[self._rows[:count], indices] - indices, size, out=slots)
        slots += positions
        return slots

    def _set_width(self, width: int) -> None:
        kept = min(width, self._tables.shape[1])
        tables = np.zeros((len(self._tables), width), np.int32)
        tables[:, :kept] = self._tables[:, :kept]
        self._tables = tables
        self._copied = [min(copied, width) for copied in self._copied]

    def _resize(self, rows: int) -> None:
        """Room for ``rows`` rows. Only what is kept from step to step moves along."""
        tables = np.zeros((rows, self._tables.shape[1]), np.int32)
        tables[: len(self._tables)] = self._tables
        self._tables = tables
        self._token_ids: Int64Array = np.zeros(rows, np.int64)
        self._positions: Int64Array = np.zeros(rows, np.int64)
        self._slots: Int64Array = np.zeros(rows, np.int64)
        self._lengths: Int32Array = np.zeros(rows, np.int32)
        self._first_rows: Int32Array = np.arange(rows + 1, dtype=np.int32)
        self._rows: Int64Array = np.arange(rows, dtype=np.int64)
