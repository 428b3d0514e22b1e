"""Executes step plans on one rank's part of a model and its KV pool.

On a GPU the host waits for it once a step: for the tokens that it reads, or, where none are drawn,
for the step. All else is only enqueued.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from core.errors import Incompatible
from core.shards import shard_layout
from core.step import StepPlan, StepResult
from engine.batch import BatchArrays, to_device
from engine.communicator import ALONE, Communicator
from engine.cuda_graphs import CudaRecorder, DecodeGraphs
from engine.decoder import Decoder, Weights
from engine.dtypes import torch_dtype
from engine.graph_buckets import decode_buckets, has_graphs
from engine.kv_pool import KVPool
from engine.model_config import ModelConfig, read_model_config
from engine.running_batch import RunningBatch
from engine.sampler import Draws, PendingDraws, Sampler
from engine.upload import Upload
from engine.vocabulary import Logits
from engine.weights import load_weights
from kernels.dispatch import implementation


def _nothing() -> None:
    pass


class ModelRunner:
    """Blocking: ``execute`` returns when the step is computed. Not to be called concurrently.

    ``graphs``: of ``model`` and ``pool``; steps that fit none, or all without them, run eagerly.
    """

    def __init__(self, model: Decoder, pool: KVPool, graphs: DecodeGraphs | None = None) -> None:
        if pool.tensor.dtype is not model.dtype:
            raise Incompatible(
                f"the KV pool is {pool.layout.dtype}, the model {model.dtype}: they must agree",
                reason="KV_DTYPE_DIFFERS",
                metadata={"kv": pool.layout.dtype, "model": str(model.dtype)},
            )
        self.model = model
        self.pool = pool
        self._graphs = graphs
        self._on_gpu = model.device.type == "cuda"
        self._upload = Upload(model.device)
        widest = pool.num_blocks if graphs is None else graphs.buckets.table_width
        self._running = RunningBatch(pool.layout.block_size, widest)
        self._sampler = Sampler()

    def execute(
        self, plan: StepPlan, meanwhile: Callable[[], None] = _nothing
    ) -> StepResult | None:
        """Copies blocks, computes the KV of all slices and samples for those that ask for it.

        Calls ``meanwhile`` once: when all of a step is enqueued on a GPU, or before a CPU computes.
        A slice whose logits are not finite fails alone. None on ranks that do not sample. Raises
        InternalError, reason PEERS_LOST, when another rank of the replica is gone.
        """
        self.pool.copy_blocks(plan.copies)
        arrays = self._running.arrays_of(plan)
        if self._on_gpu:
            logits = self._forward(arrays)
            pending = self._draw(logits, self._prepared(arrays))
            meanwhile()
        else:
            # After a step of a CPU nothing of this is in the caches any more.
            draws = self._prepared(arrays)
            meanwhile()
            pending = self._draw(self._forward(arrays), draws)
        result = None if pending is None else pending.read()
        if self._on_gpu and (result is None or not arrays.sampled_slices):
            # What follows a step (handing its blocks over) must find them written; reading tokens
            # has waited for that. Not the whole device: a transfer that waits for a slow peer is
            # under way on a stream of its own.
            torch.cuda.current_stream(self.model.device).synchronize()
        return result

    def _prepared(self, arrays: BatchArrays) -> Draws | None:
        """None on ranks that do not sample."""
        return self._sampler.prepare(arrays.sampled_slices) if self.model.shard.samples else None

    def _draw(self, logits: Logits | None, draws: Draws | None) -> PendingDraws | None:
        if logits is None or draws is None:
            return None
        return self._sampler.draw(logits, draws)

    def _forward(self, arrays: BatchArrays) -> Logits | None:
        rows = None if self._graphs is None else self._graphs.buckets.bucket_for(arrays)
        if self._graphs is not None and rows is not None:
            return self._graphs.run(arrays, rows)
        return self.model.forward(to_device(arrays, self._upload), self.pool.tensor)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A rank's part of a model, ready to run, and what the rest of a worker needs to know of it.

    ``config`` is the whole model's; ``pool.layout`` that of this rank's blocks.
    """

    runner: ModelRunner
    pool: KVPool
    config: ModelConfig


def load_runner(
    folder: Path,
    *,
    dtype: str,
    device: str,
    num_blocks: int,
    block_size: int,
    communicator: Communicator = ALONE,
    max_decodes: int = 0,
) -> LoadedModel:
    """Reads this rank's weights as ``dtype`` onto ``device``, and goes on as `make_runner`."""
    config = read_model_config(folder)
    shape, rank = communicator.shape, communicator.rank
    return make_runner(
        config,
        load_weights(folder, config, torch_dtype(dtype), device, shape, rank),
        dtype=dtype,
        device=device,
        num_blocks=num_blocks,
        block_size=block_size,
        communicator=communicator,
        max_decodes=max_decodes,
    )


def make_runner(
    config: ModelConfig,
    weights: Weights,
    *,
    dtype: str,
    device: str,
    num_blocks: int,
    block_size: int,
    communicator: Communicator = ALONE,
    max_decodes: int = 0,
) -> LoadedModel:
    """Makes a pool of ``dtype`` for this rank's ``weights``, which have it and are on ``device``.

    ``max_decodes``: the most sequences that decode in one step; where that can be done
    (``engine.graph_buckets``), such steps are captured as graphs now. 0: none.
    Raises InvalidField if the model can't be split into the communicator's shape.
    """
    model = Decoder(config, weights, communicator)
    layout = shard_layout(config.kv_layout(block_size, dtype), model.shard.kv_region)
    pool = KVPool.create(layout, num_blocks, device)
    graphs = None
    triton_on_gpu = pool.tensor.is_cuda and implementation(pool.tensor) == "triton"
    if triton_on_gpu:
        _tune_attention(model, pool)
    if triton_on_gpu and has_graphs(device, communicator.shape, max_decodes):
        buckets = decode_buckets(max_decodes, config.max_positions, num_blocks, block_size)
        recorder = CudaRecorder(model.device)
        graphs = DecodeGraphs(model.forward, pool.tensor, config.vocab_size, buckets, recorder)
    return LoadedModel(ModelRunner(model, pool, graphs), pool, config)


def _tune_attention(model: Decoder, pool: KVPool) -> None:
    """Now, because the first requests would wait for it, and a capture can't measure anything."""
    # Here, so that a machine without a GPU never loads Triton.
    from kernels.tune_attention import tune_attention

    for window in {model.config.layer_windows[i] for i in model.shard.layers}:
        tune_attention(pool.tensor, len(model.shard.heads), window)
