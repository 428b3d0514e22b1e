"""The section `pools` of the config: how many workers of each kind, and what each of them has."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator, model_validator

from core.config_section import Section, wrong_within
from core.shards import MAX_RANKS, ParallelShape

# Of one pool.
MAX_REPLICAS = 1024

ParallelSize = Annotated[int, Field(ge=1, le=MAX_RANKS, strict=True)]
Amount = Annotated[float, Field(gt=0)]


class PoolSpec(Section):
    """A pool of equal replicas of ``tensor_parallel_size`` × ``pipeline_parallel_size`` ranks."""

    replicas: int = Field(default=1, ge=0, le=MAX_REPLICAS, strict=True)
    """How many workers; 0 prefill replicas: the decode workers prefill too (colocated serving)."""
    resources: dict[str, Amount] | None = Field(default=None, min_length=1)
    """Ray's resources of each rank, such as `{CPU: 4}` or `{GPU: 1}`. Without it: a fair share."""
    max_num_seqs: int = Field(default=32, ge=1, strict=True)
    """How many sequences a worker computes at once."""
    max_num_batched_tokens: int | None = Field(default=None, ge=1, strict=True)
    """Most tokens of one engine step, so also of a prefill chunk. Without it: what suits the
    device."""
    tensor_parallel_size: ParallelSize = 1
    """Ranks that share each layer."""
    pipeline_parallel_size: ParallelSize = 1
    """Stages that share the layers."""
    gpu_hour_price: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Of one rank's accelerator, in any currency; costs are told where it is known."""

    @field_validator("pipeline_parallel_size")
    @classmethod
    def _not_too_many_ranks(cls, pipeline: int, info: ValidationInfo) -> int:
        tensor = info.data.get("tensor_parallel_size", 1)
        if tensor * pipeline > MAX_RANKS:
            raise ValueError(
                f"with tensor_parallel_size = {tensor} it must be at most {MAX_RANKS // tensor}: "
                f"a replica has at most {MAX_RANKS} ranks"
            )
        return pipeline

    @property
    def shape(self) -> ParallelShape:
        return ParallelShape(self.tensor_parallel_size, self.pipeline_parallel_size)

    @property
    def hour_price(self) -> float | None:
        """Of all replicas."""
        if self.gpu_hour_price is None:
            return None
        return self.replicas * self.shape.num_ranks * self.gpu_hour_price


class PoolsSpec(Section):
    """The two pools. Without prefill replicas the decode workers prefill too."""

    prefill: PoolSpec = PoolSpec()
    """Workers that compute prompts."""
    decode: PoolSpec = PoolSpec()
    """Workers that stream answers; at least one."""

    def of(self, pool: str) -> PoolSpec:
        return self.prefill if pool == "prefill" else self.decode

    @model_validator(mode="after")
    def _somebody_decodes(self) -> PoolsSpec:
        if self.decode.replicas < 1:
            raise wrong_within(
                ("decode", "replicas"),
                self.decode.replicas,
                "must be at least 1, or nobody streams answers",
            )
        return self
