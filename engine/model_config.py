"""A model folder's ``config.json`` as a frozen ``ModelConfig``, and the folder's fingerprint.

Covers: Llama models. Whatever would change the result and is not implemented is refused by name.
Does not cover: weights (``engine.weights``), tokenizers (``text``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from core.errors import Incompatible, InvalidField, NotFound
from core.kv_layout import KVLayout

JsonObject = Mapping[str, Any]

_SAMPLES_PER_FILE = 64
_SAMPLE_BYTES = 4096

# Fields that may hold only these values (a missing field counts as the first).
_SUPPORTED: dict[str, tuple[object, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "rope_scaling": (None,),
    "quantization_config": (None,),
    "sliding_window": (None,),
    "partial_rotary_factor": (1.0, None),
}
_ROPE_SUPPORTED: dict[str, tuple[object, ...]] = {
    "rope_type": ("default", None),
    # The name of rope_type in older folders.
    "type": ("default", None),
    "factor": (1.0, None),
    "partial_rotary_factor": (1.0, None),
}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of a Llama model, and the ids that end its answers."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...]

    def kv_layout(self, block_size: int, dtype: str) -> KVLayout:
        """Layout of the blocks of a worker that holds the whole model."""
        return KVLayout(self.num_layers, self.num_kv_heads, self.head_dim, block_size, dtype)


def read_model_config(folder: Path) -> ModelConfig:
    """Raises NotFound without a config.json, Incompatible or InvalidField for what can't be run."""
    raw = read_json(folder / "config.json")
    generation_file = folder / "generation_config.json"
    generation = read_json(generation_file) if generation_file.is_file() else {}
    _check_supported(raw)
    config = ModelConfig(
        hidden_size=_size(raw, "hidden_size"),
        num_layers=_size(raw, "num_hidden_layers"),
        num_heads=_size(raw, "num_attention_heads"),
        num_kv_heads=_size(raw, "num_key_value_heads", _size(raw, "num_attention_heads")),
        head_dim=_head_dim(raw),
        intermediate_size=_size(raw, "intermediate_size"),
        vocab_size=_size(raw, "vocab_size"),
        rms_norm_eps=_positive(raw, "rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(raw),
        max_position_embeddings=_size(raw, "max_position_embeddings", 2048),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        eos_token_ids=_eos_token_ids(raw, generation),
    )
    _check_heads(config)
    return config


def read_json(path: Path) -> JsonObject:
    """A JSON object from a file of a model folder."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise NotFound(
            f"{path} does not exist: give a Hugging Face model folder, or make one with "
            "`crossdock model import`",
            reason="MODEL_FILE_MISSING",
            metadata={"file": str(path)},
        ) from None
    except ValueError as error:
        raise InvalidField(path.name, str(path), f"is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise InvalidField(path.name, str(path), "must hold a JSON object")
    return value


def model_hash(folder: Path) -> int:
    """64 bits that two workers compare before they exchange KV.

    Over the parsed config and, of each safetensors file: name, size, header and 64 samples of
    4 KiB. Two fine-tunes of one model differ in the samples; a copy of the folder does not.
    """
    config = json.dumps(asdict(read_model_config(folder)), sort_keys=True)
    digest = xxhash.xxh3_64(config.encode())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"\x00{path.name}\x00{path.stat().st_size}\x00".encode())
        _hash_samples(path, digest)
    return digest.intdigest()


def _hash_samples(path: Path, digest: xxhash.xxh3_64) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        digest.update(file.read(min(header_bytes, size)))
        first = file.tell()
        last = max(first, size - _SAMPLE_BYTES)
        for i in range(_SAMPLES_PER_FILE):
            file.seek(first + (last - first) * i // (_SAMPLES_PER_FILE - 1))
            digest.update(file.read(_SAMPLE_BYTES))


def _check_supported(raw: JsonObject) -> None:
    architectures = raw.get("architectures") or ["LlamaForCausalLM"]
    if architectures != ["LlamaForCausalLM"]:
        raise _unsupported("architectures", architectures, ("LlamaForCausalLM",))
    if "model_type" not in raw:
        raise InvalidField("model_type", None, "config.json must name it; 'llama' is supported")
    for field, allowed in _SUPPORTED.items():
        if raw.get(field, allowed[0]) not in allowed:
            raise _unsupported(field, raw[field], allowed)
    rope = _rope_parameters(raw)
    for field, allowed in _ROPE_SUPPORTED.items():
        if rope.get(field, allowed[0]) not in allowed:
            raise _unsupported(f"rope_parameters.{field}", rope[field], allowed)


def _unsupported(field: str, value: object, allowed: tuple[object, ...]) -> Incompatible:
    return Incompatible(
        f"config.json: {field} = {value!r} is not supported; this engine runs {allowed[0]!r}",
        reason="MODEL_NOT_SUPPORTED",
        metadata={"field": field, "value": repr(value), "supported": repr(allowed[0])},
    )


def _check_heads(config: ModelConfig) -> None:
    if config.num_heads % config.num_kv_heads:
        raise InvalidField(
            "num_key_value_heads",
            config.num_kv_heads,
            f"must divide num_attention_heads = {config.num_heads}",
        )
    if config.head_dim % 2:
        raise InvalidField("head_dim", config.head_dim, "must be even for rotary embeddings")


def _size(raw: JsonObject, field: str, default: int | None = None) -> int:
    value = raw.get(field)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidField(field, value, "config.json must give a positive whole number")
    return value


def _head_dim(raw: JsonObject) -> int:
    hidden, heads = _size(raw, "hidden_size"), _size(raw, "num_attention_heads")
    if raw.get("head_dim") is None and hidden % heads:
        raise InvalidField("hidden_size", hidden, f"must be a multiple of {heads} heads")
    return _size(raw, "head_dim", hidden // heads)


def _rope_parameters(raw: JsonObject) -> JsonObject:
    """Where transformers 5 keeps what stood at the top level before."""
    value = raw.get("rope_parameters") or {}
    if not isinstance(value, dict):
        raise InvalidField("rope_parameters", value, "must be a JSON object")
    return value


def _rope_theta(raw: JsonObject) -> float:
    rope = _rope_parameters(raw)
    return _positive(rope if "rope_theta" in rope else raw, "rope_theta", 10000.0)


def _positive(raw: JsonObject, field: str, default: float) -> float:
    value = raw.get(field, default)
    if not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise InvalidField(field, value, "must be a positive number")
    return float(value)


def _eos_token_ids(raw: JsonObject, generation: JsonObject) -> tuple[int, ...]:
    ids: set[int] = set()
    for source in (raw, generation):
        value = source.get("eos_token_id")
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(token, int) for token in listed):
            raise InvalidField("eos_token_id", value, "must be a token id or a list of them")
        ids.update(listed)
    return tuple(sorted(ids))
