"""The sizes of a decoder that decide its costs: from a model folder's config.json, or built in.

Does not cover: whether this engine can run the model (``engine.model_config``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.errors import InvalidField
from core.shards import ParallelShape


class ModelShape(BaseModel):
    """A decoder with gated MLPs and grouped heads; names as in a config.json."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())

    name: str = Field(min_length=1)
    hidden_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    vocab_size: int = Field(ge=1)
    max_position_embeddings: int = Field(ge=1)
    tie_word_embeddings: bool = False

    @property
    def layer_weights(self) -> int:
        """Numbers in the matrices of all layers."""
        heads = 2 * self.num_attention_heads + 2 * self.num_key_value_heads
        attention = self.hidden_size * self.head_dim * heads
        return self.num_hidden_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

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
    except (OSError, ValueError) as error:
        raise InvalidField("model", str(path), f"can't be read: {error}") from None
    if not isinstance(stated, dict):
        raise InvalidField("model", str(path), "must be a JSON object, a model's config.json")
    return shape_of({"name": folder.name, **_with_defaults(stated)}, str(path))


def shape_of(stated: dict[str, Any], where: str) -> ModelShape:
    """``where``: the file or section, for the error message."""
    try:
        return ModelShape.model_validate(stated)
    except ValidationError as error:
        first = error.errors()[0]
        entry = ".".join(map(str, first["loc"])) or "model"
        fix = f"{first['msg'].lower()} (in {where})"
        raise InvalidField(entry, stated.get(entry), fix) from None


def _with_defaults(stated: dict[str, Any]) -> dict[str, Any]:
    heads = stated.get("num_attention_heads")
    filled = {"num_key_value_heads": heads, **stated}
    if stated.get("head_dim") is None and isinstance(heads, int) and heads > 0:
        filled["head_dim"] = int(stated.get("hidden_size", 0)) // heads
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
