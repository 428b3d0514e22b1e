"""Whole steps: forks that share blocks, and a sequence whose numbers are broken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from stepper import Stepper

from core.request import SamplingParams
from engine.runner import LoadedModel, load_runner
from engine.sampler import NOT_FINITE

BLOCK_SIZE = 4


@pytest.fixture
def model(tiny_llama: Path) -> Iterator[LoadedModel]:
    loaded = load_runner(
        tiny_llama, dtype="float32", device="cpu", num_blocks=120, block_size=BLOCK_SIZE
    )
    loaded.pool.tensor.fill_(torch.nan)
    yield loaded
    loaded.pool.close()


def random_prompt(length: int) -> list[int]:
    return [int(t) for t in np.random.default_rng(length).integers(0, 150, length)]


@pytest.mark.parametrize("prompt_length", [1, 7, 8])
def test_n_answers_of_one_prefill_are_those_of_n_requests(
    model: LoadedModel, prompt_length: int
) -> None:
    params = SamplingParams(9, temperature=1.0, seed=3, n=4, frequency_penalty=0.5)
    prompt = random_prompt(prompt_length)
    together = Stepper(model)
    forks = together.fork(prompt, params)
    together.run()
    separate = Stepper(model)
    requests = [separate.add(prompt, params, index) for index in range(4)]
    separate.run()
    assert [fork.answer for fork in forks] == [request.answer for request in requests]
    assert len({tuple(fork.answer) for fork in forks}) == 4


def test_a_sequence_with_broken_kv_fails_alone(model: LoadedModel) -> None:
    params = SamplingParams(6, temperature=0.8, seed=1)
    prompts = [random_prompt(n) for n in (6, 9, 13)]
    healthy = Stepper(model).generate(prompts, params)
    stepper = Stepper(model)
    texts = [stepper.add(prompt, params) for prompt in prompts]
    while not all(text.answer for text in texts):
        stepper.step()
    model.pool.tensor[texts[1].blocks[0]] = torch.nan
    stepper.run()
    assert texts[1].failed == NOT_FINITE
    assert texts[1].answer == healthy[1][:1]
    assert [texts[0].answer, texts[2].answer] == [healthy[0], healthy[2]]
