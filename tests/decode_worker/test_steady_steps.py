"""Many steps at once leave a decode worker exactly as so many single ones."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from amounts import examples
from core.block_pool import BlockPool
from core.handoff import Announce, Commit, LeaseTimes, Piece, Reserve, Ticket
from core.lease_events import Aborted, Copied, FromPrefill, Opened, SendToPrefill
from core.outputs import TokenOutput
from core.request import AttemptKey, FinishReason, RequestKey, SamplingParams
from core.sequence import Sequence
from core.step import SampledToken, StepPlan, StepResult
from decode_worker.decoder import Decoder, DecoderCommand, PrefillHere, Stopped

SIZE = 4
EOS = 99
PEER = "P1@1"


def key(number: int) -> AttemptKey:
    return AttemptKey(RequestKey("default", f"r{number}"), 1)


class Worker:
    """A decoder, and what it says. Its transfers copy all blocks at once."""

    def __init__(self, num_blocks: int, depth: int = 1) -> None:
        self.pool = BlockPool(num_blocks, SIZE)
        lease_ids = iter(range(1, 10**6))
        self.decoder = Decoder(
            self.pool,
            max_num_seqs=4,
            max_num_batched_tokens=7,
            eos=frozenset({EOS}),
            times=LeaseTimes(),
            new_lease_id=lambda: next(lease_ids),
            depth=depth,
        )
        self.now = 0.0
        self.jumps: list[int] = []
        self.tickets: list[tuple[Ticket, Reserve]] = []
        self.reserves: dict[AttemptKey, Reserve] = {}
        self.said: list[DecoderCommand] = []

    def hear(self, commands: list[DecoderCommand]) -> list[DecoderCommand]:
        self.said += commands
        for command in commands:
            if isinstance(command, SendToPrefill) and isinstance(command.message, Ticket):
                self.tickets.append((command.message, self.reserves[command.message.key]))
        return commands

    def local(self, name: AttemptKey, prompt: np.ndarray, params: SamplingParams) -> None:
        self.hear(self.decoder.handle(PrefillHere(name, prompt, params, 0), self.now))

    def reserve(self, name: AttemptKey, prompt: np.ndarray, params: SamplingParams) -> None:
        self.reserves[name] = Reserve(name, prompt, 0, params)
        self.hear(self.decoder.handle(Opened(name), self.now))
        self.hear(self.decoder.handle(FromPrefill(PEER, self.reserves[name]), self.now))

    def commit(self, number: int, token: int) -> None:
        """The prefill worker has computed one of the prompts that got a ticket."""
        if not self.tickets:
            return
        ticket, reserve = self.tickets.pop(number % len(self.tickets))
        blocks = -(-len(reserve.tokens) // SIZE)
        pieces = tuple(Piece(i, 1, (0,)) for i in range(ticket.held_blocks, blocks))
        announce = Announce(ticket.key, ticket.lease_id, ticket.held_blocks, pieces)
        copied = Copied(ticket.lease_id, tuple(range(ticket.held_blocks, blocks)), ())
        drawn = (SampledToken(token),) * reserve.params.n
        commit = Commit(ticket.key, ticket.lease_id, drawn, 0)
        self.hear(self.decoder.handle(FromPrefill(PEER, announce), self.now))
        if pieces:
            self.hear(self.decoder.handle(copied, self.now))
        self.hear(self.decoder.handle(FromPrefill(PEER, commit), self.now))

    def abort(self, name: AttemptKey) -> None:
        self.tickets = [x for x in self.tickets if x[0].key != name]
        self.hear(self.decoder.handle(Aborted(name), self.now))

    def step(self, token: int) -> StepPlan | None:
        """A single step, in which everybody draws ``token``."""
        plan = self.decoder.plan_step(self.now)
        self.now += 1
        if plan is not None:
            drawn = {s.sequence_id: (SampledToken(token),) * len(s.samples) for s in plan.slices}
            self.hear(self.decoder.complete_step(plan, StepResult(drawn), self.now))
        return plan

    def jump(self, steps: int, token: int) -> list[DecoderCommand]:
        self.jumps.append(steps)
        self.now += steps
        return self.hear(self.decoder.complete_steady_steps(steps, lambda _: token, self.now))

    def run(self, steps: int, token: int, limit: int) -> None:
        """So many steps, up to ``limit`` at once where that is allowed."""
        while steps:
            count = min(steps, limit, self.decoder.steady_steps())
            if count:
                self.jump(count, token)
            else:
                self.step(token)
            steps -= max(count, 1)


POOL_ARRAYS = ["_refs", "_in_quarantine", "_generations"]
CACHE_ARRAYS = ["_in_cache", "_hash", "_tokens", "_parent", "_children", "_last_used"]


def pool_state(pool: BlockPool) -> dict[str, object]:
    cache = pool._cache
    arrays = [getattr(pool, name).tolist() for name in POOL_ARRAYS]
    cached = [getattr(cache, name).tolist() for name in CACHE_ARRAYS]
    return {
        "arrays": dict(zip(POOL_ARRAYS, arrays, strict=True)),
        "cached": dict(zip(CACHE_ARRAYS, cached, strict=True)),
        "free": pool._free[: pool.num_free].tolist(),
        "counts": (pool.num_cached, pool.num_leased, pool.num_quarantined, pool._clock),
        "cache": list(cache._block_of.items()),
        "events": [hashes.tolist() for hashes in deepcopy(cache.changes).drain()],
        "leaves": eviction_order(pool),
    }


def sequence_state(sequence: Sequence) -> dict[str, object]:
    hidden = {"_tokens", "_blocks", "_prepared", "_hashes", "_num_hashes", "block_ids"}
    names = set(Sequence.__slots__) - hidden
    return {name: getattr(sequence, name) for name in names} | {
        "tokens": sequence.tokens.tolist(),
        "blocks": sequence.block_ids.tolist(),
        "hashes": sequence.hashes.tolist(),
    }


def decoder_state(worker: Worker) -> dict[str, object]:
    """All that decides what the worker does from here."""
    decoder, sequences = worker.decoder, worker.decoder.sequences
    waiting = sequences.queue._waiting
    return {
        "pool": pool_state(worker.pool),
        "running": [sequence_state(s) for s in sequences.running],
        "waiting": [sequence_state(s) if isinstance(s, Sequence) else s.key for s in waiting],
        "answers": {name: [s.index for s in all_] for name, all_ in sequences._by_key.items()},
        "steps": (sequences.num_planned, sequences._next_id, sequences._num_granted),
        "prompts": list(sequences.prompts.sequence(0.0)),
        "speed": sequences.prompts.seconds_per_token,
        "in flight": len(sequences.in_flight),
        "forks": sequences.forks.sources.tolist(),
        "counters": decoder.counters,
        "clock": (list(decoder._clock._planned_at), decoder._clock._completed_at),
        "load": decoder.load,
        "leases": decoder.num_leases,
    }


Event = tuple[str, tuple[object, ...]]

# Few different tokens, so that prompts share prefixes and answers go on like other prompts.
PROMPTS = st.builds(
    lambda length, start, rest: np.array(([1] * start + [rest] * length)[:length], dtype=np.int32),
    st.integers(1, 18),
    st.sampled_from([4, 9, 18]),
    st.sampled_from([2, 3]),
)
PARAMS = st.builds(
    lambda max_tokens, **others: SamplingParams(max_tokens, **others),
    st.integers(3, 24),
    n=st.sampled_from([1, 1, 1, 2]),
    min_tokens=st.integers(0, 3),
    ignore_eos=st.sampled_from([True, True, True, False]),
)
TOKENS = st.sampled_from([1, 1, 1, 2, 2, 3, EOS])
SMALL = st.integers(0, 30)
ARRIVAL = st.tuples(st.sampled_from(["local", "reserve"]), st.tuples(PROMPTS, PARAMS))
HANDOFF = st.tuples(st.just("handoff"), st.tuples(PROMPTS, PARAMS))
COMMIT = st.tuples(st.just("commit"), st.tuples(SMALL, TOKENS))
RUN = st.tuples(st.just("run"), st.tuples(st.integers(1, 30), TOKENS))
CUT = st.tuples(st.sampled_from(["abort", "stop"]), st.tuples(SMALL))
DRAIN = st.tuples(st.just("drain"), st.tuples())
EVENTS = st.one_of(ARRIVAL, HANDOFF, HANDOFF, HANDOFF, COMMIT, RUN, RUN, CUT, DRAIN)
WORKLOADS = st.lists(EVENTS, min_size=10, max_size=40)
POOLS = st.integers(11, 26)


def play(worker: Worker, number: int, event: Event, limit: int) -> None:
    """``limit``: how many steps the worker may do at once."""
    match event:
        case "local", (np.ndarray() as prompt, SamplingParams() as params):
            worker.local(key(number), prompt, params)
        case "reserve", (np.ndarray() as prompt, SamplingParams() as params):
            worker.reserve(key(number), prompt, params)
        case "handoff", (np.ndarray() as prompt, SamplingParams() as params):
            worker.reserve(key(number), prompt, params)
            worker.commit(-1, 1)
        case "commit", (int(which), int(token)):
            worker.commit(which, token)
        case "run", (int(steps), int(token)):
            worker.run(steps, token, limit)
        case "abort", (int(which),):
            worker.abort(key(which % (number + 1)))
        case "stop", (int(which),):
            worker.hear(worker.decoder.handle(Stopped(key(which % (number + 1))), worker.now))
        case _:
            worker.pool.drain_events()


def of_note(said: list[DecoderCommand]) -> list[DecoderCommand]:
    """Without the tokens in the middle of answers, which nobody makes for steps at once."""
    return [x for x in said if not isinstance(x, TokenOutput) or x.finish or x.first]


@settings(max_examples=examples(300), deadline=None)
@given(events=WORKLOADS, num_blocks=POOLS, limit=st.sampled_from([2, 3, 100]))
def test_many_steps_at_once_leave_what_single_steps_leave(
    events: list[Event], num_blocks: int, limit: int
) -> None:
    single, several = Worker(num_blocks), Worker(num_blocks)
    for number, event in enumerate(events):
        play(single, number, event, limit=0)
        play(several, number, event, limit)
        assert decoder_state(several) == decoder_state(single)
    assert of_note(several.said) == of_note(single.said)
    several.decoder.validate()


@settings(max_examples=examples(150), deadline=None)
@given(events=WORKLOADS, num_blocks=POOLS)
def test_who_was_refused_is_tried_again_only_when_it_can_help(
    events: list[Event], num_blocks: int
) -> None:
    """A queue that tries its head each time grants the same, and leaves the same to evict next."""
    patient, eager = Worker(num_blocks), Worker(num_blocks)
    queue = eager.decoder.sequences.queue
    queue.admits_nobody = lambda num_running: len(queue) == 0  # type: ignore[method-assign]
    for number, event in enumerate(events):
        play(patient, number, event, limit=0)
        play(eager, number, event, limit=0)
        assert patient.said == eager.said
        tables = [
            [s.block_ids.tolist() for s in w.decoder.sequences.running] for w in (patient, eager)
        ]
        assert tables[0] == tables[1]
        assert eviction_order(patient.pool) == eviction_order(eager.pool)


def eviction_order(pool: BlockPool) -> list[int]:
    cache = pool._cache
    leaves = [entry for entry in cache._leaves.entries() if cache._is_evictable_leaf(*entry)]
    return [block_id for _, block_id in sorted(leaves)]


def lone(num_blocks: int = 40, depth: int = 1, **params: object) -> Worker:
    """A worker with one answer, which has its first token."""
    worker = Worker(num_blocks, depth)
    sampling = SamplingParams(**({"max_tokens": 50, "ignore_eos": True} | params))  # type: ignore[arg-type]
    worker.reserve(key(0), np.arange(6, dtype=np.int32), sampling)
    worker.commit(0, 1)
    return worker


def test_the_last_of_many_steps_ends_the_answer() -> None:
    worker = lone()
    assert worker.decoder.steady_steps() == 49
    [output] = worker.jump(49, token=5)
    assert isinstance(output, TokenOutput)
    assert (output.token, output.finish) == (5, FinishReason.LENGTH)
    assert worker.decoder.counters.steps == worker.decoder.counters.decode_tokens == 49
    assert worker.pool.num_leased == 0
    assert worker.decoder.steady_steps() == 0, "nothing runs any more"


def test_an_answer_that_may_stop_is_certain_for_one_step_or_its_least_length() -> None:
    assert lone(ignore_eos=False).decoder.steady_steps() == 1
    assert lone(ignore_eos=False, min_tokens=20).decoder.steady_steps() == 19
    assert lone(stop_token_ids=(4,), min_tokens=9).decoder.steady_steps() == 8


def test_steps_end_where_a_block_may_be_missing() -> None:
    worker = lone(num_blocks=25)
    taken = worker.pool.allocate(20)
    assert taken is not None
    assert worker.decoder.steady_steps() == 5 * SIZE - 6
    assert worker.decoder.steady_steps() < 49


def test_with_a_prompt_to_compute_or_a_step_under_way_no_step_is_steady() -> None:
    worker = lone()
    plan = worker.decoder.plan_step(0.0)
    assert plan is not None
    assert worker.decoder.steady_steps() == 0
    worker.decoder.complete_step(plan, StepResult({1: (SampledToken(5),)}), 0.0)
    assert worker.decoder.steady_steps() == 48
    worker.local(key(1), np.arange(9, dtype=np.int32), SamplingParams(3))
    assert worker.decoder.steady_steps() == 0


def test_with_several_stages_no_step_is_steady() -> None:
    assert lone(depth=2).decoder.steady_steps() == 0


def ones(length: int) -> np.ndarray:
    return np.ones(length, dtype=np.int32)


def test_steps_end_where_a_block_may_serve_who_waits() -> None:
    """The head lacks one block; the answer that goes on like its prompt fills it in two steps."""
    worker = Worker(num_blocks=20)
    worker.reserve(key(0), ones(6), SamplingParams(20, ignore_eos=True))
    worker.commit(0, 1)
    worker.pool.allocate(worker.pool.num_free - 3)
    worker.reserve(key(1), ones(13), SamplingParams(4))
    assert worker.tickets == []
    assert worker.decoder.steady_steps() == 2
    worker.jump(2, token=1)
    assert [ticket.held_blocks for ticket, _ in worker.tickets] == [2]


def test_within_a_step_blocks_are_taken_before_others_are_published() -> None:
    """One answer evicts the block that another one publishes again in the same step."""

    def worker_with_full_cache() -> Worker:
        worker = Worker(num_blocks=20)
        for number, prompt in enumerate((ones(8), 2 * ones(8))):
            worker.reserve(key(number), prompt, SamplingParams(1))
            worker.commit(0, 1)
        for number, prompt in ((2, ones(5)), (3, 3 * ones(6))):
            worker.reserve(key(number), prompt, SamplingParams(20, ignore_eos=True))
            worker.commit(0, 1)
        worker.pool.allocate(worker.pool.num_free)
        return worker

    single, several = worker_with_full_cache(), worker_with_full_cache()
    assert several.decoder.steady_steps() == 7
    single.run(7, token=1, limit=0)
    several.jump(7, token=1)
    assert decoder_state(several) == decoder_state(single)
