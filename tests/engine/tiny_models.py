"""Tiny models of every family with random weights, as transformers writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SHAPE: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "vocab_size": 150,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}

# Name: model_type, and what differs from SHAPE. 4 tokens make a block in these tests, so windows
# end within blocks, at their border, and within the first one.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with one KV head, tied": (
        "llama",
        {"num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
    "llama with as many KV heads": ("llama", {"num_key_value_heads": 6, "head_dim": 10}),
    "llama with all biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama with llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama with linear rope": ("llama", {"rope_parameters": LINEAR}),
    "llama with yarn": ("llama", {"rope_parameters": YARN}),
    "mistral with a window": ("mistral", {"sliding_window": 13, "head_dim": 16}),
    "mistral with a window of two blocks": ("mistral", {"sliding_window": 8}),
    "mistral with a window of one token": ("mistral", {"sliding_window": 1}),
    "mistral without a window": ("mistral", {"sliding_window": None}),
    "mistral with attention_factor": (
        "mistral",
        {"sliding_window": None, "rope_parameters": {**YARN, "attention_factor": 1.4}},
    ),
    "qwen2": ("qwen2", {}),
    "qwen2 with windows after the first layer": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 10, "max_window_layers": 1},
    ),
    "qwen2 with yarn, tied": (
        "qwen2",
        {
            "tie_word_embeddings": True,
            "rope_parameters": {**YARN, "beta_fast": 16.0, "beta_slow": 0.5, "truncate": False},
        },
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3 with 8 KV heads and 5 layers": (
        "qwen3",
        {
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 8,
            "num_hidden_layers": 5,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3 with biases and listed windows": (
        "qwen3",
        {
            "head_dim": 8,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rms_norm_eps": 1e-3,
        },
    ),
    "qwen3 with yarn and mscale": (
        "qwen3",
        {"head_dim": 32, "rope_parameters": {**YARN, "mscale": 1.2, "mscale_all_dim": 0.6}},
    ),
}

# One of each family, of each kind of rope and window, of each way to hold KV heads.
OF_EACH_KIND = {
    "llama with one KV head, tied",
    "llama with all biases",
    "llama with llama3 rope",
    "mistral with a window",
    "qwen2 with windows after the first layer",
    "qwen2 with yarn, tied",
    "qwen3 with 8 KV heads and 5 layers",
}


def make_model(folder: Path, name: str) -> Path:
    """Writes the model of that name; biases and norms are random too, not zeros and ones."""
    model_type, changes = MODELS[name]
    config = AutoConfig.for_model(model_type, **(SHAPE | changes))
    torch.manual_seed(len(name))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.save_pretrained(folder)
    return folder
