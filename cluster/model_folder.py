"""What the cluster must know of a model folder before a worker loads it: its shape and limits.

Covers: finding the folder by path or by name, checking that it is complete.
Does not cover: weights (``engine``), tokenizer and chat template (``text``).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import Incompatible, InvalidField, NotFound
from core.kv_layout import DTYPE_BYTES, KVLayout


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """``dtype`` is that of the weights; ``max_positions`` the longest sequence in tokens."""

    path: Path
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    max_positions: int

    @property
    def name(self) -> str:
        return self.path.name

    def kv_layout(self, block_size: int, dtype: str) -> KVLayout:
        return KVLayout(self.num_layers, self.num_kv_heads, self.head_dim, block_size, dtype)


def models_dir() -> Path:
    """Where imported models live, so that they can be served by name."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "crossdock" / "models"


def find_model(path_or_name: str) -> Path:
    """A folder by its path, or by its name below ``models_dir()``."""
    for folder in (Path(path_or_name), models_dir() / path_or_name):
        if folder.is_dir():
            return folder.resolve()
    raise NotFound(
        f"there is no model folder {path_or_name!r}, neither here nor in {models_dir()}; "
        "make one with `crossdock model import SRC DST`",
        reason="MODEL_NOT_FOUND",
        metadata={"model": path_or_name},
    )


def read_model_folder(path: Path) -> ModelFolder:
    """Raises ``Incompatible`` if a file is missing and ``InvalidField`` for a bad config.json."""
    for pattern in ("config.json", "tokenizer.json", "*.safetensors"):
        if not any(path.glob(pattern)):
            raise Incompatible(
                f"{path} is no model folder: it has no {pattern}",
                reason="MODEL_INCOMPLETE",
                metadata={"model": str(path), "missing": pattern},
            )
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidField(str(path / "config.json"), str(error), "must be JSON") from None
    if not isinstance(config, dict):
        raise InvalidField(str(path / "config.json"), config, "must be a JSON object")
    return _from_config(path, config)


def _from_config(path: Path, config: dict[str, Any]) -> ModelFolder:
    heads = _whole(path, config, "num_attention_heads")
    head_dim = config.get("head_dim") or _whole(path, config, "hidden_size") // heads
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return ModelFolder(
        path=path,
        num_layers=_whole(path, config, "num_hidden_layers"),
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        dtype=dtype if dtype in DTYPE_BYTES else "float32",
        # What transformers assumes of a Llama that does not say.
        max_positions=_whole(
            path, {"max_position_embeddings": 2048} | config, "max_position_embeddings"
        ),
    )


def _whole(path: Path, config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise InvalidField(f"{path / 'config.json'}: {key}", value, "must be a positive number")
    return value
