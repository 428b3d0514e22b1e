"""On the real model, a seeded answer is the same alone, among 16 requests, and in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from stepper import Stepper
from tokenizers import Tokenizer

from core.request import SamplingParams
from engine.runner import LoadedModel, load_runner

pytestmark = [pytest.mark.oracle, pytest.mark.timeout(600)]

STORY = (
    "The harbour of the old town lies between two hills. In 1742 a fire destroyed 318 houses, and "
    "the council ordered that every roof be covered with slate. After that,"
)
PLAIN = SamplingParams(24, temperature=0.9, seed=41)
FULL = replace(
    PLAIN,
    top_p=0.95,
    top_k=200,
    min_p=0.001,
    repetition_penalty=1.1,
    presence_penalty=0.3,
    frequency_penalty=0.2,
    logit_bias=((28, -2.0), (30, 1.0)),
    logprobs=3,
)


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Iterator[LoadedModel]:
    loaded = load_runner(smollm2, dtype="float32", device="cpu", num_blocks=128, block_size=16)
    loaded.pool.tensor.fill_(float("nan"))
    yield loaded
    loaded.pool.close()


@pytest.fixture(scope="module")
def prompts(smollm2: Path) -> list[list[int]]:
    """Sixteen, all different, of different lengths."""
    ids = Tokenizer.from_file(str(smollm2 / "tokenizer.json")).encode(STORY).ids
    return [ids] + [ids[i : 2 * i + 3] for i in range(1, 16)]


def answer_alone(model: LoadedModel, prompt: list[int], params: SamplingParams) -> list[int]:
    return Stepper(model).generate([prompt], params)[0]


@pytest.mark.parametrize("params", [PLAIN, FULL], ids=["plain", "full"])
def test_the_same_seed_gives_the_same_tokens_in_any_company(
    model: LoadedModel, prompts: list[list[int]], params: SamplingParams
) -> None:
    alone = answer_alone(model, prompts[0], params)
    together = Stepper(model)
    others = [replace(params, seed=i, temperature=i % 3 / 2) for i in range(1, 16)]
    for prompt, other in zip(prompts[1:9], others, strict=False):
        together.add(prompt, other)
    middle = together.add(prompts[0], params)
    for prompt, other in zip(prompts[9:], others[8:], strict=True):
        together.add(prompt, other)
    together.run()
    assert len(together.texts) == 16
    assert middle.answer == alone
    assert Stepper(model, chunk=7).generate(prompts[:1], params) == [alone]
    assert answer_alone(model, prompts[0], replace(params, seed=42)) != alone
