"""What the router reads from a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import Incompatible, InvalidField
from router.intake.model_info import ModelInfo

CONFIG = {"vocab_size": 300, "max_position_embeddings": 128, "eos_token_id": 1}


def folder_with(path: Path, **changes: Any) -> Path:
    (path / "config.json").write_text(json.dumps(CONFIG | changes))
    return path


def test_the_folder_says_what_the_model_takes(tmp_path: Path) -> None:
    expected = ModelInfo(tmp_path.name, vocab_size=300, max_model_len=128, eos_token_ids=(1,))
    assert ModelInfo.load(folder_with(tmp_path)) == expected


@pytest.mark.parametrize("length", [64, 512])
def test_a_length_that_the_cluster_planned_counts(tmp_path: Path, length: int) -> None:
    folder = folder_with(tmp_path, max_position_embeddings=None)
    assert ModelInfo.load(folder, "name", length).max_model_len == length


def test_what_can_not_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(Incompatible, match="vocab_size"):
        ModelInfo.load(folder_with(tmp_path, vocab_size=0))
    with pytest.raises(Incompatible, match="max_position_embeddings"):
        ModelInfo.load(folder_with(tmp_path, max_position_embeddings="long"))
    with pytest.raises(InvalidField, match="max_model_len"):
        ModelInfo.load(folder_with(tmp_path), max_model_len=0)
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(Incompatible, match="can't be used"):
        ModelInfo.load(tmp_path)


def test_another_config_is_another_model(tmp_path: Path) -> None:
    before = ModelInfo.load(folder_with(tmp_path)).digest
    assert ModelInfo.load(folder_with(tmp_path)).digest == before
    assert ModelInfo.load(folder_with(tmp_path, max_position_embeddings=64)).digest != before
