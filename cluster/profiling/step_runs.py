"""Real steps of an engine with chosen work, one after the other.

Decoding sequences are real ones: each step takes the tokens that the one before drew, at positions
that grow. The contexts and prefixes that are attended to are random numbers and not computed, which
costs the same to read. Does not cover: which points (``tuner.profile.points``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from core.errors import InternalError
from core.request import SamplingParams
from core.step import IntArray, SampleSpec, Slice, StepPlan, StepResult
from engine.loop import StepExecutor
from engine.runner import LoadedModel
from tuner.profile.points import Chunk, StepPoint

_ENDLESS = SamplingParams(max_tokens=2**31 - 1, ignore_eos=True)
# Before the first run that counts: the first step of a batch lays out its arrays, the second one
# is the first to go on from there. A chunk is always a new one.
_WARM_UP = 2
_WARM_UP_OF_CHUNKS = 1
# A step that takes such a part of the time for its point counts from its first run on: what that
# one lays out takes milliseconds.
_LONG = 0.25
_SCHEDSTAT = Path("/proc/thread-self/schedstat")


@dataclass(frozen=True, slots=True)
class StepRun:
    """How long a step took, and how much of that its thread waited for a core. Seconds."""

    seconds: float
    waited_s: float


@dataclass(slots=True)
class _Running:
    """The decoding sequences of a point: ``tables`` [batch, blocks], ``tokens`` drawn last."""

    first_id: int
    length: int
    tables: IntArray
    tokens: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int32))


class StepRuns:
    """Owns the pool of ``model``, which must have room for each point with ``most`` more runs."""

    def __init__(self, model: LoadedModel, executor: StepExecutor) -> None:
        self._model = model
        self._executor = executor
        self._random = np.random.default_rng(0)
        self._next_id = 0
        pool = model.pool.tensor
        # A context that was never computed must be finite.
        pool[0].normal_()
        pool[1:] = pool[0]

    def measure(self, point: StepPoint, least: int, most: int, seconds: float) -> list[StepRun]:
        """The contexts grow by one from run to run, around the point's."""
        running = self._start(point, most)
        times = self._warm_up(point, running, _LONG * seconds)
        end = time.perf_counter() + seconds - sum(run.seconds for run in times)
        while len(times) < least or (len(times) < most and time.perf_counter() < end):
            times.append(self._run(point, running))
        return times

    def _warm_up(self, point: StepPoint, running: _Running, long_s: float) -> list[StepRun]:
        """The run that took so long that it counts, if there was one."""
        for _ in range(_WARM_UP if point.decodes else _WARM_UP_OF_CHUNKS):
            run = self._run(point, running)
            if run.seconds >= long_s:
                return [run]
        return []

    def until(self, is_over: Callable[[], bool], point: StepPoint, runs: int) -> None:
        """``runs`` steps of a point, not timed; none begins when ``is_over``."""
        running = self._start(point, runs)
        for _ in range(runs):
            if is_over():
                return
            self._run(point, running)

    def _start(self, point: StepPoint, runs: int) -> _Running:
        size = self._model.pool.layout.block_size
        context = max(1, point.context - _WARM_UP - runs // 2)
        per_sequence = -(-(context + _WARM_UP + runs + 1) // size)
        count = point.decodes * per_sequence
        tables = np.arange(count, dtype=np.int32).reshape(point.decodes, per_sequence)
        tables %= self._model.pool.num_blocks
        first_id = self._new_ids(point.decodes)
        return _Running(first_id, context - 1, tables, self._tokens(point.decodes))

    def _run(self, point: StepPoint, running: _Running) -> StepRun:
        plan = self._plan(point, running)
        waited, started = _waited_s(), time.perf_counter()
        result = self._executor.submit(plan, _nothing).result()
        taken = StepRun(time.perf_counter() - started, _waited_s() - waited)
        self._check(result)
        ids = range(running.first_id, running.first_id + point.decodes)
        drawn = [result.sampled[sequence][0].token for sequence in ids]
        running.tokens = np.array(drawn, dtype=np.int32)
        running.length += 1
        return taken

    def _plan(self, point: StepPoint, running: _Running) -> StepPlan:
        size = self._model.pool.layout.block_size
        blocks = running.length // size + 1
        decodes = [
            _slice(
                running.first_id + i,
                running.length,
                running.tokens[i : i + 1],
                running.tables[i, :blocks],
                draws=True,
            )
            for i in range(point.decodes)
        ]
        return StepPlan((*decodes, *self._chunks(point, running.tables.size)))

    def _chunks(self, point: StepPoint, used_blocks: int) -> list[Slice]:
        slices = []
        for chunk in point.chunks:
            table = self._table(chunk, used_blocks)
            used_blocks += len(table)
            tokens = self._tokens(chunk.count)
            slices.append(_slice(self._new_ids(1), chunk.start, tokens, table, draws=chunk.draws))
        return slices

    def _table(self, chunk: Chunk, first: int) -> IntArray:
        pool = self._model.pool
        count = pool.layout.blocks_for(chunk.start + chunk.count)
        return np.arange(first, first + count, dtype=np.int32) % pool.num_blocks

    def _check(self, result: StepResult) -> None:
        if result.failed:
            reason = next(iter(result.failed.values()))
            raise InternalError(f"the engine failed while measured: {reason}", reason="STEP_FAILED")

    def _tokens(self, count: int) -> IntArray:
        vocabulary = self._model.config.vocab_size
        return self._random.integers(0, vocabulary, count, dtype=np.int32)

    def _new_ids(self, count: int) -> int:
        """The first of ``count`` sequence ids that were not used before."""
        first = self._next_id
        self._next_id += count
        return first


def _nothing() -> None:
    pass


def _waited_s() -> float:
    """For how long this thread was ready to run and had no core, so far (Linux, sched-stats: the
    second number, in nanoseconds); 0 where nobody counts that."""
    try:
        return int(_SCHEDSTAT.read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def _slice(
    sequence_id: int, start: int, tokens: IntArray, table: IntArray, *, draws: bool
) -> Slice:
    end = start + len(tokens)
    samples = (SampleSpec(_ENDLESS, position=end, prompt_length=end),) if draws else ()
    return Slice(sequence_id, start, tokens, table, samples)
