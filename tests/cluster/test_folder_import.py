"""A Hugging Face folder is copied whole, or refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_folders import make_model_folder

from cluster.model_folder import read_model_folder
from cluster.model_import import import_model
from core.errors import AlreadyExists, Incompatible
from engine.model_hash import model_hash


def run_import(source: Path, destination: Path) -> list[str]:
    said: list[str] = []
    import_model(str(source), destination, said.append)
    return said


def test_the_copy_is_the_same_model_without_what_serving_does_not_read(tmp_path: Path) -> None:
    source, copy = make_model_folder(tmp_path / "source"), tmp_path / "copy"
    (source / "pytorch_model.bin").write_bytes(b"not needed")
    assert run_import(source, copy)[-1] == f"{copy} is complete"
    assert model_hash(copy) == model_hash(source)
    assert read_model_folder(copy).num_layers == read_model_folder(source).num_layers
    assert not (copy / "pytorch_model.bin").exists()
    assert run_import(source, copy) == [f"{copy} holds this model already: kept"]


def test_links_into_a_cache_become_files(tmp_path: Path) -> None:
    blobs, snapshot = make_model_folder(tmp_path / "blobs"), tmp_path / "snapshot"
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    run_import(snapshot, tmp_path / "copy")
    assert not any(path.is_symlink() for path in (tmp_path / "copy").iterdir())
    assert model_hash(tmp_path / "copy") == model_hash(blobs)


def test_a_changed_source_does_not_overwrite_an_earlier_import(tmp_path: Path) -> None:
    source, copy = make_model_folder(tmp_path / "source"), tmp_path / "copy"
    run_import(source, copy)
    (source / "tokenizer.json").write_text('{"other": 1}')
    with pytest.raises(AlreadyExists, match="something else than an import of source"):
        run_import(source, copy)


def test_what_can_not_be_served_is_not_copied(tmp_path: Path) -> None:
    source = make_model_folder(tmp_path / "source", model_type="mixtral")
    with pytest.raises(Incompatible, match="model_type = 'mixtral'"):
        run_import(source, tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
