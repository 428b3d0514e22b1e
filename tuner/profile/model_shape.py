"""The sizes of a decoder that decide its costs: from a model folder's config.json, or built in.

Does not cover: whether this engine can run the model (``engine.model_config``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from core.errors import InvalidField
from core.shards import ParallelShape
from tuner.profile.mixture import with_mixture

# No sizes beyond: numbers of them must stay numbers that can be computed with.
Size = Annotated[int, Field(ge=1, le=10**9)]
Count = Annotated[int, Field(ge=0, le=10**9)]


class ModelShape(BaseModel):
    """A decoder with gated MLPs and grouped heads; names as in a config.json.

    ``num_moe_layers`` of its layers have ``num_experts`` MLPs of ``moe_intermediate_size`` each, of
    which a token goes through ``num_experts_per_tok``, and one of
    ``shared_expert_intermediate_size`` for all tokens; the others one MLP of
    ``intermediate_size``.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())

    name: str = Field(min_length=1)
    hidden_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size
    intermediate_size: Size
    vocab_size: Size
    max_position_embeddings: Size
    tie_word_embeddings: bool = False
    num_experts: Count = 0
    num_experts_per_tok: Count = 0
    moe_intermediate_size: Count = 0
    shared_expert_intermediate_size: Count = 0
    num_moe_layers: Count = 0

    @model_validator(mode="after")
    def _experts_make_sense(self) -> ModelShape:
        layers, experts = self.num_hidden_layers, self.num_experts
        if self.num_moe_layers > layers:
            raise ValueError(f"num_moe_layers is above num_hidden_layers = {layers}")
        if (experts > 1) != (self.num_moe_layers > 0):
            raise ValueError("num_experts and num_moe_layers belong together: one is missing")
        if experts and not 1 <= self.num_experts_per_tok <= experts:
            raise ValueError(f"num_experts_per_tok must be from 1 to num_experts = {experts}")
        if experts and not self.moe_intermediate_size:
            raise ValueError("moe_intermediate_size is missing")
        return self

    @property
    def layer_weights(self) -> int:
        """Numbers in the matrices of all layers."""
        return self._common_weights + self.num_experts * self._weights_of_an_expert

    @property
    def active_layer_weights(self) -> int:
        """Those that one token is multiplied with."""
        return self._common_weights + self.num_experts_per_tok * self._weights_of_an_expert

    def read_layer_weights(self, rows: int) -> float:
        """Those that a step of ``rows`` tokens reads on average, if all experts are as likely and
        tokens choose for themselves: each expert is missed by a token with 1 − chosen / all."""
        if not self.num_moe_layers:
            return self.layer_weights
        missed = (1 - self.num_experts_per_tok / self.num_experts) ** rows
        read = self.num_experts * (1 - missed)
        return self._common_weights + read * self._weights_of_an_expert

    @property
    def _common_weights(self) -> int:
        """Of all layers, without experts."""
        heads = 2 * self.num_attention_heads + 2 * self.num_key_value_heads
        attention = self.num_hidden_layers * self.hidden_size * self.head_dim * heads
        dense = (self.num_hidden_layers - self.num_moe_layers) * self.intermediate_size
        shared = self.num_moe_layers * self.shared_expert_intermediate_size
        routers = self.num_moe_layers * self.num_experts
        return attention + self.hidden_size * (3 * (dense + shared) + routers)

    @property
    def _weights_of_an_expert(self) -> int:
        """In all layers together."""
        return 3 * self.hidden_size * self.moe_intermediate_size * self.num_moe_layers

    @property
    def head_weights(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def stored_weights(self) -> int:
        """Numbers that a replica keeps in memory."""
        return self.layer_weights + self.head_weights * (1 if self.tie_word_embeddings else 2)

    @property
    def kv_numbers_per_token(self) -> int:
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim

    def check(self, shape: ParallelShape) -> str:
        """Why ``shape`` can't run it; "" if it can."""
        if self.num_attention_heads % shape.tensor or self.num_key_value_heads % shape.tensor:
            return (
                f"{self.num_attention_heads} heads and {self.num_key_value_heads} KV heads can't "
                f"be split over {shape.tensor} ranks"
            )
        if self.num_hidden_layers < shape.pipeline:
            return f"{self.num_hidden_layers} layers can't fill {shape.pipeline} stages"
        return ""


def read_model_shape(folder: Path) -> ModelShape:
    """Raises ``InvalidField`` naming the file, or the entry of it that is missing or wrong."""
    path = folder / "config.json"
    try:
        stated: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidField("model", str(path), f"can't be read: {error}") from None
    if not isinstance(stated, dict):
        raise InvalidField("model", str(path), "must be a JSON object, a model's config.json")
    return shape_of({"name": folder.name, **with_mixture(_with_defaults(stated))}, str(path))


def shape_of(stated: Mapping[str, Any], where: str) -> ModelShape:
    """``where``: the file or section, for the error message."""
    try:
        return ModelShape.model_validate(stated)
    except ValidationError as error:
        first = error.errors()[0]
        entry = ".".join(map(str, first["loc"])) or "model"
        fix = f"{first['msg'].removeprefix('Value error, ').lower()} (in {where})"
        raise InvalidField(entry, stated.get(entry), fix) from None


def _with_defaults(stated: dict[str, Any]) -> dict[str, Any]:
    heads = stated.get("num_attention_heads")
    filled = {"num_key_value_heads": heads, **stated}
    hidden = stated.get("hidden_size")
    if stated.get("head_dim") is None and isinstance(heads, int) and isinstance(hidden, int):
        filled["head_dim"] = hidden // max(1, heads)
    return filled


def _shape(name: str, *sizes: int, tied: bool = False) -> ModelShape:
    fields = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
    )
    values: dict[str, Any] = dict(zip(fields, sizes, strict=True))
    return ModelShape(name=name, tie_word_embeddings=tied, **values)


# From the models' own config.json.
BUILT_IN = {
    shape.name: shape
    for shape in (
        _shape("smollm2-135m", 576, 30, 9, 3, 64, 1536, 49152, 8192, tied=True),
        _shape("llama-3.1-8b", 4096, 32, 32, 8, 128, 14336, 128256, 131072),
        _shape("llama-3.1-70b", 8192, 80, 64, 8, 128, 28672, 128256, 131072),
        _shape("qwen3-8b", 4096, 36, 32, 8, 128, 12288, 151936, 40960),
        _shape("qwen3-32b", 5120, 64, 64, 8, 128, 25600, 151936, 40960),
    )
}
