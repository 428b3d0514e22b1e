"""Small model folders with weights of zeros, for tests that only look at them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from core.errors import CrossdockError
from engine.model_config import read_model_config
from engine.weight_shapes import expected_shapes

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 16,
    "vocab_size": 10,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "max_position_embeddings": 1000,
    "dtype": "bfloat16",
}


def make_model_folder(path: Path, **changes: Any) -> Path:
    """A complete folder; a change to None leaves a key out. No tensors for a bad config."""
    config = {k: v for k, v in (CONFIG | changes).items() if v is not None}
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text("{}")
    try:
        shapes = expected_shapes(read_model_config(path))
    except CrossdockError:
        shapes = {}
    weights = {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}
    save_file(weights, path / "model.safetensors")
    return path
