"""Weights are read only if every one is there, in its shape, from safetensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_model

from core.errors import Incompatible, InvalidField, NotFound
from engine.model_config import read_model_config
from engine.weights import load_weights

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_llama, tmp_path / "model")


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def load(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return load_weights(folder, read_model_config(folder), dtype, "cpu")


def shard(folder: Path) -> None:
    """Splits the single file in two with an index, as large models come."""
    tensors = tensors_of(folder)
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{i}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def test_one_file_and_shards_give_the_same_weights(folder: Path) -> None:
    single = load(folder)
    shard(folder)
    sharded = load(folder)
    assert single.keys() == sharded.keys()
    assert all(torch.equal(single[name], sharded[name]) for name in single)


def test_weights_are_converted(folder: Path) -> None:
    assert {weight.dtype for weight in load(folder, torch.bfloat16).values()} == {torch.bfloat16}


def test_a_missing_shard_is_named(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(NotFound, match=r"model-00002-of-00002\.safetensors"):
        load(folder)


def test_an_index_can_not_point_outside(folder: Path) -> None:
    shard(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {Q_PROJ: "../other.safetensors"}}))
    with pytest.raises(InvalidField, match="weight_map"):
        load(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    tensors = tensors_of(folder)
    del tensors[Q_PROJ]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(Incompatible, match=Q_PROJ):
        load(folder)


def test_a_wrong_shape_is_named_with_both_shapes(folder: Path) -> None:
    wrong = torch.zeros(47, 48)
    save_file(tensors_of(folder) | {Q_PROJ: wrong}, folder / "model.safetensors")
    with pytest.raises(Incompatible, match=rf"{Q_PROJ} has shape \(47, 48\).*\(48, 48\)"):
        load(folder)


def test_quantized_weights_are_refused(folder: Path) -> None:
    quantized = tensors_of(folder)[Q_PROJ].to(torch.int8)
    save_file(tensors_of(folder) | {Q_PROJ: quantized}, folder / "model.safetensors")
    with pytest.raises(Incompatible, match=f"{Q_PROJ} is stored as I8"):
        load(folder)


def test_a_bias_would_change_the_result_and_is_refused(folder: Path) -> None:
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.zeros(48)}
    save_file(tensors_of(folder) | bias, folder / "model.safetensors")
    with pytest.raises(Incompatible, match=r"q_proj\.bias"):
        load(folder)


def test_a_tensor_in_two_shards_is_refused(folder: Path) -> None:
    tensors = tensors_of(folder)
    shard(folder)
    both = {Q_PROJ: tensors[Q_PROJ]}
    for file in folder.glob("*.safetensors"):
        save_file(load_file(file) | both, file)
    with pytest.raises(Incompatible, match=rf"{Q_PROJ} is in .*00001.* and in .*00002"):
        load(folder)


def tie(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))


def test_a_tied_head_may_be_stored_if_it_is_the_embedding(folder: Path) -> None:
    tie(folder)
    with pytest.raises(Incompatible, match=r"lm_head\.weight differs"):
        load(folder)
    tensors = tensors_of(folder)
    same = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(tensors | same, folder / "model.safetensors")
    assert "lm_head.weight" not in load(folder)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("qwen2", "self_attn.q_proj.bias"),
        ("qwen3", "self_attn.k_norm.weight"),
        ("llama with all biases", "self_attn.o_proj.bias"),
        ("llama with all biases", "mlp.down_proj.bias"),
    ],
)
def test_biases_and_norms_of_a_family_must_be_there(
    tmp_path: Path, name: str, missing: str
) -> None:
    folder = make_model(tmp_path, name)
    tensors = tensors_of(folder)
    del tensors[f"model.layers.2.{missing}"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(Incompatible, match=rf"layers\.2\.{missing}"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("qwen2", "self_attn.o_proj.bias"),
        ("qwen2", "self_attn.q_norm.weight"),
        ("mistral without a window", "self_attn.q_proj.bias"),
        ("qwen3", "mlp.up_proj.bias"),
        ("llama", "input_layernorm.bias"),
    ],
)
def test_tensors_that_a_family_would_ignore_are_refused(
    tmp_path: Path, name: str, extra: str
) -> None:
    folder = make_model(tmp_path, name)
    tensor = {f"model.layers.0.{extra}": torch.zeros(48)}
    save_file(tensors_of(folder) | tensor, folder / "model.safetensors")
    with pytest.raises(Incompatible, match=rf"{extra} is not part of a"):
        load(folder)


def test_old_checkpoints_carry_rope_frequencies_that_do_not_matter(folder: Path) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    save_file(tensors_of(folder) | extra, folder / "model.safetensors")
    assert not any("inv_freq" in name for name in load(folder))


def test_pickles_are_never_loaded(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(NotFound, match=r"only pytorch_model\.bin.*convert it to safetensors"):
        load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(NotFound, match="nor an index of shards"):
        load(folder)


def test_a_file_cut_short_is_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InvalidField, match=r"model\.safetensors.*copy it again"):
        load(folder)
