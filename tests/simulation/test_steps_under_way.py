"""Schedulers with several steps under way, in any order of events: right KV, no leak, no stop.

The engine checks at every stage that a step reads the KV that it should. What `World` does for
whole clusters with seeds, hypothesis does here for one scheduler, and shrinks what goes wrong.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from fake_engine import FakeEngine, expected_answer
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from amounts import examples
from core.block_pool import BlockIds, BlockPool
from core.lease_events import FailAttempt
from core.references import check_references
from core.request import AttemptKey, RequestKey, SamplingParams
from core.step import StepPlan, StepResult
from decode_worker.scheduler import DecodeScheduler
from decode_worker.sequence_table import SequenceTable
from prefill_worker.scheduler import PrefillScheduler

SIZE = 4
CAPACITY = 28  # tokens of the smallest pool
DEPTHS = st.integers(1, 4)
POOLS = st.integers(CAPACITY // SIZE, 16)
# Few different prompts, so that they share prefixes; tokens and answers fit the smallest pool.
PROMPTS = st.builds(
    lambda length, kind: np.arange(1, 1 + length, dtype=np.int32) + 100 * (length > 9) * kind,
    st.integers(1, 18),
    st.integers(0, 2),
)
MAX_TOKENS = st.integers(1, 10)
ANSWERS = st.sampled_from([1, 1, 1, 2, 3])
STEP_LIMIT = 3000
TRANSFERRED = np.uint64(0xDEAD)


def key(number: int) -> AttemptKey:
    return AttemptKey(RequestKey("default", f"r{number}"), 1)


class Leases:
    """Blocks that transfers write into, at once and at every stage, while steps are under way.

    A step that still touches them would read the transfer's bytes, or damage them.
    """

    def __init__(self, pool: BlockPool, engine: FakeEngine) -> None:
        self._pool = pool
        self._engine = engine
        self._held: list[BlockIds] = []

    def take(self, count: int) -> None:
        block_ids = self._pool.allocate(min(count, self._pool.num_available))
        assert block_ids is not None
        self._engine.memory[:, block_ids] = TRANSFERRED
        self._held.append(block_ids)

    def give_back(self) -> None:
        for block_ids in self._held:
            assert (self._engine.memory[:, block_ids] == TRANSFERRED).all()
            self._pool.release(block_ids)
        self._held.clear()

    @property
    def references(self) -> list[BlockIds]:
        return self._held


class Decoding:
    """A decode scheduler with its engine, moved event by event, and what its requests got."""

    def __init__(self, depth: int, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks, SIZE)
        self.engine = FakeEngine(num_blocks, SIZE, depth)
        self.leases = Leases(self.pool, self.engine)
        self.sequences = SequenceTable(self.pool, max_num_seqs=4, eos=frozenset())
        self.scheduler = DecodeScheduler(self.sequences, max_num_batched_tokens=7, depth=depth)
        self.requests: dict[AttemptKey, tuple[np.ndarray, SamplingParams]] = {}
        self.answers: dict[tuple[AttemptKey, int], list[int]] = {}
        self.cut: set[AttemptKey] = set()

    def ask(self, prompt: np.ndarray, max_tokens: int, n: int) -> None:
        name, params = key(len(self.requests)), SamplingParams(max_tokens, n=n)
        self.requests[name] = (prompt, params)
        self.sequences.add_local(name, prompt, params, salt=0, now=0.0)
        self.sequences.admit(0)

    def abort(self, name: AttemptKey) -> None:
        self.cut.add(name)
        self.sequences.end(name)
        self.sequences.admit(0)

    def stop(self, name: AttemptKey, index: int) -> None:
        self.cut.add(name)
        self.sequences.end_answer(name, index)
        self.sequences.admit(0)

    def give_back(self) -> None:
        self.leases.give_back()
        self.sequences.admit(0)

    def plan(self) -> bool:
        """Plans and submits a step; false if there is nothing to do."""
        plan = self.scheduler.plan_step(0.0) if self.engine.has_room else None
        if plan is not None:
            ids = [piece.sequence_id for piece in plan.slices]
            assert len(set(ids)) == len(ids)
            in_flight = self.sequences.in_flight
            self.engine.submit(plan, {i: in_flight[i].tokens for i in ids})
        return plan is not None

    def complete(self, fail: bool = False) -> None:
        plan, result = self.engine.take_finished()
        if fail:
            result = fail_first(plan, result)
        for output in self.scheduler.complete_step(plan, result, 0.0):
            if isinstance(output, FailAttempt):
                self.cut.add(output.key)
            else:
                self.answers.setdefault((output.key, output.index), []).append(output.token)
        self.sequences.admit(0)

    def finish(self) -> None:
        """Goes on until nothing is left. An idle engine always has a next step: no standstill."""
        self.give_back()
        for _ in range(STEP_LIMIT):
            while self.plan():
                pass
            if self.engine.is_idle:
                break
            while not self.engine.has_finished:
                self.engine.advance(self.engine.movable()[0])
            self.complete()
            self.validate()
        assert (self.sequences.load.running, self.sequences.load.waiting) == (0, 0)
        assert self.pool.num_leased == 0
        assert self.pool.num_free + self.pool.num_cached == self.pool.num_blocks

    def validate(self) -> None:
        self.pool.validate()
        held = [*self.sequences.held_references(), *self.leases.references]
        check_references(self.pool, held)

    def judge(self) -> None:
        """Every answer is what a lone worker gives, and complete unless somebody cut it short."""
        for name, (prompt, params) in self.requests.items():
            for index in range(params.n):
                expected = expected_answer(prompt, params.max_tokens, index)
                got = self.answers.get((name, index), [])
                assert got == expected[: len(got)]
                assert len(got) == len(expected) or name in self.cut


def fail_first(plan: StepPlan, result: StepResult) -> StepResult:
    """The first draw of the step fails."""
    for piece in plan.slices:
        if piece.samples:
            drawn = {i: row for i, row in result.sampled.items() if i != piece.sequence_id}
            return StepResult(drawn, {piece.sequence_id: "the logits hold NaN"})
    return result


class DecodeMachine(RuleBasedStateMachine):
    @initialize(depth=DEPTHS, num_blocks=POOLS)
    def begin(self, depth: int, num_blocks: int) -> None:
        self.worker = Decoding(depth, num_blocks)

    @rule(prompt=PROMPTS, max_tokens=MAX_TOKENS, n=ANSWERS)
    def ask(self, prompt: np.ndarray, max_tokens: int, n: int) -> None:
        self.worker.ask(prompt, max_tokens, n)

    @precondition(lambda self: self.worker.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.worker.abort(data.draw(st.sampled_from(list(self.worker.requests))))

    @precondition(lambda self: self.worker.requests)
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(list(self.worker.requests)))
        _, params = self.worker.requests[name]
        self.worker.stop(name, data.draw(st.integers(0, params.n - 1)))

    @rule(count=st.integers(1, 5))
    def transfer(self, count: int) -> None:
        self.worker.leases.take(count)

    @rule()
    def end_transfers(self) -> None:
        self.worker.give_back()

    @rule()
    def plan(self) -> None:
        self.worker.plan()

    @rule()
    def prepare(self) -> None:
        self.worker.scheduler.prepare_next()

    @precondition(lambda self: self.worker.engine.movable())
    @rule(data=st.data())
    def advance(self, data: st.DataObject) -> None:
        engine = self.worker.engine
        engine.advance(data.draw(st.sampled_from(engine.movable())))

    @precondition(lambda self: self.worker.engine.has_finished)
    @rule(fail=st.sampled_from([False] * 7 + [True]))
    def complete(self, fail: bool) -> None:
        self.worker.complete(fail)

    @precondition(lambda self: not self.worker.engine.is_idle)
    @rule(rounds=st.integers(1, 8))
    def go_on(self, rounds: int) -> None:
        """A few steps at once: answers grow until they lack blocks."""
        for _ in range(rounds):
            while self.worker.plan():
                pass
            if self.worker.engine.is_idle:
                return
            self.worker.scheduler.prepare_next()
            while not self.worker.engine.has_finished:
                self.worker.engine.advance(self.worker.engine.movable()[0])
            self.worker.complete()

    @invariant()
    def no_block_is_lost(self) -> None:
        if hasattr(self, "worker"):
            self.worker.validate()

    def teardown(self) -> None:
        if hasattr(self, "worker"):
            self.worker.finish()
            self.worker.judge()


TestDecodeMachine = DecodeMachine.TestCase
TestDecodeMachine.settings = settings(
    max_examples=examples(120), stateful_step_count=60, deadline=None
)


REQUESTS = st.lists(st.tuples(PROMPTS, MAX_TOKENS, ANSWERS), min_size=1, max_size=8)


@settings(max_examples=examples(80), deadline=None)
@given(requests=REQUESTS, num_blocks=POOLS, depth=st.integers(2, 4))
def test_a_pipeline_gives_the_answers_of_a_lone_engine(
    requests: list[tuple[np.ndarray, int, int]], num_blocks: int, depth: int
) -> None:
    def answers(stages: int) -> dict[tuple[AttemptKey, int], list[int]]:
        worker = Decoding(stages, num_blocks)
        for prompt, max_tokens, n in requests:
            worker.ask(prompt, max_tokens, n)
        worker.finish()
        worker.judge()
        return worker.answers

    assert answers(depth) == answers(1)


class Prefilling:
    """A prefill scheduler with its engine, moved event by event."""

    def __init__(self, depth: int, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks, SIZE)
        self.engine = FakeEngine(num_blocks, SIZE, depth)
        self.leases = Leases(self.pool, self.engine)
        self.scheduler = PrefillScheduler(
            self.pool,
            max_num_seqs=4,
            max_num_batched_tokens=7,
            eos=frozenset(),
            depth=depth,
        )
        self.prompts: dict[AttemptKey, np.ndarray] = {}
        self.computed: dict[AttemptKey, int] = {}
        self.ended: set[AttemptKey] = set()

    def ask(self, prompt: np.ndarray) -> None:
        name = key(len(self.prompts))
        self.prompts[name] = prompt
        self.scheduler.add(name, prompt, SamplingParams(2), salt=0, now=0.0)
        self.scheduler.start_next(0.0)

    def end(self, name: AttemptKey) -> None:
        self.ended.add(name)
        self.scheduler.end(name)
        self.scheduler.start_next(0.0)

    def give_back(self) -> None:
        self.leases.give_back()
        self.scheduler.start_next(0.0)

    def plan(self) -> bool:
        plan = self.scheduler.plan_step(0.0) if self.engine.has_room else None
        if plan is not None:
            keys = {p.sequence_id: self.scheduler.key_of(p.sequence_id) for p in plan.slices}
            self.engine.submit(plan, {i: self.prompts[name] for i, name in keys.items()})
        return plan is not None

    def complete(self) -> None:
        plan, result = self.engine.take_finished()
        for chunk in self.scheduler.complete_step(plan, result, 0.0):
            assert chunk.key not in self.ended
            assert chunk.computed > self.computed.get(chunk.key, 0)
            self.computed[chunk.key] = chunk.computed
            prompt = self.prompts[chunk.key]
            drawn = [sampled.token for sampled in chunk.first_tokens]
            complete = chunk.computed == len(prompt)
            assert drawn == (expected_answer(prompt, 1) if complete else [])
        self.scheduler.start_next(0.0)

    def complete_prompts(self) -> Iterator[AttemptKey]:
        for name, prompt in self.prompts.items():
            if name not in self.ended and self.computed.get(name) == len(prompt):
                yield name

    def finish(self) -> None:
        """Computes what is left; each complete prompt is handed over before the next step."""
        self.give_back()
        for _ in range(STEP_LIMIT):
            for name in list(self.complete_prompts()):
                self.end(name)
            while self.plan():
                pass
            if self.engine.is_idle:
                break
            while not self.engine.has_finished:
                self.engine.advance(self.engine.movable()[0])
            self.complete()
            self.validate()
        assert self.ended == set(self.prompts)
        assert self.pool.num_leased == 0

    def validate(self) -> None:
        self.pool.validate()
        held = [*self.scheduler.held_references(), *self.leases.references]
        check_references(self.pool, held)


class PrefillMachine(RuleBasedStateMachine):
    @initialize(depth=DEPTHS, num_blocks=POOLS)
    def begin(self, depth: int, num_blocks: int) -> None:
        self.worker = Prefilling(depth, num_blocks)

    @rule(prompt=PROMPTS)
    def ask(self, prompt: np.ndarray) -> None:
        self.worker.ask(prompt)

    @precondition(lambda self: len(self.worker.ended) < len(self.worker.prompts))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        open_ones = [name for name in self.worker.prompts if name not in self.worker.ended]
        self.worker.end(data.draw(st.sampled_from(open_ones)))

    @precondition(lambda self: self.worker.prompts)
    @rule(data=st.data())
    def ticketed(self, data: st.DataObject) -> None:
        self.worker.scheduler.ticketed(data.draw(st.sampled_from(list(self.worker.prompts))))
        self.worker.scheduler.start_next(0.0)

    @rule(count=st.integers(1, 5))
    def transfer(self, count: int) -> None:
        self.worker.leases.take(count)

    @rule()
    def end_transfers(self) -> None:
        self.worker.give_back()

    @rule()
    def plan(self) -> None:
        while self.worker.plan():
            pass

    @precondition(lambda self: self.worker.engine.movable())
    @rule(data=st.data())
    def advance(self, data: st.DataObject) -> None:
        engine = self.worker.engine
        engine.advance(data.draw(st.sampled_from(engine.movable())))

    @precondition(lambda self: self.worker.engine.has_finished)
    @rule()
    def complete(self) -> None:
        self.worker.complete()

    @invariant()
    def no_block_is_lost(self) -> None:
        if hasattr(self, "worker"):
            self.worker.validate()

    def teardown(self) -> None:
        if hasattr(self, "worker"):
            self.worker.finish()


TestPrefillMachine = PrefillMachine.TestCase
TestPrefillMachine.settings = settings(
    max_examples=examples(80), stateful_step_count=50, deadline=None
)
