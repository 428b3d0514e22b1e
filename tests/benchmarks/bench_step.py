"""What the host does around each decode step of a running batch: microseconds by part, no model.

    taskset -c 1 python tests/benchmarks/bench_step.py MODEL_FOLDER [--batch 32] [--context 500]

Drives the production decode worker (its scheduler, the engine's arrays, the answers' text, the
message to the router) with an engine that draws random ordinary tokens at once. Prints one JSON
object of medians. "changing": every 8th step a request is aborted and another one begins, whose
prompt is in the prefix cache but for its last block. "prepare" is done while a step is computed.
"serialize" is what gRPC does with the message. "detokenize" is a part of "text and message".
"sample" uses random logits. "between steps": how long an engine waits from the end of a step to
the beginning of the next in the real loop, with its thread and the event loop, when it computes by
itself for 5 ms ("device") or on the loop's thread ("thread").
Does not cover: computing, the network, the router.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter_ns, sleep
from types import SimpleNamespace

import numpy as np
import torch

from core.kv_layout import KVLayout
from core.request import AttemptKey, RequestKey, Role, SamplingParams
from core.step import SampledToken, Slice, StepPlan, StepResult
from core.worker_settings import WorkerSettings
from crossdock.v1 import worker_pb2 as pb
from decode_worker.service import DecodeService
from engine.batch import to_device
from engine.kv_pool import KVPool
from engine.local_executor import LocalExecutor
from engine.runner import LoadedModel
from engine.running_batch import RunningBatch
from engine.sampler import Sampler, step_result
from engine.upload import Upload
from kv_transfer.handshake import WorkerIdentity
from text.answer import AnswerText
from text.tokenizer import Tokenizer
from wire.attempts import key_to_wire, sampling_to_wire, tokens_to_wire
from worker.ranks.replica import Replica

BLOCK_SIZE = 16
CHANGE_EVERY = 8
COMPUTED_S = 0.005
DRAWN = SamplingParams(10_000, temperature=0.8, top_p=0.95, seed=1, ignore_eos=True)
GREEDY = SamplingParams(10_000, ignore_eos=True)


class Parts:
    """Times of each part of each step."""

    def __init__(self) -> None:
        self._taken: dict[str, list[int]] = defaultdict(list)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        begun = perf_counter_ns()
        yield
        self._taken[name].append(perf_counter_ns() - begun)

    @property
    def medians(self) -> dict[str, float]:
        return {name: round(median(taken) / 1e3, 1) for name, taken in self._taken.items()}


class Worker:
    """A decode worker whose engine is never started, and the router that is attached to it."""

    def __init__(self, folder: Path, batch: int, context: int, seed: int) -> None:
        self.tokenizer = Tokenizer.load(folder)
        self.context = context
        self._draw = np.random.default_rng(seed)
        self._began = 0
        self._running: list[AttemptKey] = []
        # When the steps of the engine's thread began and ended.
        self.intervals: list[tuple[int, int]] = []
        self.on_device = True
        layout = KVLayout(1, 1, 8, BLOCK_SIZE, "float32")
        pool = KVPool.create(layout, batch * (context // BLOCK_SIZE + 200), "cpu")
        model = LoadedModel(
            SimpleNamespace(execute=None), pool, SimpleNamespace(max_positions=None)
        )
        settings = WorkerSettings(
            "D0", Role.MIXED, str(folder), pool.num_blocks, max_num_seqs=batch
        )
        identity = WorkerIdentity("D0", 1, 1, layout)
        replica = Replica(LocalExecutor(self._execute), pb.RankStats)
        self.service = DecodeService(settings, identity, model, self.tokenizer, replica, [])
        self.rows = RunningBatch(BLOCK_SIZE, pool.num_blocks)
        self.upload = Upload(torch.device("cpu"))
        self._from_router: asyncio.Queue[pb.RouterMessage] = asyncio.Queue()
        self._to_router = self.service.streams.attach(self._requests())

    async def _requests(self) -> AsyncIterator[pb.RouterMessage]:
        yield pb.RouterMessage(attach=pb.Attach(router_id="r0"))
        while True:
            yield await self._from_router.get()

    async def attach(self) -> None:
        for _ in range(3):
            await anext(self._to_router)
        # What is put into its queue is taken out by hand from here on.
        [self.stream] = self.service.streams._streams

    async def stop(self) -> None:
        await self.service.stop()
        await self._to_router.aclose()
        # Lets the task that reads the router's messages end.
        await asyncio.sleep(0)

    def begin(self) -> None:
        self._began += 1
        key = AttemptKey(RequestKey("tenant", f"request-{self._began:06d}"), 1)
        length = self.context + int(self._draw.integers(BLOCK_SIZE))
        message = pb.Open(
            key=key_to_wire(key),
            mode=pb.Open.LOCAL,
            token_ids=tokens_to_wire(np.arange(1000, 1000 + length, dtype=np.int32)),
            sampling=sampling_to_wire(GREEDY),
        )
        routed = pb.RouterMessage(open=message)
        self.service.streams._note_owner(self.stream, routed)
        self.service.on_router_message(routed)
        self._running.append(key)

    def change(self) -> None:
        ended = self._running.pop(int(self._draw.integers(len(self._running))))
        self.service.on_router_message(pb.RouterMessage(abort=pb.Abort(key=key_to_wire(ended))))
        self.begin()

    def drawn_tokens(self, plan: StepPlan) -> StepResult:
        tokens = self._draw.integers(1000, 40_000, len(plan.slices)).tolist()
        pairs = zip(plan.slices, tokens, strict=True)
        return StepResult(
            {part.sequence_id: (SampledToken(t),) for part, t in pairs if part.samples}
        )

    def _execute(self, plan: StepPlan, meanwhile: Callable[[], None]) -> StepResult:
        to_device(self.rows.arrays_of(plan), self.upload)
        if not self.on_device:
            meanwhile()
        begun = perf_counter_ns()
        if self.on_device:
            meanwhile()
        # Both wait without Python's lock, as one does for a device or in compiled code.
        sleep(COMPUTED_S)
        self.intervals.append((begun, perf_counter_ns()))
        return self.drawn_tokens(plan)

    async def run_steps(self, count: int, *, on_device: bool) -> float:
        """Median microseconds between ``count`` steps of the engine's thread."""
        self.on_device = on_device
        self.intervals.clear()
        while len(self.intervals) < count:
            await anext(self._to_router)
        between = [b[0] - a[1] for a, b in pairwise(self.intervals[:count])]
        return round(median(between) / 1e3, 1)

    def step(self, parts: Parts) -> StepPlan:
        with parts.timed("plan"):
            plan = self.service.plan_step(0.0)
        assert plan is not None
        with parts.timed("arrays"):
            to_device(self.rows.arrays_of(plan), self.upload)
        result = self.drawn_tokens(plan)
        with parts.timed("prepare"):
            self.service._decoder.prepare_next()
        with parts.timed("complete"):
            self.service.complete_step(plan, result, 0.0)
        with parts.timed("text and message"):
            self.service._carry_out_decided()
        messages = [self.stream.outbox.get_nowait() for _ in range(self.stream.outbox.qsize())]
        with parts.timed("serialize"):
            for message in messages:
                message.SerializeToString()
        return plan


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--context", type=int, default=500)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, object] = {}
    for name, changes in (("steady", False), ("changing", True)):
        worker = Worker(options.model, options.batch, options.context, seed=7)
        await worker.attach()
        report[name] = measure(worker, options.batch, options.steps, changes)
        if not changes:
            await worker.stop()
    report["detokenize"] = detokenizing(worker.tokenizer, options.batch, options.steps)
    report["sample"] = sampling(worker, options.batch)
    worker.service.start()
    report["between steps"] = {
        "device": await worker.run_steps(options.steps, on_device=True),
        "thread": await worker.run_steps(options.steps, on_device=False),
    }
    print(json.dumps(report, indent=2))
    await worker.stop()


