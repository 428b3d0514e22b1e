"""Every family gives the logits of transformers, however the tokens are cut into steps."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from _pytest.mark import ParameterSet
from native_variants import kernels_of_the_path as kernels_of_the_path
from stepper import Stepper, Text
from tiny_models import MODELS, OF_EACH_KIND, make_model
from transformers import AutoModelForCausalLM

from engine.config_fields import read_json
from engine.decoder import Decoder
from engine.kv_pool import KVPool
from engine.model_config import ModelConfig, read_model_config
from engine.model_hash import model_hash
from engine.runner import LoadedModel, ModelRunner, load_runner
from engine.weights import load_weights

BLOCK_SIZE = 4
# Beyond every window and beyond the original context of every scaled rope (32).
LENGTH = 90

pytestmark = pytest.mark.usefixtures("kernels_of_the_path")


@dataclass(frozen=True)
class Oracle:
    """A model folder and transformers' logits for prompts on it."""

    folder: Path
    model: torch.nn.Module

    def logits(self, tokens: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = self.model(torch.tensor([tokens])).logits[0]
        return logits


def thorough(value: int | str) -> ParameterSet:
    return pytest.param(value, marks=pytest.mark.thorough)


@pytest.fixture(
    scope="module",
    params=[name if name in OF_EACH_KIND else thorough(name) for name in MODELS],
)
def oracle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    folder = make_model(tmp_path_factory.mktemp("model"), request.param)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return Oracle(folder, model.eval())


@pytest.fixture
def model(oracle: Oracle) -> Iterator[LoadedModel]:
    """A pool full of NaN: nothing may be read that was not written."""
    loaded = load_runner(
        oracle.folder, dtype="float32", device="cpu", num_blocks=150, block_size=BLOCK_SIZE
    )
    loaded.pool.tensor.fill_(torch.nan)
    yield loaded
    loaded.pool.close()


def random_tokens(length: int) -> list[int]:
    return [int(t) for t in np.random.default_rng(length).integers(0, 150, length)]


def assert_same(ours: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def assert_rest_as_expected(stepper: Stepper, text: Text, expected: torch.Tensor) -> None:
    """Computes the rest of a text in chunks and compares the logits after each."""
    while text.computed < len(text.tokens):
        logits = stepper.logits(text)
        assert_same(logits, expected[text.computed - 1])


@pytest.mark.parametrize(
    "chunk", [thorough(1), thorough(4), 7, 33, LENGTH], ids=lambda n: f"chunks of {n}"
)
def test_logits_in_chunks_token_by_token_and_in_one_piece(
    oracle: Oracle, model: LoadedModel, chunk: int
) -> None:
    tokens = random_tokens(LENGTH)
    stepper = Stepper(model, chunk)
    assert_rest_as_expected(stepper, stepper.add(tokens), oracle.logits(tokens))


@pytest.mark.parametrize("cached_blocks", [thorough(1), 9, thorough(20)])
def test_logits_on_a_cached_prefix(oracle: Oracle, model: LoadedModel, cached_blocks: int) -> None:
    first = random_tokens(LENGTH)
    cached = cached_blocks * BLOCK_SIZE
    second = first[:cached] + random_tokens(LENGTH - cached)
    stepper = Stepper(model, chunk=11)
    owner, text = stepper.add(first), stepper.add(second)
    assert_rest_as_expected(stepper, owner, oracle.logits(first))
    text.blocks, text.computed = owner.blocks[:cached_blocks], cached
    assert_rest_as_expected(stepper, text, oracle.logits(second))


def test_logits_of_several_sequences_in_one_step(oracle: Oracle, model: LoadedModel) -> None:
    """Every step mixes single tokens of some with chunks of others."""
    stepper, random = Stepper(model), np.random.default_rng(3)
    whole = {text.id: text.tokens for text in map(stepper.add, map(random_tokens, (9, 30, 49, 90)))}
    expected = {i: oracle.logits(tokens) for i, tokens in whole.items()}
    while pending := [text for text in stepper.texts if text.computed < len(whole[text.id])]:
        for text in pending:
            text.tokens = whole[text.id][: text.computed + int(random.choice([1, 1, 6, 13]))]
        for text, logits in zip(pending, stepper.logits_together(pending), strict=True):
            assert_same(logits, expected[text.id][text.computed - 1])


def without(config: ModelConfig) -> dict[str, ModelConfig]:
    """The config with each feature that it has taken away."""
    rope = dataclasses.replace(config.rope, scaling=None)
    removed = {
        "window": dataclasses.replace(config, layer_windows=(None,) * config.num_layers),
        "a token of the window": dataclasses.replace(
            config, layer_windows=tuple(w and w + 1 for w in config.layer_windows)
        ),
        "rope scaling": dataclasses.replace(config, rope=rope),
        "QK norm": dataclasses.replace(config, qk_norm=False),
        "bias of Q, K, V": dataclasses.replace(config, qkv_bias=False),
        "bias of the output": dataclasses.replace(config, output_bias=False),
        "bias of the MLP": dataclasses.replace(config, mlp_bias=False),
    }
    return {name: changed for name, changed in removed.items() if changed != config}


def test_the_comparison_sees_every_feature(oracle: Oracle) -> None:
    config = read_model_config(oracle.folder)
    weights = load_weights(oracle.folder, config, torch.float32, "cpu")
    tokens = random_tokens(LENGTH)
    expected = oracle.logits(tokens)[-1]
    for name, changed in without(config).items():
        pool = KVPool.create(config.kv_layout(BLOCK_SIZE, "float32"), 30, "cpu")
        runner = ModelRunner(Decoder(changed, weights), pool)
        stepper = Stepper(LoadedModel(runner, pool, changed))
        logits = stepper.logits(stepper.add(tokens))
        pool.close()
        assert float((logits - expected).abs().max()) > 1e-2, name


def as_transformers_4(folder: Path) -> None:
    """Rewrites config.json with the names that older folders use."""
    config = dict(read_json(folder / "config.json"))
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    config["rope_scaling"] = None if rope["type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))


NAMES = [name for name in MODELS if "listed" not in name]


@pytest.mark.parametrize("name", NAMES)
def test_folders_of_transformers_4_say_the_same(tmp_path: Path, name: str) -> None:
    folder = make_model(tmp_path, name)
    config = read_model_config(folder)
    as_transformers_4(folder)
    assert "rope_parameters" not in read_json(folder / "config.json")
    assert read_model_config(folder) == config


def test_what_changes_the_kv_changes_the_hash(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "mistral with a window")
    raw = dict(read_json(folder / "config.json"))
    hashes = {model_hash(folder)}
    yarn = {"type": "yarn", "factor": 2.0}
    for change in ({"sliding_window": 14}, {"sliding_window": None}, {"rope_scaling": yarn}):
        base = raw if "rope_scaling" not in change else raw | {"rope_parameters": None}
        (folder / "config.json").write_text(json.dumps(base | change))
        hashes.add(model_hash(folder))
    assert len(hashes) == 4
