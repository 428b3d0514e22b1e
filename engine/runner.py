"""Executes step plans on one rank's part of a model and its KV pool."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from core.errors import Incompatible
from core.shards import shard_layout
from core.step import StepPlan, StepResult
from engine.batch import build_batch
from engine.communicator import ALONE, Communicator
from engine.decoder import Decoder
from engine.dtypes import torch_dtype
from engine.kv_pool import KVPool
from engine.model_config import ModelConfig, read_model_config
from engine.sampler import sample
from engine.weights import load_weights


class ModelRunner:
    """Blocking: ``execute`` returns when the step is computed. Not to be called concurrently."""

    def __init__(self, model: Decoder, pool: KVPool) -> None:
        if pool.tensor.dtype is not model.dtype:
            raise Incompatible(
                f"the KV pool is {pool.layout.dtype}, the model {model.dtype}: they must agree",
                reason="KV_DTYPE_DIFFERS",
                metadata={"kv": pool.layout.dtype, "model": str(model.dtype)},
            )
        self.model = model
        self.pool = pool

    def execute(self, plan: StepPlan) -> StepResult | None:
        """Copies blocks, computes the KV of all slices and samples for those that ask for it.

        A slice whose logits are not finite fails alone. None on ranks that do not sample. Raises
        InternalError, reason PEERS_LOST, when another rank of the replica is gone.
        """
        self.pool.copy_blocks(plan.copies)
        batch = build_batch(plan, self.pool.layout.block_size, self.model.device)
        logits = self.model.forward(batch, self.pool.tensor)
        result = None if logits is None else sample(logits, batch.sampled_slices)
        if self.model.device.type == "cuda":
            # What follows a step (handing its blocks over) must find them written. Not the whole
            # device: a transfer that waits for a slow peer is under way on a stream of its own.
            torch.cuda.current_stream(self.model.device).synchronize()
        return result


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
) -> LoadedModel:
    """Reads this rank's weights as ``dtype`` onto ``device`` and makes a pool of that dtype.

    Raises InvalidField if the model can't be split into the communicator's shape.
    """
    config = read_model_config(folder)
    shape, rank = communicator.shape, communicator.rank
    weights = load_weights(folder, config, torch_dtype(dtype), device, shape, rank)
    model = Decoder(config, weights, communicator)
    layout = shard_layout(config.kv_layout(block_size, dtype), model.shard.kv_region)
    pool = KVPool.create(layout, num_blocks, device)
    return LoadedModel(ModelRunner(model, pool), pool, config)
