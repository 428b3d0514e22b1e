"""The engine's greedy float32 tokens on the real model equal those of transformers, on one rank and
on several."""

from __future__ import annotations

from pathlib import Path

import pytest
from native_variants import kernels_of_the_path as kernels_of_the_path
from replica import Replica
from stepper import Stepper
from tokenizers import Tokenizer

from core.request import SamplingParams
from core.shards import ParallelShape
from engine.runner import load_runner
from oracle import Oracle, assert_same_tokens

pytestmark = [pytest.mark.oracle, pytest.mark.timeout(600)]

ANSWER_TOKENS = 24
PARAGRAPH = (
    "The harbour of the old town lies between two hills. In 1742 a fire destroyed 318 houses, and "
    "the council ordered that every roof be covered with slate. Ships from Bergen brought timber, "
    "fish and news; they left with salt, wool and letters. "
)
PROMPTS = (
    "Once upon a time",
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "1, 2, 3, 5, 8, 13,",
    "Die Hauptstadt von Österreich ist",
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    PARAGRAPH * 4 + "In short,",
    PARAGRAPH * 28 + "The town's most important export was",
)


@pytest.mark.usefixtures("kernels_of_the_path")
def test_eight_prompts_together_in_chunks_of_256(smollm2: Path, oracle: Oracle) -> None:
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    prompts = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    assert max(len(prompt) for prompt in prompts) > 1500
    model = load_runner(smollm2, dtype="float32", device="cpu", num_blocks=256, block_size=16)
    model.pool.tensor.fill_(float("nan"))
    answers = Stepper(model, chunk=256).generate(prompts, SamplingParams(ANSWER_TOKENS))
    model.pool.close()

    near_ties = sum(
        assert_same_tokens(ours, oracle.greedy(prompt, ANSWER_TOKENS, ours))
        for ours, prompt in zip(answers, prompts, strict=True)
    )
    print(f"{len(prompts)} prompts, {near_ties} near ties of the oracle")


@pytest.mark.parametrize(
    "shape", [ParallelShape(3, 1), ParallelShape(3, 2), ParallelShape(1, 5)], ids=str
)
def test_several_ranks_answer_as_transformers(
    smollm2: Path, oracle: Oracle, shape: ParallelShape
) -> None:
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    prompts = [tokenizer.encode(prompt).ids for prompt in PROMPTS[:-1]]
    replica = Replica(smollm2, shape, num_blocks=64, block_size=16)
    replica.forget()
    answers = Stepper(replica, chunk=64).generate(prompts, SamplingParams(ANSWER_TOKENS))
    replica.close()
    for ours, prompt in zip(answers, prompts, strict=True):
        assert_same_tokens(ours, oracle.greedy(prompt, ANSWER_TOKENS, ours))
