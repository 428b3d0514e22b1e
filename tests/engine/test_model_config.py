"""Reading config.json: what is understood, what is refused, and the folder's fingerprint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from core.errors import CrossdockError, Incompatible, InvalidField, NotFound
from engine.model_config import read_model_config
from engine.model_hash import model_hash
from engine.rope_config import LinearScaling, Llama3Scaling, YarnScaling

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
    assert (config.head_dim, config.rope.theta, config.rms_norm_eps) == (16, 500.0, 1e-5)
    assert not config.tie_word_embeddings
    assert config.kv_layout(16, "bfloat16").block_shape == (2, 2, 2, 16, 16)


def test_rope_of_transformers_5(tmp_path: Path, tiny_llama: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 777.0}
    assert read_model_config(folder_with(tmp_path, rope_parameters=rope)).rope.theta == 777.0
    assert read_model_config(tiny_llama).rope.theta == 5000.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architectures", ["LlamaForSequenceClassification"]),
        ("model_type", "mixtral"),
        ("model_type", "gemma"),
        ("model_type", ["llama"]),
        ("hidden_act", "gelu"),
        ("quantization_config", {"quant_method": "awq"}),
        ("sliding_window", 4096),
        ("layer_types", ["sliding_attention", "full_attention"]),
        ("is_causal", False),
        ("partial_rotary_factor", 0.5),
        ("final_logit_softcapping", 30.0),
        ("rope_parameters", {"rope_type": "dynamic", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "longrope", "short_factor": [1.0]}),
        ("rope_parameters", {"full_attention": {"rope_type": "default"}}),
        ("rope_parameters", {"rope_type": "default", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
        ("rope_scaling", {"type": "mrope", "mrope_section": [1, 2, 3]}),
    ],
)
def test_what_would_change_the_result_is_refused_by_name(
    tmp_path: Path, field: str, value: object
) -> None:
    with pytest.raises(Incompatible, match=field) as refused:
        read_model_config(folder_with(tmp_path, **{field: value}))
    assert {"field", "value", "supported"} <= refused.value.metadata.keys()


@pytest.mark.parametrize(
    ("model_type", "architecture", "field", "value"),
    [
        ("mistral", "MistralForCausalLM", "attention_bias", True),
        ("mistral", "MistralForCausalLM", "mlp_bias", True),
        ("qwen2", "Qwen2ForCausalLM", "attention_bias", False),
        ("qwen3", "Qwen3ForCausalLM", "mlp_bias", True),
        ("qwen3", "Qwen3ForCausalLM", "layer_types", ["full_attention", "chunked_attention"]),
        ("qwen3", "LlamaForCausalLM", "architectures", ["LlamaForCausalLM"]),
    ],
)
def test_a_family_refuses_what_only_others_have(
    tmp_path: Path, model_type: str, architecture: str, field: str, value: object
) -> None:
    changes = {"architectures": [architecture], "model_type": model_type, field: value}
    with pytest.raises(Incompatible, match=field):
        read_model_config(folder_with(tmp_path, **changes))


def test_what_a_family_assumes_of_absent_fields(tmp_path: Path) -> None:
    left_out = ("num_key_value_heads", "max_position_embeddings")

    def read(model_type: str, **changes: Any) -> Any:
        content = {key: value for key, value in CONFIG.items() if key not in left_out}
        content |= {"architectures": None, "model_type": model_type, **changes}
        (tmp_path / "config.json").write_text(json.dumps(content))
        return read_model_config(tmp_path)

    assert (read("llama").num_kv_heads, read("llama").max_positions) == (4, 2048)
    mistral = read("mistral", num_attention_heads=8)
    assert (mistral.num_kv_heads, mistral.layer_windows) == (8, (4096, 4096))
    qwen3 = read("qwen3", num_attention_heads=64)
    assert (qwen3.num_kv_heads, qwen3.head_dim, qwen3.windows) == (32, 128, (None,))


def test_windows_of_layers(tmp_path: Path) -> None:
    qwen = {"architectures": None, "model_type": "qwen2", "sliding_window": 8}

    def windows(**changes: Any) -> tuple[int | None, ...]:
        return read_model_config(folder_with(tmp_path, **(qwen | changes))).layer_windows

    assert windows() == (None, None)
    assert windows(use_sliding_window=True) == (None, None)
    assert windows(use_sliding_window=True, max_window_layers=1) == (None, 8)
    listed = ["sliding_attention", "full_attention"]
    assert windows(use_sliding_window=True, layer_types=listed) == (8, None)
    with pytest.raises(InvalidField, match="layer_types"):
        windows(use_sliding_window=False, layer_types=listed)
    with pytest.raises(InvalidField, match="layer_types"):
        windows(use_sliding_window=True, layer_types=listed[:1])
    with pytest.raises(InvalidField, match="sliding_window"):
        windows(use_sliding_window=True, sliding_window=0)


def test_scaled_rope(tmp_path: Path) -> None:
    def scaling(key: str = "rope_scaling", **rope: Any) -> object:
        return read_model_config(folder_with(tmp_path, **{key: rope})).rope.scaling

    assert scaling(type="linear", factor=4) == LinearScaling(4.0)
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert scaling("rope_parameters", rope_type="llama3", **llama3) == Llama3Scaling(
        8.0, 1.0, 4.0, original_positions=512
    )
    yarn = scaling(rope_type="yarn", type="yarn", factor=4.0, finetuned=True)
    assert isinstance(yarn, YarnScaling)
    assert (yarn.original_positions, yarn.beta_fast, yarn.beta_slow) == (512, 32.0, 1.0)
    assert yarn.attention_factor == pytest.approx(1.1386294)
    yarn = scaling(type="yarn", factor=None, original_max_position_embeddings=128)
    assert isinstance(yarn, YarnScaling)
    assert yarn.factor == 4.0


def test_yarn_lets_a_sequence_be_as_long_as_its_factor_says(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 500}
    assert read_model_config(folder_with(tmp_path, rope_scaling=yarn)).max_positions == 2000
    linear = {"rope_type": "linear", "factor": 4.0}
    assert read_model_config(folder_with(tmp_path, rope_scaling=linear)).max_positions == 512


@pytest.mark.parametrize(
    ("rope", "named"),
    [
        ({"type": "linear"}, "factor"),
        ({"type": "linear", "factor": -1}, "factor"),
        ({"type": "linear", "rope_type": "yarn", "factor": 2.0}, r"rope_scaling\.type"),
        ({"type": "llama3", "factor": 2.0, "low_freq_factor": 1.0}, "high_freq_factor"),
        (
            {"type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0},
            "high_freq_factor",
        ),
        ({"type": "yarn", "factor": 2.0, "attention_factor": "much"}, "attention_factor"),
        ({"type": "yarn", "factor": 2.0, "truncate": "no"}, "truncate"),
        ({"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0.5}, "original_max"),
        ({"type": "yarn", "factor": 2.0, "rope_theta": 1.0}, "rope_theta"),
    ],
)
def test_nonsense_in_scaled_rope_is_refused_by_name(
    tmp_path: Path, rope: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidField, match=named):
        read_model_config(folder_with(tmp_path, rope_scaling=rope))


def test_two_ropes_in_one_config_are_refused(tmp_path: Path) -> None:
    both = {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
    }
    with pytest.raises(InvalidField, match="keep one"):
        read_model_config(folder_with(tmp_path, **both))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", None),
        ("num_hidden_layers", 0),
        ("vocab_size", "many"),
        ("num_key_value_heads", 3),
        ("head_dim", 5),
        ("rope_theta", -1.0),
        ("model_type", None),
        ("tie_word_embeddings", "yes"),
        ("rms_norm_eps", True),
        ("rope_parameters", [1]),
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
