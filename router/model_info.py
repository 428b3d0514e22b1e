"""What the router must know of the served model, read from its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import Incompatible, InvalidField
from text.tokenizer import read_eos_token_ids


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """``vocab_size``: ids below it are valid. ``max_model_len``: tokens of prompt and answer."""

    name: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]

    @classmethod
    def load(cls, folder: Path, name: str = "", max_model_len: int | None = None) -> ModelInfo:
        """Read ``config.json``; ``name`` defaults to the folder's name."""
        config = _read_config(folder / "config.json")
        positions = int(config["max_position_embeddings"])
        length = positions if max_model_len is None else max_model_len
        if not 1 <= length <= positions:
            raise InvalidField("max_model_len", length, f"the model takes 1 to {positions}")
        eos = read_eos_token_ids(folder)
        return cls(name or folder.resolve().name, int(config["vocab_size"]), length, eos)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in ("vocab_size", "max_position_embeddings") if key not in config]
    except (OSError, ValueError, TypeError) as error:
        raise _unusable(path, str(error)) from error
    if missing:
        raise _unusable(path, f"it has no {missing[0]}")
    return dict(config)


def _unusable(path: Path, why: str) -> Incompatible:
    return Incompatible(
        f"{path} can't be used: {why}; give the folder of a Hugging Face model",
        reason="MODEL_UNUSABLE",
        metadata={"file": str(path), "why": why},
    )
