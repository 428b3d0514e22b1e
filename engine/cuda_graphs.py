"""Decode steps as CUDA graphs: one launch in the place of hundreds.

A graph for each bucket of rows is captured at start, before any transfer of blocks: capturing
synchronizes the whole device and allocates, which may not happen while a receive is pending. All
graphs share one memory pool (captured from the largest bucket to the smallest), one set of input
buffers, which one copy from pinned memory fills, and one buffer for logits.
Does not cover: which steps are run so and how they are padded (``engine.graph_buckets``); replicas
of several ranks: steps with collectives in them are not captured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from engine.batch import Batch, BatchArrays
from engine.graph_buckets import DecodeBuckets, DecodeInputs, padded, padding
from engine.upload import Upload, packed_size, unpacked
from engine.vocabulary import Logits
from kernels.paged_sequences import PagedSequences

Forward = Callable[[Batch, torch.Tensor], Logits | None]
Replay = Callable[[], None]


class Recorder(Protocol):
    """What turns work on the GPU into something that can be launched again at once."""

    def capture(self, compute: Callable[[], None]) -> Replay:
        """Runs ``compute`` to have everything compiled and chosen, then records it.

        A replay reads and writes the same memory.
        """


class CudaRecorder:
    """torch's graphs, in one memory pool. For one thread at a time."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, compute: Callable[[], None]) -> Replay:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            compute()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Only this thread is held to what may be captured: others have CUDA calls of their own.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            compute()
        return graph.replay


class DecodeGraphs:
    """One graph for each bucket; ``forward`` as `Decoder.forward`, for ``pool``.

    All are captured when this is made; it takes seconds. ``vocab_size``: width of the logits.
    """

    def __init__(
        self,
        forward: Forward,
        pool: torch.Tensor,
        vocab_size: int,
        buckets: DecodeBuckets,
        recorder: Recorder,
    ) -> None:
        self.buckets = buckets
        self._forward = forward
        self._pool = pool
        self._upload = Upload(pool.device)
        most, width, device = buckets.sizes[-1], buckets.table_width, pool.device
        size = packed_size(padding(most, width).arrays)
        self._inputs = torch.empty(size, dtype=torch.uint8, device=device)
        self._tables = torch.zeros((most, width), dtype=torch.int32, device=device)
        self._first_rows = torch.arange(most + 1, dtype=torch.int32, device=device)
        self._rows = torch.arange(most, device=device)
        self._logits = torch.empty((most, vocab_size), dtype=torch.float32, device=device)
        # The largest first: what it takes from the memory pool is enough for all others.
        self._replays = {rows: self._capture(rows, recorder) for rows in reversed(buckets.sizes)}

    def run(self, arrays: BatchArrays, rows: int) -> Logits:
        """Computes a step in the bucket of ``rows`` rows, which `DecodeBuckets.bucket_for` chose.

        Enqueues only. Gives logits [T, vocab], valid until the next step.
        """
        self._fill(padded(arrays, rows))
        self._replays[rows]()
        return Logits(self._logits[: len(arrays.token_ids)])

    def _capture(self, rows: int, recorder: Recorder) -> Replay:
        longest = self.buckets.table_width * self._pool.shape[4]
        inputs = padding(rows, width=1)
        self._fill(inputs)
        token_ids, positions, slots, lengths, _ = unpacked(self._inputs, inputs.arrays)

        def compute() -> None:
            # Made anew each time: what is derived from it must be computed within the graph.
            sequences = PagedSequences(
                block_tables=self._tables[:rows],
                lengths=lengths,
                first_rows=self._first_rows[: rows + 1],
                num_decodes=rows,
                longest_query=1,
                longest=longest,
            )
            batch = Batch(token_ids, positions, slots, sequences, self._rows[:rows])
            logits = self._forward(batch, self._pool)
            assert logits is not None
            self._logits[:rows].copy_(logits.values)

        return recorder.capture(compute)

    def _fill(self, inputs: DecodeInputs) -> None:
        """One copy to the device; there the block tables are laid out in rows of a fixed width."""
        packed = self._upload.packed(inputs.arrays)
        self._inputs[: len(packed)].copy_(packed, non_blocking=True)
        tables = unpacked(self._inputs, inputs.arrays)[-1]
        self._tables[: inputs.rows, : tables.shape[1]].copy_(tables)
