"""Which part of a model one rank of a replica holds: numbers only.

Stages share the layers; the tensor ranks of a stage share query heads, KV heads, columns of the
MLP and rows of the vocabulary (Shoeybi et al., 2019, Megatron-LM).
Does not cover: which slices of which tensors that is (``engine.weight_slices``).
"""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import InvalidField
from core.shards import ParallelShape, Region, check_kv_split, part_of
from engine.model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class ModelShard:
    """Ranges count in the whole model. The first stage has the embedding, the last one the head;
    of the ranks of a stage one leads it: tensor rank 0."""

    layers: range
    heads: range
    kv_heads: range
    mlp_columns: range
    vocabulary: range
    is_first_stage: bool
    is_last_stage: bool
    leads_stage: bool

    @property
    def kv_region(self) -> Region:
        return Region(self.layers, self.kv_heads)

    @property
    def samples(self) -> bool:
        """Whether this is the one rank that gets logits."""
        return self.is_last_stage and self.leads_stage


def model_shard(config: ModelConfig, shape: ParallelShape, rank: int) -> ModelShard:
    """What ``rank`` holds. Raises ``InvalidField`` as `check_split` does."""
    check_split(config, shape)
    stage, tensor_rank = shape.stage_of(rank), shape.tensor_rank_of(rank)
    heads = part_of(config.num_heads, shape.tensor, tensor_rank)
    return ModelShard(
        layers=part_of(config.num_layers, shape.pipeline, stage),
        heads=heads,
        kv_heads=_read_by(heads, config.num_heads // config.num_kv_heads),
        mlp_columns=part_of(config.intermediate_size, shape.tensor, tensor_rank),
        vocabulary=part_of(config.vocab_size, shape.tensor, tensor_rank),
        is_first_stage=stage == 0,
        is_last_stage=stage == shape.pipeline - 1,
        leads_stage=tensor_rank == 0,
    )


def check_split(config: ModelConfig, shape: ParallelShape, where: str = "") -> None:
    """Raises ``InvalidField`` with the valid sizes if the model can't be split like that.

    ``where``: path of the settings, with a dot at its end. Columns of the MLP and rows of the
    vocabulary need not divide: some ranks hold one more.
    """
    check_kv_split(shape, config.num_layers, config.num_kv_heads, config.num_heads, where)
    fewest = min(config.intermediate_size, config.vocab_size)
    if shape.tensor > fewest:
        raise InvalidField(
            f"{where}tensor_parallel_size",
            shape.tensor,
            f"a model with {config.intermediate_size} columns in its MLP and "
            f"{config.vocab_size} tokens can be split into {fewest} at most",
            reason="CANNOT_SPLIT",
        )


def _read_by(heads: range, group: int) -> range:
    """The KV heads that these query heads read, ``group`` query heads each."""
    return range(heads.start // group, (heads.stop - 1) // group + 1)
