"""What the cluster must know of a model folder before a worker loads it: its shape and limits.

Covers: finding the folder by path or by name, checking that it is complete and can be run.
Does not cover: loading weights (``engine.weights``), tokenizer and chat template (``text``).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from core.errors import Incompatible, NotFound
from core.kv_layout import DTYPE_BYTES, KVLayout
from engine.config_fields import read_json
from engine.model_config import read_model_config
from engine.weight_files import check_weights
from text.tokenizer import read_eos_token_ids


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """``num_heads``: query heads; ``dtype`` is that of the weights; ``max_positions`` the longest
    sequence in tokens."""

    path: Path
    num_layers: int
    num_heads: int
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
    """Refuses what no worker could load: only names and shapes of the weights are read.

    Raises ``Incompatible`` if a file is missing or the model is none that the engine runs,
    ``NotFound`` for a missing shard, ``InvalidField`` for a bad config.json or a broken file.
    """
    model = read_folder_without_weights(path)
    check_weights(path, read_model_config(path))
    return model


def read_folder_without_weights(path: Path) -> ModelFolder:
    """The same for who only reads prompts and writes answers. Raises as ``read_model_folder``."""
    for pattern in ("config.json", "tokenizer.json"):
        if not any(path.glob(pattern)):
            raise Incompatible(
                f"{path} is no model folder: it has no {pattern}",
                reason="MODEL_INCOMPLETE",
                metadata={"model": str(path), "missing": pattern},
            )
    shape = read_model_shape(path)
    read_eos_token_ids(path)
    return shape


def read_model_shape(path: Path) -> ModelFolder:
    """Of a folder that needs no more than a config.json. Raises as ``read_model_config``."""
    config = read_model_config(path)
    stated = read_json(path / "config.json")
    dtype = str(stated.get("dtype") or stated.get("torch_dtype") or "float32")
    return ModelFolder(
        path=path,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=dtype if dtype in DTYPE_BYTES else "float32",
        max_positions=config.max_positions,
    )
