"""The forward pass against transformers, however the tokens are cut into steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from native_variants import kernels_of_the_path as kernels_of_the_path
from stepper import Stepper
from transformers import AutoModelForCausalLM

from core.errors import Incompatible
from core.request import SamplingParams
from core.step import StepPlan, StepResult
from engine.kv_pool import KVPool
from engine.runner import LoadedModel, ModelRunner, load_runner
from native import library

BLOCK_SIZE = 4

pytestmark = pytest.mark.usefixtures("kernels_of_the_path")


@pytest.fixture
def model(tiny_llama: Path) -> Iterator[LoadedModel]:
    """A fresh pool each time, full of NaN, as memory that others used before may be."""
    loaded = load(tiny_llama, "float32")
    yield loaded
    loaded.pool.close()


def load(folder: Path, dtype: str) -> LoadedModel:
    loaded = load_runner(folder, dtype=dtype, device="cpu", num_blocks=120, block_size=BLOCK_SIZE)
    loaded.pool.tensor.fill_(torch.nan)
    return loaded


def random_prompt(length: int) -> list[int]:
    return [int(t) for t in np.random.default_rng(length).integers(0, 150, length)]


def transformers_logits(folder: Path, prompt: list[int]) -> torch.Tensor:
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits: torch.Tensor = reference(torch.tensor([prompt])).logits[0]
    return logits


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 7, 16, 60, 61])
def test_logits_do_not_depend_on_the_chunks(
    model: LoadedModel, tiny_llama: Path, chunk: int
) -> None:
    prompt = random_prompt(61)
    expected = transformers_logits(tiny_llama, prompt)
    stepper = Stepper(model, chunk)
    text = stepper.add(prompt)
    while text.computed < len(prompt):
        logits = stepper.logits(text)
        torch.testing.assert_close(logits, expected[text.computed - 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_compiled_kernels_give_the_same_bits_however_a_text_is_cut(
    kernels_of_the_path: str, tiny_llama: Path, dtype: str
) -> None:
    if kernels_of_the_path == "torch":
        pytest.skip("torch's kernels choose an order of summation by the shape")
    if not library.is_available():
        pytest.skip(f"no compiled kernels: {library.choice().reason}")
    if dtype == "bfloat16" and library.has_matrix_tiles():
        pytest.skip("this CPU's matrix units take over from some rows on")
    prompt, last = random_prompt(150), []
    for chunk in (1, 7, 64, 150):
        loaded = load(tiny_llama, dtype)
        stepper = Stepper(loaded, chunk)
        text = stepper.add(prompt)
        while text.computed < len(prompt):
            logits = stepper.logits(text)
        last.append(logits)
        loaded.pool.close()
    assert all(torch.equal(logits, last[0]) for logits in last)


def test_steps_that_mix_chunks_and_decodes_answer_as_each_prompt_alone(
    model: LoadedModel, tiny_llama: Path
) -> None:
    prompts = [random_prompt(n) for n in (1, 3, 4, 5, 17, 40, 64)]
    params = SamplingParams(max_tokens=9)
    together = Stepper(model, chunk=7).generate(prompts, params)
    for prompt, answer in zip(prompts, together, strict=True):
        with_answer = transformers_logits(tiny_llama, prompt + answer)[len(prompt) - 1 : -1]
        assert answer == with_answer.argmax(dim=-1).tolist()


def test_seeded_answers_do_not_depend_on_the_company(model: LoadedModel) -> None:
    params = SamplingParams(max_tokens=8, temperature=0.9, top_p=0.95, seed=11)
    prompts = [random_prompt(n) for n in (20, 6, 9)]
    together = Stepper(model, chunk=5).generate(prompts, params)
    model.pool.tensor.fill_(torch.nan)
    alone = Stepper(model, chunk=64).generate(prompts[:1], params)
    assert together[:1] == alone
    assert Stepper(model).generate([prompts[1]], SamplingParams(8, 0.9, seed=12)) != together[1:2]


def test_a_chunk_in_the_middle_of_a_prompt_samples_nothing(model: LoadedModel) -> None:
    stepper = Stepper(model, chunk=8)
    part = stepper.slice(stepper.add(random_prompt(20)))
    assert model.runner.execute(StepPlan((part,))) == StepResult()


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.15), ("float16", 0.02)])
def test_lower_precisions_stay_close(tiny_llama: Path, dtype: str, tolerance: float) -> None:
    prompt = random_prompt(50)
    expected = transformers_logits(tiny_llama, prompt)[-1]
    loaded = load(tiny_llama, dtype)
    stepper = Stepper(loaded, chunk=32)
    text = stepper.add(prompt)
    stepper.logits(text)
    ours = stepper.logits(text)
    loaded.pool.close()
    assert float((ours - expected).abs().max() / expected.abs().max()) < tolerance


def test_a_pool_of_another_dtype_is_refused(model: LoadedModel) -> None:
    pool = KVPool.create(model.config.kv_layout(BLOCK_SIZE, "bfloat16"), 4, "cpu")
    with pytest.raises(Incompatible, match="the KV pool is bfloat16"):
        ModelRunner(model.runner.model, pool)
    pool.close()
