"""Decode steps as real CUDA graphs: the same tokens as eagerly, and one wait for the GPU a step."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from stepper import Stepper
from transformers import LlamaConfig, LlamaForCausalLM

from core.request import SamplingParams
from core.step import StepPlan, StepResult
from engine.runner import LoadedModel, load_runner

pytestmark = pytest.mark.gpu

GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
needs_one = pytest.mark.skipif(GPUS < 1, reason=f"needs 1 GPU, this machine has {GPUS}")

VOCAB, NUM_BLOCKS, BLOCK_SIZE = 500, 400, 16
GREEDY = SamplingParams(20)
PENALIZED = SamplingParams(
    20,
    repetition_penalty=1.6,
    presence_penalty=0.8,
    frequency_penalty=0.9,
    logit_bias=((5, 4.0), (7, -3.0)),
    logprobs=2,
)
both_kinds = pytest.mark.parametrize("params", [GREEDY, PENALIZED], ids=["greedy", "penalized"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights."""
    made = tmp_path_factory.mktemp("llama")
    torch.manual_seed(5)
    config = LlamaConfig(
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=512,
        vocab_size=VOCAB,
        max_position_embeddings=2048,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(made)
    return made


def load(folder: Path, dtype: str, max_decodes: int) -> LoadedModel:
    model = load_runner(
        folder,
        dtype=dtype,
        device="cuda",
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        max_decodes=max_decodes,
    )
    # Capturing wrote nothing; what nobody wrote must not be read.
    assert not model.pool.tensor.any()
    model.pool.tensor.fill_(torch.nan)
    return model


def prompts(count: int) -> list[list[int]]:
    noise = np.random.default_rng(count)
    return [[int(t) for t in noise.integers(0, VOCAB, n)] for n in range(3, 3 + 7 * count, 7)]


@contextmanager
def waits() -> Iterator[list[str]]:
    """A list that holds, at the end, a message for each time that torch made the host wait."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield messages
        finally:
            torch.cuda.set_sync_debug_mode("default")
    messages += [str(one.message) for one in caught if "synchronizing" in str(one.message)]


@needs_one
@both_kinds
@pytest.mark.parametrize("count", [1, 3, 8, 13])
def test_graphs_give_the_tokens_of_eager_steps(
    folder: Path, count: int, params: SamplingParams
) -> None:
    eager, graphs = (load(folder, "float32", max_decodes) for max_decodes in (0, 16))
    expected = Stepper(eager).generate(prompts(count), params)
    assert Stepper(graphs).generate(prompts(count), params) == expected


@needs_one
@both_kinds
@pytest.mark.parametrize("max_decodes", [0, 16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_host_waits_for_the_gpu_once_a_step(
    folder: Path, dtype: str, max_decodes: int, params: SamplingParams
) -> None:
    """Prompts in chunks, where no token is drawn; prompts beside decodes; decodes alone."""
    stepper = WatchedStepper(load(folder, dtype, max_decodes), chunk=16)
    stepper.generate(prompts(6), params)
    assert len(stepper.waits) > params.max_tokens
    assert set(stepper.waits) == {1}


class WatchedStepper(Stepper):
    """``waits``: for each step, how often torch made the host wait for the GPU."""

    def __init__(self, model: LoadedModel, chunk: int) -> None:
        super().__init__(model, chunk)
        self.waits: list[int] = []

    def execute(self, plan: StepPlan) -> StepResult:
        with waits() as caught:
            result = super().execute(plan)
        self.waits.append(len(caught))
        return result


@needs_one
def test_what_is_counted_is_what_makes_the_host_wait() -> None:
    """Otherwise the test above could not fail."""
    x = torch.ones(3, device="cuda")
    for wait in (x.tolist, lambda: x[x > 0], torch.cuda.current_stream().synchronize):
        with waits() as caught:
            wait()
        assert len(caught) == 1
