"""A replica of several ranks computes what one rank does, however the model is split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from _pytest.mark import ParameterSet
from replica import Replica
from stepper import Stepper, Text
from tiny_models import MODELS, OF_EACH_KIND, make_model

from core.request import SamplingParams
from core.shards import ParallelShape
from engine.runner import LoadedModel, load_runner

BLOCK_SIZE = 4
NUM_BLOCKS = 120
LENGTH = 70

# 80 columns of the MLP do not divide by 3 and 6, 150 tokens not by 4 and 8. Where there are more
# tensor ranks than KV heads, several ranks hold the same ones.
SHAPES_OF = dict.fromkeys(MODELS, ("2×1", "1×2")) | {
    "llama": ("2×1", "1×3", "2×2", "6×1", "6×3"),
    "llama with one KV head, tied": ("2×1", "3×1", "6×1", "3×2", "1×3"),
    "llama with as many KV heads": ("2×1", "3×1", "6×1", "3×3"),
    "llama with all biases": ("2×1", "2×3", "6×2"),
    "mistral with a window": ("2×1", "2×3"),
    "qwen2 with windows after the first layer": ("2×1", "1×2", "1×3", "6×3"),
    "qwen2 with yarn, tied": ("2×1", "1×2", "2×2"),
    "qwen3 with biases and listed windows": ("2×1", "1×3", "2×2", "6×1"),
    "qwen3 with 8 KV heads and 5 layers": ("2×1", "4×1", "8×1", "1×5", "4×2", "2×5"),
}


def shape_of(text: str) -> ParallelShape:
    return ParallelShape(*map(int, text.split("×")))


def case(name: str, shape: str) -> ParameterSet:
    few = shape == SHAPES_OF[name][0] and name in OF_EACH_KIND
    marks = [] if few else [pytest.mark.thorough]
    return pytest.param((name, shape), id=f"{name} {shape}", marks=marks)


CASES = [case(name, shape) for name, shapes in SHAPES_OF.items() for shape in shapes]


@dataclass(frozen=True)
class Pair:
    """The same model on one rank and on several; pools start full of NaN."""

    one: LoadedModel
    several: Replica

    def steppers(self, chunk: int) -> tuple[Stepper, Stepper]:
        self.one.pool.tensor.fill_(torch.nan)
        self.several.forget()
        return Stepper(self.one, chunk), Stepper(self.several, chunk)


MakeModel = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """Each model is made when it is first asked for."""
    return cache(lambda name: make_model(tmp_path_factory.mktemp("model"), name))


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, folder_of: MakeModel) -> Iterator[Pair]:
    name, shape = request.param
    size = {"num_blocks": NUM_BLOCKS, "block_size": BLOCK_SIZE}
    one = load_runner(folder_of(name), dtype="float32", device="cpu", **size)
    several = Replica(folder_of(name), shape_of(shape), **size)
    yield Pair(one, several)
    several.close()
    one.pool.close()


def random_tokens(length: int) -> list[int]:
    return [int(t) for t in np.random.default_rng(length).integers(0, 150, length)]


def assert_same(ours: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def assert_rest_is_equal(steppers: tuple[Stepper, Stepper], texts: tuple[Text, Text]) -> None:
    """Computes the rest of a text in chunks and compares the logits after each."""
    while texts[0].computed < len(texts[0].tokens):
        expected, ours = (s.logits(text) for s, text in zip(steppers, texts, strict=True))
        assert_same(ours, expected)


def assert_pools_are_slices(pair: Pair) -> None:
    """Each rank holds its part of the one rank's pool, unwritten cells included; ranks that hold
    the same part hold the same bits."""
    holders: dict[tuple[range, range], torch.Tensor] = {}
    for rank in pair.several.ranks:
        region = rank.runner.model.shard.kv_region
        layers = slice(region.layers.start, region.layers.stop)
        heads = slice(region.heads.start, region.heads.stop)
        expected = pair.one.pool.tensor[:, layers, :, heads]
        torch.testing.assert_close(rank.pool.tensor, expected, rtol=0, atol=3e-5, equal_nan=True)
        first = holders.setdefault((region.layers, region.heads), rank.pool.tensor)
        assert torch.equal(rank.pool.tensor.nan_to_num(7.0), first.nan_to_num(7.0))


def test_logits_and_kv_are_those_of_one_rank(pair: Pair) -> None:
    steppers = pair.steppers(chunk=11)
    first = random_tokens(LENGTH)
    owners = (steppers[0].add(first), steppers[1].add(first))
    assert_rest_is_equal(steppers, owners)
    assert_pools_are_slices(pair)

    cached_blocks = 9
    cached = cached_blocks * BLOCK_SIZE
    second = first[:cached] + random_tokens(LENGTH - cached)
    texts = (steppers[0].add(second), steppers[1].add(second))
    for text, owner in zip(texts, owners, strict=True):
        text.blocks, text.computed = owner.blocks[:cached_blocks], cached
    assert_rest_is_equal(steppers, texts)


@pytest.mark.thorough
def test_steps_that_mix_chunks_and_single_tokens_answer_alike(pair: Pair) -> None:
    prompts = [random_tokens(n) for n in (1, 3, 17, 40)]
    greedy = SamplingParams(max_tokens=7)
    expected, ours = (s.generate(prompts, greedy) for s in pair.steppers(chunk=7))
    assert ours == expected
    assert_pools_are_slices(pair)


def test_seeded_answers_and_forks_are_those_of_one_rank(folder_of: MakeModel) -> None:
    """Forks copy blocks on every rank; the draws are the same because they count positions."""
    size = {"num_blocks": NUM_BLOCKS, "block_size": BLOCK_SIZE}
    one = load_runner(folder_of("llama"), dtype="float32", device="cpu", **size)
    several = Replica(folder_of("llama"), ParallelShape(2, 3), **size)
    params = SamplingParams(9, temperature=1.0, seed=3, n=4, frequency_penalty=0.5, logprobs=2)
    answers = []
    for stepper in Pair(one, several).steppers(chunk=64):
        forks = stepper.fork(random_tokens(7), params)
        stepper.run()
        answers.append([fork.answer for fork in forks])
    several.close()
    one.pool.close()
    assert answers[0] == answers[1]
    assert len({tuple(answer) for answer in answers[1]}) == 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precisions_stay_close(folder_of: MakeModel, dtype: str) -> None:
    """A split rounds sums elsewhere; both are as near to float32 as the dtype allows."""
    size = {"num_blocks": NUM_BLOCKS, "block_size": BLOCK_SIZE}
    exact = load_runner(folder_of("llama"), dtype="float32", device="cpu", **size)
    several = Replica(folder_of("llama"), ParallelShape(2, 2), dtype=dtype, **size)
    logits = [
        stepper.logits(stepper.add(random_tokens(40)))
        for stepper in (Stepper(exact), Stepper(several))
    ]
    several.close()
    exact.pool.close()
    tolerance = {"bfloat16": 0.15, "float16": 0.02}[dtype]
    assert float((logits[1] - logits[0]).abs().max() / logits[0].abs().max()) < tolerance
