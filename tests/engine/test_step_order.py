"""In which order a step computes, draws, does the host's own work and waits for its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from stepper import Stepper

from core.request import SamplingParams
from core.step import StepPlan
from engine import sampler
from engine.runner import LoadedModel, load_runner
from kernels.dispatch import forced

BLOCK_SIZE, NUM_BLOCKS = 4, 120
PROMPT = [int(t) for t in np.random.default_rng(7).integers(0, 150, 7)]
PLAIN = SamplingParams(1, temperature=1.0, seed=3)
PENALIZED = SamplingParams(
    1,
    temperature=1.0,
    seed=3,
    repetition_penalty=1.6,
    presence_penalty=0.8,
    frequency_penalty=0.9,
    logit_bias=((5, 2.0), (7, -3.0)),
    logprobs=2,
)


@pytest.fixture
def model(tiny_llama: Path) -> Iterator[LoadedModel]:
    with forced("torch"):
        loaded = load_runner(
            tiny_llama, dtype="float32", device="cpu", num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE
        )
        yield loaded
        loaded.pool.close()


class Order:
    """Notes what happens, with a model that says that it is on a GPU."""

    def __init__(self, model: LoadedModel, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        self.runner = model.runner
        forward, sample = model.runner.model.forward, sampler.sample_tokens
        patch.setattr(model.runner.model, "forward", self._noted("forward", forward))
        patch.setattr(model.runner.model, "device", torch.device("cuda"))
        patch.setattr(model.runner, "_on_gpu", True)
        patch.setattr(torch.cuda, "current_stream", lambda device: self)

        def sample_noted(*arguments: object) -> WatchedTokens:
            self.seen.append("sample")
            return WatchedTokens(sample(*arguments), self.seen)

        patch.setattr(sampler, "sample_tokens", sample_noted)

    def synchronize(self) -> None:
        self.seen.append("wait")

    def meanwhile(self) -> None:
        self.seen.append("meanwhile")

    def _noted(self, name: str, call):
        def noted(*arguments: object) -> object:
            self.seen.append(name)
            return call(*arguments)

        return noted


class WatchedTokens:
    """Tokens on a GPU: reading them waits."""

    def __init__(self, tokens: torch.Tensor, seen: list[str]) -> None:
        self._tokens = tokens
        self._seen = seen

    def tolist(self) -> list[int]:
        if len(self._tokens):
            self._seen.append("wait")
        return self._tokens.tolist()


@pytest.mark.parametrize("params", [PLAIN, PENALIZED], ids=["plain", "penalized"])
def test_on_a_gpu_the_host_goes_on_when_the_whole_step_is_enqueued(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch, params: SamplingParams
) -> None:
    stepper = Stepper(model)
    plan = StepPlan((stepper.slice(stepper.add(PROMPT, params)),))
    order = Order(model, monkeypatch)
    order.runner.execute(plan, order.meanwhile)
    assert order.seen == ["forward", "sample", "meanwhile", "wait"]


def test_a_step_without_a_draw_is_waited_for_as_well(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = Stepper(model, chunk=4)
    plan = StepPlan((stepper.slice(stepper.add(PROMPT)),))
    order = Order(model, monkeypatch)
    order.runner.execute(plan, order.meanwhile)
    assert order.seen == ["forward", "sample", "meanwhile", "wait"]


def test_on_a_cpu_the_host_does_its_own_work_first(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = Stepper(model)
    plan = StepPlan((stepper.slice(stepper.add(PROMPT)),))
    order = Order(model, monkeypatch)
    monkeypatch.setattr(model.runner, "_on_gpu", False)
    order.runner.execute(plan, order.meanwhile)
    assert order.seen == ["meanwhile", "forward", "sample", "wait"]
