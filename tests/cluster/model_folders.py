"""Model folders without weights worth mentioning, for tests that only look at them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "max_position_embeddings": 1000,
    "dtype": "bfloat16",
}


def make_model_folder(path: Path, **changes: Any) -> Path:
    """A folder that looks complete; a change to None leaves a key out."""
    config = {k: v for k, v in (CONFIG | changes).items() if v is not None}
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"")
    return path
