"""Config files: read, merged with flags, refused in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.spec_file import load_spec
from core.errors import InvalidField


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return path


def test_without_a_file_there_are_defaults_and_flags() -> None:
    assert load_spec(None, {"pools.decode.replicas": 3}).pools.decode.replicas == 3


def test_a_file_is_read_and_flags_win(tmp_path: Path) -> None:
    path = write(tmp_path, "model: llama\npools:\n  prefill: {replicas: 2}\nkv: {memory: 1GiB}\n")
    spec = load_spec(path, {"pools.prefill.replicas": 0})
    assert (spec.model, spec.kv.memory, spec.pools.prefill.replicas) == ("llama", 2**30, 0)


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load_spec(write(tmp_path, "# nothing yet\n")) == load_spec(None)


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [", "is not YAML"), ("- 1", "must hold settings"), ("pools: {prefil: {}}", "prefill")],
)
def test_a_bad_file_is_refused_in_plain_words(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidField, match=words):
        load_spec(write(tmp_path, text))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidField, match="can't be read"):
        load_spec(tmp_path / "nowhere.yaml")
