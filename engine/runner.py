"""Executes step plans on one model and one KV pool."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.errors import Incompatible
from core.step import StepPlan, StepResult
from engine.batch import build_batch
from engine.decoder import Decoder
from engine.dtypes import torch_dtype
from engine.kv_pool import KVPool
from engine.model_config import ModelConfig, read_model_config
from engine.sampler import sample
from engine.weights import load_weights
from kernels.paged_attention import PoolShape


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
        self._shape = PoolShape.of(pool.tensor)

    def execute(self, plan: StepPlan) -> StepResult:
        """Copies blocks, computes the KV of all slices and samples for those that ask for it.

        A slice whose logits are not finite fails alone.
        """
        self.pool.copy_blocks(plan.copies)
        batch = build_batch(plan, self._shape, self.model.device, self.model.config.windows)
        logits = self.model.forward(batch, self.pool.tensor)
        return sample(logits, batch.sampled_slices)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to run, and what the rest of a worker needs to know of it."""

    runner: ModelRunner
    pool: KVPool
    config: ModelConfig


def load_runner(
    folder: Path, *, dtype: str, device: str, num_blocks: int, block_size: int
) -> LoadedModel:
    """Reads the folder's weights as ``dtype`` onto ``device`` and makes a pool of that dtype."""
    config = read_model_config(folder)
    model = Decoder(config, load_weights(folder, config, torch_dtype(dtype), device))
    pool = KVPool.create(config.kv_layout(block_size, dtype), num_blocks, device)
    return LoadedModel(ModelRunner(model, pool), pool, config)