def measure(worker: Worker, batch: int, steps: int, changes: bool) -> dict[str, float]:
    for _ in range(batch):
        worker.begin()
    while any(len(part.tokens) > 1 for part in worker.step(Parts()).slices):
        pass
    parts = Parts()
    gc.collect()
    for number in range(steps):
        if changes and number % CHANGE_EVERY == 0:
            worker.change()
        worker.step(parts)
    found = parts.medians
    return {**found, "together": round(sum(found.values()), 1)}


def detokenizing(tokenizer: Tokenizer, batch: int, steps: int) -> float:
    """Part of "text and message"."""
    answers = [AnswerText(tokenizer) for _ in range(batch)]
    draw = np.random.default_rng(3)
    taken = []
    for _ in range(steps):
        tokens = draw.integers(1000, 40_000, batch).tolist()
        taken.append(timed(push_all, answers, tokens))
    return round(median(taken) / 1e3, 1)


def push_all(answers: list[AnswerText], tokens: list[int]) -> None:
    for answer, token in zip(answers, tokens, strict=True):
        answer.push([token])


def sampling(worker: Worker, batch: int) -> dict[str, float]:
    plan = worker.step(Parts())
    logits = torch.from_numpy(
        np.random.default_rng(5).normal(0, 3, (batch, worker.tokenizer.vocab_size))
    ).float()
    greedy = [part for part in plan.slices if part.samples]
    drawn = [replace(part, samples=(replace(part.samples[0], params=DRAWN),)) for part in greedy]
    sampler = Sampler()

    def sample(slices: list[Slice]) -> StepResult:
        return step_result(slices, sampler.draw(logits, [part.samples for part in slices]))

    return {
        name: round(median([timed(sample, s) for _ in range(9)]) / 1e3, 1)
        for name, s in (("greedy", greedy), ("drawn", drawn))
    }


def timed(call: Callable[..., object], *args: object) -> int:
    begun = perf_counter_ns()
    call(*args)
    return perf_counter_ns() - begun


if __name__ == "__main__":
    asyncio.run(main())
