"""Reading config.json: what is understood, what is refused, and the folder's fingerprint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from core.errors import CrossdockError, Incompatible, InvalidField, NotFound
from engine.model_config import model_hash, read_model_config

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
}


def folder_with(path: Path, generation: dict[str, Any] | None = None, **changes: Any) -> Path:
    (path / "config.json").write_text(json.dumps(CONFIG | changes))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path


def test_a_plain_config(tmp_path: Path) -> None:
    config = read_model_config(folder_with(tmp_path, rope_theta=500.0, rope_scaling=None))
    assert (config.num_layers, config.num_heads, config.num_kv_heads) == (2, 4, 2)
    assert (config.head_dim, config.rope_theta, config.rms_norm_eps) == (16, 500.0, 1e-5)
    assert not config.tie_word_embeddings
    assert config.kv_layout(16, "bfloat16").block_shape == (2, 2, 2, 16, 16)


def test_rope_of_transformers_5(tmp_path: Path, tiny_llama: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 777.0}
    assert read_model_config(folder_with(tmp_path, rope_parameters=rope)).rope_theta == 777.0
    assert read_model_config(tiny_llama).rope_theta == 5000.0


@pytest.mark.parametrize(
    ("in_config", "in_generation", "expected"),
    [(2, None, (2,)), ([3, 2], {}, (2, 3)), (2, {"eos_token_id": [2, 7]}, (2, 7)), (None, {}, ())],
)
def test_end_of_sequence_ids_come_from_both_files(
    tmp_path: Path, in_config: object, in_generation: dict[str, Any] | None, expected: object
) -> None:
    folder = folder_with(tmp_path, in_generation, eos_token_id=in_config)
    assert read_model_config(folder).eos_token_ids == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architectures", ["MistralForCausalLM"]),
        ("model_type", "qwen2"),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("quantization_config", {"quant_method": "awq"}),
        ("sliding_window", 4096),
        ("partial_rotary_factor", 0.5),
        ("rope_parameters", {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}),
    ],
)
def test_what_would_change_the_result_is_refused_by_name(
    tmp_path: Path, field: str, value: object
) -> None:
    with pytest.raises(Incompatible, match=field) as refused:
        read_model_config(folder_with(tmp_path, **{field: value}))
    assert refused.value.metadata["field"].startswith(field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", None),
        ("num_hidden_layers", 0),
        ("vocab_size", "many"),
        ("num_key_value_heads", 3),
        ("head_dim", 5),
        ("rope_theta", -1.0),
        ("eos_token_id", "</s>"),
        ("model_type", None),
    ],
)
def test_nonsense_is_refused_by_name(tmp_path: Path, field: str, value: object) -> None:
    with pytest.raises(CrossdockError, match=field):
        read_model_config(folder_with(tmp_path, **{field: value}))


def test_a_missing_or_broken_config_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="crossdock model import"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InvalidField, match="not valid JSON"):
        read_model_config(tmp_path)


def test_the_hash_follows_content_and_not_place(tiny_llama: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_llama, tmp_path / "copy")
    assert model_hash(copy) == model_hash(tiny_llama)

    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    other_weights = model_hash(copy)
    assert other_weights != model_hash(tiny_llama)

    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-6}))
    assert model_hash(copy) not in (other_weights, model_hash(tiny_llama))
