"""Prompts and decode steps on the real engine, without scheduler or server around it.

Prompts are computed in chunks as when serving. Decode steps are real ones: each takes the tokens
that the step before drew, at positions that grow. The contexts that they attend to are random
numbers and not computed, which costs the same to read.
"""

from __future__ import annotations

import time

import numpy as np

from cluster.engine_bench.cases import WARM_UP_STEPS
from cluster.engine_bench.timing import Timing, summarize
from core.errors import InternalError
from core.request import SamplingParams
from core.step import IntArray, SampledToken, SampleSpec, Slice, StepPlan
from engine.runner import LoadedModel

_ENDLESS = SamplingParams(max_tokens=2**31 - 1, ignore_eos=True)


class EngineRuns:
    """Owns the pool of ``model`` while it measures. ``chunk``: most tokens of a prefill step."""

    def __init__(self, model: LoadedModel, chunk: int) -> None:
        self._model = model
        self._chunk = chunk
        self._random = np.random.default_rng(0)
        self._next_id = 0

    def fill_pool(self) -> None:
        """Random numbers in every block: a context that was never computed must be finite."""
        pool = self._model.pool.tensor
        pool[0].normal_()
        pool[1:] = pool[0]

    def prefill(self, length: int, runs: int) -> Timing:
        """A prompt of ``length`` tokens up to its first answer token, after one warm-up."""
        return summarize([self._prefill_once(length) for _ in range(runs + 1)][1:])

    def decode(self, batch: int, context: int, steps: int) -> Timing:
        """Steps of ``batch`` sequences of ``context`` tokens, which grow by one in each."""
        size = self._model.pool.layout.block_size
        per_sequence = -(-(context + WARM_UP_STEPS + steps) // size)
        first_id = self._new_ids(batch)
        tables = np.arange(batch * per_sequence, dtype=np.int32).reshape(batch, per_sequence)
        tokens = self._tokens(batch)
        times = []
        for length in range(context, context + WARM_UP_STEPS + steps):
            blocks = length // size + 1
            plan = StepPlan(
                tuple(
                    _slice(first_id + i, length, tokens[i : i + 1], tables[i, :blocks], draw=True)
                    for i in range(batch)
                )
            )
            started = time.perf_counter()
            drawn = self._execute(plan)
            times.append(time.perf_counter() - started)
            tokens = np.array([drawn[first_id + i][0].token for i in range(batch)], dtype=np.int32)
        return summarize(times[WARM_UP_STEPS:])

    def _prefill_once(self, length: int) -> float:
        tokens = self._tokens(length)
        sequence_id = self._new_ids(1)
        size = self._model.pool.layout.block_size
        started = time.perf_counter()
        for start in range(0, length, self._chunk):
            piece = tokens[start : start + self._chunk]
            end = start + len(piece)
            table = np.arange(-(-end // size), dtype=np.int32)
            part = _slice(sequence_id, start, piece, table, draw=end == length)
            self._execute(StepPlan((part,)))
        return time.perf_counter() - started

    def _execute(self, plan: StepPlan) -> dict[int, tuple[SampledToken, ...]]:
        result = self._model.runner.execute(plan)
        assert result is not None, "one rank draws its tokens itself"
        if result.failed:
            reason = next(iter(result.failed.values()))
            raise InternalError(f"the engine failed while measured: {reason}", reason="STEP_FAILED")
        return result.sampled

    def _tokens(self, count: int) -> IntArray:
        vocabulary = self._model.config.vocab_size
        return self._random.integers(0, vocabulary, count, dtype=np.int32)

    def _new_ids(self, count: int) -> int:
        """The first of ``count`` sequence ids that were not used before."""
        first = self._next_id
        self._next_id += count
        return first


def _slice(sequence_id: int, start: int, tokens: IntArray, table: IntArray, *, draw: bool) -> Slice:
    end = start + len(tokens)
    samples = (SampleSpec(_ENDLESS, position=end, prompt_length=end),) if draw else ()
    return Slice(sequence_id, start, tokens, table, samples)
