"""The ranks of a replica hold the whole model together, and no more than they need."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import MODELS, make_model

from core.errors import Incompatible, InvalidField
from core.kv_layout import KVLayout
from core.shards import ParallelShape, kv_shards
from engine.model_config import ModelConfig, read_model_config
from engine.model_shard import check_split, model_shard
from engine.weight_shapes import EMBEDDING, HEAD, expected_shapes
from engine.weights import load_weights


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("llama"), "llama")


def valid_shapes(config: ModelConfig) -> list[ParallelShape]:
    return [
        ParallelShape(tensor, pipeline)
        for tensor in range(1, config.num_heads + 1)
        if config.num_heads % tensor == 0
        and (config.num_kv_heads % tensor == 0 or tensor % config.num_kv_heads == 0)
        for pipeline in range(1, config.num_layers + 1)
    ]


def test_the_kv_of_a_rank_is_what_its_heads_read(folder: Path) -> None:
    config = read_model_config(folder)
    layout = KVLayout(config.num_layers, config.num_kv_heads, config.head_dim, 4, "float32")
    for shape in valid_shapes(config):
        shards = [model_shard(config, shape, rank) for rank in range(shape.num_ranks)]
        assert tuple(shard.kv_region for shard in shards) == kv_shards(layout, shape)
        assert sum(shard.samples for shard in shards) == 1
        assert shards[(shape.pipeline - 1) * shape.tensor].samples


def test_all_ranks_together_hold_every_number_once(folder: Path) -> None:
    """Except norms, replicated KV heads and, on the last stage, a tied head."""
    config = read_model_config(folder)
    stored = load_file(folder / "model.safetensors")
    for shape in valid_shapes(config):
        held = [
            load_weights(folder, config, torch.float32, "cpu", shape, rank)
            for rank in range(shape.num_ranks)
        ]
        copies = max(1, shape.tensor // config.num_kv_heads)
        for name, size in expected_shapes(config).items():
            count = sum(weights[name].numel() for weights in held if name in weights)
            total = sum(float(weights[name].double().sum()) for weights in held if name in weights)
            times = 1
            if "norm" in name:
                times = shape.tensor
            elif "k_proj" in name or "v_proj" in name:
                times = copies
            elif name == EMBEDDING and config.tie_word_embeddings and shape.pipeline > 1:
                times = 2
            assert count == times * prod(size), (str(shape), name)
            assert total == pytest.approx(times * float(stored[name].double().sum()), abs=1e-3)


def test_a_stage_without_embedding_or_head_holds_neither(llama: Path) -> None:
    config = read_model_config(llama)
    shape = ParallelShape(2, 3)
    held = [load_weights(llama, config, torch.float32, "cpu", shape, i) for i in range(6)]
    assert [EMBEDDING in weights for weights in held] == [True] * 2 + [False] * 4
    assert [HEAD in weights for weights in held] == [False] * 4 + [True] * 2
    assert held[5][HEAD].shape == (75, 48)


def test_a_stored_tied_head_is_compared_where_it_matters(llama: Path, tmp_path: Path) -> None:
    """The folder's head differs; a rank of the middle stage reads neither, others refuse it."""
    config = replace(read_model_config(llama), tie_word_embeddings=True)
    shape = ParallelShape(2, 3)
    for rank in (0, 1, 4, 5):
        with pytest.raises(Incompatible, match=r"lm_head\.weight differs"):
            load_weights(llama, config, torch.float32, "cpu", shape, rank)
    assert HEAD not in load_weights(llama, config, torch.float32, "cpu", shape, 2)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (ParallelShape(4), r"decode\.tensor_parallel_size = 4: .* 6 heads and 2 KV .* 1, 2, 6$"),
        (ParallelShape(3), r"decode\.tensor_parallel_size = 3: .* 1, 2, 6$"),
        (ParallelShape(12), r"decode\.tensor_parallel_size = 12: .* 1, 2, 6$"),
        (ParallelShape(0), r"decode\.tensor_parallel_size = 0: .* 1, 2, 6$"),
        (ParallelShape(1, 4), r"decode\.pipeline_parallel_size = 4: .* 3 layers .* 1 to 3 stages"),
    ],
)
def test_a_shape_that_does_not_fit_names_those_that_do(
    llama: Path, shape: ParallelShape, message: str
) -> None:
    with pytest.raises(InvalidField, match=message) as error:
        check_split(read_model_config(llama), shape, "decode.")
    assert error.value.reason == "CANNOT_SPLIT"


def test_a_rank_without_columns_of_the_mlp_is_refused(llama: Path) -> None:
    config = replace(read_model_config(llama), intermediate_size=5)
    check_split(config, ParallelShape(2))
    with pytest.raises(InvalidField, match=r"tensor_parallel_size = 6: .* into 5 at most"):
        check_split(config, ParallelShape(6))
