"""What a decode step costs outside the model: the production scheduler and loop around the engine.

Runs `decode_worker.decoder.Decoder` in an `engine.loop.EngineLoop`, as a worker of one rank does,
and turns each step's tokens into text and into the message to a router. Does not cover: gRPC, and
the router.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from cluster.engine_bench.cases import OVERHEAD_BATCH, OVERHEAD_PROMPT, WARM_UP_STEPS
from cluster.engine_bench.results import StepOverhead
from core.errors import InternalError
from core.handoff import LeaseTimes
from core.outputs import TokenOutput
from core.request import AttemptKey, RequestKey, SamplingParams
from core.step import StepPlan, StepResult
from crossdock.v1 import worker_pb2 as pb
from decode_worker.decoder import Decoder, DecoderCommand, PrefillHere
from engine.decoder import Decoder as Model
from engine.local_executor import LocalExecutor
from engine.loop import EngineLoop
from engine.runner import LoadedModel
from text.tokenizer import Tokenizer
from worker.answers import Answers
from worker.pool import new_block_pool

_STOP_LIMIT_S = 60.0


@dataclass(slots=True)
class _StepTimes:
    """Seconds of one step's parts, the delivery of the outputs of the one before among them;
    ``submitted_at`` on the clock."""

    is_decode: bool = False
    plan_s: float = 0.0
    execute_s: float = 0.0
    forward_s: float = 0.0
    book_s: float = 0.0
    text_s: float = 0.0
    submitted_at: float = 0.0


@dataclass(slots=True)
class _Watch:
    """Times of all steps: one is under way at a time."""

    batch: int
    steps: list[_StepTimes] = field(default_factory=list)

    @property
    def current(self) -> _StepTimes:
        return self.steps[-1]


def measure_step_overhead(
    model: LoadedModel, folder: Path, steps: int, batch: int = OVERHEAD_BATCH
) -> StepOverhead:
    """``steps`` steps of ``batch`` greedy sequences. Raises ``InternalError`` if the engine
    fails."""
    watch = _Watch(batch)
    # One more than is counted: a step's period ends when the next one is submitted.
    params = SamplingParams(max_tokens=WARM_UP_STEPS + steps + 1, ignore_eos=True)
    with _forward_timed(model.runner.model, watch):
        _OneLoad(model, Tokenizer.load(folder), params, watch).run()
    return summarize_steps(watch.steps, batch)


class _OneLoad:
    """Some sequences from their arrival to their end. The loop's thread calls all but `run`."""

    def __init__(
        self,
        model: LoadedModel,
        tokenizer: Tokenizer,
        params: SamplingParams,
        watch: _Watch,
    ) -> None:
        self._model = model
        self._watch = watch
        self._params = params
        self._answers = Answers(tokenizer)
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._unfinished = watch.batch
        self._decoder = Decoder(
            new_block_pool(model),
            max_num_seqs=watch.batch,
            # All prompts in one step: from then on every step decodes the whole batch.
            max_num_batched_tokens=watch.batch * OVERHEAD_PROMPT,
            eos=frozenset(),
            times=LeaseTimes(),
            new_lease_id=lambda: 1,
        )
        self._loop = EngineLoop(
            LocalExecutor(self._execute),
            self,
            deliver=self._deliver,
            crashed=self._crashed,
            clock=time.monotonic,
        )

    def run(self) -> None:
        random = np.random.default_rng(0)
        for i in range(self._watch.batch):
            key = AttemptKey(RequestKey("bench", str(i)), 1)
            vocabulary = self._model.config.vocab_size
            prompt = random.integers(0, vocabulary, OVERHEAD_PROMPT, dtype=np.int32)
            self._answers.begin(key, self._params)
            self._decoder.handle(PrefillHere(key, prompt, self._params, salt=0), time.monotonic())
        self._loop.start()
        self._ended.wait()
        self._loop.stop(_STOP_LIMIT_S)
        if self._error is not None:
            reason = f"the engine failed while measured: {self._error}"
            raise InternalError(reason, reason="STEP_FAILED") from self._error

    def plan_step(self, now: float) -> StepPlan | None:
        started = time.perf_counter()
        plan = self._decoder.plan_step(now)
        if plan is not None:
            is_decode = plan.num_tokens == len(plan.slices) == self._watch.batch
            taken = time.perf_counter() - started
            self._watch.steps.append(_StepTimes(is_decode=is_decode, plan_s=taken))
        return plan

    def complete_step(self, plan: StepPlan, result: StepResult, now: float) -> list[DecoderCommand]:
        started = time.perf_counter()
        commands = self._decoder.complete_step(plan, result, now)
        self._watch.current.book_s = time.perf_counter() - started
        return commands

    def _execute(self, plan: StepPlan, meanwhile: Callable[[], None]) -> StepResult | None:
        times = self._watch.current
        times.submitted_at = time.perf_counter()
        result = self._model.runner.execute(plan, meanwhile)
        times.execute_s = time.perf_counter() - times.submitted_at - times.text_s
        return result

    def _deliver(self, commands: list[DecoderCommand]) -> None:
        started = time.perf_counter()
        message = _StepMessage()
        for command in commands:
            if not isinstance(command, TokenOutput):
                raise InternalError(f"a sequence ended by {command}", reason="STEP_FAILED")
            self._answers.tell(command, message)
            self._unfinished -= command.finish is not None
        self._decoder.prepare_next()
        self._watch.current.text_s = time.perf_counter() - started
        if self._unfinished == 0:
            self._ended.set()

    def _crashed(self, error: BaseException) -> None:
        self._error = error
        self._ended.set()


class _StepMessage:
    """What a step gave, written as for one router."""

    def __init__(self) -> None:
        self._step = pb.Step()

    def new_output(self, key: AttemptKey) -> pb.SequenceOutput:
        return self._step.outputs.add()

    def go_on(self, key: AttemptKey, index: int, token: int, text: str) -> bool:
        further = self._step.further
        further.answers.append(index)
        further.token_ids.append(token)
        further.texts.append(text)
        return True


def summarize_steps(steps: list[_StepTimes], batch: int) -> StepOverhead:
    """Of decode steps of the whole batch that another one follows, after the warm-up."""
    pairs = [two for two in itertools.pairwise(steps) if two[0].is_decode and two[1].is_decode]
    pairs = pairs[WARM_UP_STEPS - 1 :]
    if not pairs:
        message = f"no {WARM_UP_STEPS + 1} steps decoded all {batch} sequences"
        raise InternalError(message, reason="NO_DECODE_STEPS")
    periods = [after.submitted_at - step.submitted_at for step, after in pairs]
    measured = [step for step, _ in pairs]
    return StepOverhead(
        batch=batch,
        step_s=median(periods),
        forward_s=median(step.forward_s for step in measured),
        outside_s=median(
            period - step.forward_s for period, step in zip(periods, measured, strict=True)
        ),
        plan_s=median(step.plan_s for step in measured),
        arrays_and_sampling_s=median(step.execute_s - step.forward_s for step in measured),
        book_s=median(step.book_s for step in measured),
        text_s=median(step.text_s for step in measured),
    )


@contextmanager
def _forward_timed(model: Model, watch: _Watch) -> Iterator[None]:
    """Notes how long the model's forward takes in each step. A CPU has computed when it returns."""
    forward = model.forward

    def timed(*arguments: Any) -> Any:
        started = time.perf_counter()
        logits = forward(*arguments)
        watch.current.forward_s = time.perf_counter() - started
        return logits

    setattr(model, "forward", timed)  # noqa: B010 — on this instance only, while it is measured.
    try:
        yield
    finally:
        delattr(model, "forward")
