"""Which prompts P computes: short past long, work for every step, and an end to all waiting."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from amounts import examples
from core.block_pool import BlockPool
from core.prefill_order import PATIENCE
from core.request import AttemptKey, RequestKey, SamplingParams
from core.step import SampledToken, StepPlan, StepResult
from prefill_worker.scheduler import MAX_STEPS_LEFT_OUT, PrefillScheduler

SIZE = 4
BUDGET = 16
LONGEST = 100


def key(number: int) -> AttemptKey:
    return AttemptKey(RequestKey("default", f"r{number}"), 1)


@dataclass
class Prompt:
    """``passed``: tokens of later prompts computed before it was complete."""

    length: int
    passed: int = 0
    computed: int = 0
    left_out: int = 0
    started: bool = False


@dataclass
class Worker:
    """A scheduler at a token a second. Every prompt gets its ticket at once and is handed over
    when it is complete."""

    depth: int = 1
    now: float = 0.0
    prompts: dict[int, Prompt] = field(default_factory=dict)
    history: list[list[tuple[int, int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pool = BlockPool(4000, SIZE)
        self.scheduler = PrefillScheduler(
            self.pool,
            max_num_seqs=1000,
            max_num_batched_tokens=BUDGET,
            eos=frozenset(),
            depth=self.depth,
            ttft=50.0,
        )
        self.under_way: list[StepPlan] = []

    def ask(self, length: int, text: int | None = None) -> int:
        """``text``: the number of a prompt with the same tokens, as far as both go."""
        number = len(self.prompts) + 1
        self.prompts[number] = Prompt(length)
        tokens = 1000 * (text or number) + np.arange(length, dtype=np.int32)
        self.scheduler.add(key(number), tokens, SamplingParams(2), 0, self.now)
        self.start()
        return number

    def start(self) -> None:
        for name in self.scheduler.start_next(self.now):
            self.scheduler.ticketed(name)
            self.prompts[int(name.request.request_id[1:])].started = True

    def plan(self) -> StepPlan | None:
        plan = self.scheduler.plan_step(self.now)
        if plan is not None:
            self.under_way.append(plan)
            self.history.append([(p.sequence_id, len(p.tokens)) for p in plan.slices])
            self.note(plan)
        return plan

    def note(self, plan: StepPlan) -> None:
        for piece in plan.slices:
            self.prompts[piece.sequence_id].computed += len(piece.tokens)
        planned = {piece.sequence_id: len(piece.tokens) for piece in plan.slices}
        for number, prompt in self.prompts.items():
            if prompt.computed < prompt.length:
                later = [count for other, count in planned.items() if other > number]
                prompt.passed += sum(later)
                prompt.left_out = prompt.left_out + 1 if number not in planned else 0

    def complete(self) -> None:
        plan = self.under_way.pop(0)
        self.now += plan.num_tokens
        drawn = {p.sequence_id: (SampledToken(7),) for p in plan.slices if p.samples}
        done = self.scheduler.complete_step(plan, StepResult(drawn), float(plan.num_tokens))
        for chunk in done:
            if chunk.first_tokens:
                self.scheduler.end(chunk.key)
        self.start()

    @property
    def waiting(self) -> int:
        """Tokens in no step yet."""
        return sum(p.length - p.computed for p in self.prompts.values())

    def half_computed(self) -> list[int]:
        return [n for n, p in self.prompts.items() if 0 < p.computed < p.length]

    def finish(self) -> None:
        while self.plan() or self.under_way:
            self.complete()
        assert self.waiting == 0
        assert self.pool.num_leased == 0


def test_short_prompts_pass_a_long_one_that_would_make_them_late() -> None:
    worker = Worker()
    long = worker.ask(60)
    worker.plan()
    worker.complete()
    short = worker.ask(12)
    worker.plan()
    assert worker.history == [[(long, 16)], [(short, 12), (long, 4)]]


def test_what_another_prompt_left_in_the_cache_lets_more_of_them_start() -> None:
    worker = Worker()
    first = worker.ask(60)
    second, third = worker.ask(60, text=first), worker.ask(20)
    for _ in range(3):
        assert not worker.prompts[second].started
        worker.plan()
        worker.complete()
    assert worker.scheduler.load.pending_prefill_tokens == 12 + 12 + 20
    assert worker.prompts[second].started
    assert worker.prompts[third].started


def test_a_second_long_prompt_waits_for_the_first() -> None:
    worker = Worker()
    worker.ask(60)
    second = worker.ask(50)
    worker.plan()
    assert not worker.prompts[second].started
    worker.finish()


def test_a_cached_prompt_counts_as_short() -> None:
    worker = Worker()
    worker.ask(40)
    worker.finish()
    worker.ask(60)
    worker.plan()
    worker.complete()
    repeated = np.arange(1000, 1040, dtype=np.int32)
    worker.prompts[3] = Prompt(40, computed=36)
    worker.scheduler.add(key(3), repeated, SamplingParams(2), 0, worker.now)
    worker.start()
    worker.plan()
    assert worker.history[-1] == [(3, 4), (2, 12)]


def test_a_half_computed_prompt_is_never_left_out_for_long() -> None:
    worker = Worker()
    long = worker.ask(60)
    worker.plan()
    worker.complete()
    for _ in range(12):
        worker.ask(16)
        worker.plan()
        assert worker.prompts[long].left_out <= MAX_STEPS_LEFT_OUT
        worker.complete()
    assert worker.prompts[long].computed == worker.prompts[long].length


# What comes before each step, again and again: often more than a step can take.
ARRIVALS = st.builds(
    lambda rounds, times: rounds * times,
    st.lists(
        st.lists(st.one_of(st.integers(1, BUDGET), st.integers(1, LONGEST)), max_size=4),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 12),
)


def most_passed(length: int, depth: int) -> int:
    """What may be computed of later prompts before one of ``length`` tokens is complete: its
    patience; a long prompt that is half computed; and what has started when the patience ends and
    behind it, which is what the steps under way and the next one take, twice."""
    return PATIENCE * length + LONGEST + 2 * (depth + 2) * BUDGET


@given(arrivals=ARRIVALS, depth=st.integers(1, 3))
@settings(deadline=None)
def test_whatever_comes_steps_are_full_and_nobody_is_passed_for_ever(
    arrivals: list[list[int]], depth: int
) -> None:
    worker = Worker(depth)
    for lengths in arrivals:
        for length in lengths:
            worker.ask(length)
        if len(worker.under_way) == depth:
            worker.complete()
        before = worker.waiting
        plan = worker.plan()
        assert (plan.num_tokens if plan else 0) >= min(BUDGET, before), "work is left undone"
        assert len(worker.half_computed()) <= 1
    worker.finish()
    for prompt in worker.prompts.values():
        assert prompt.passed <= most_passed(prompt.length, depth)


@given(arrivals=ARRIVALS)
@settings(deadline=None, max_examples=examples(20))
def test_the_same_arrivals_give_the_same_steps(arrivals: list[list[int]]) -> None:
    def history() -> list[list[tuple[int, int]]]:
        worker = Worker()
        for lengths in arrivals:
            for length in lengths:
                worker.ask(length)
            if worker.plan():
                worker.complete()
        worker.finish()
        return worker.history

    assert history() == history()
